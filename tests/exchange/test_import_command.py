"""`hornbook import`, as somebody runs it: each kind of file, and one of them by a real command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from references import SYSTEMS, Sizes, n_params, weights
from system_files import KEPT_IN, written

from effort import LONG
from hornbook import cli

SIZES = Sizes()
# What the line says that tells the kind.
KINDS = {
    "julius-caesar-small": "a notebook after nanoGPT",
    "nanogpt": "nanoGPT",
    "nanogpt-no-biases": "nanoGPT",
    "wikitext-wordpiece": "Implementing-GPT-From-Scratch",
    "pile": "train-llm-from-scratch",
    "pile-between": "train-llm-from-scratch",
    "pile-later": "train-llm-from-scratch",
    "the-verdict": "the book",
    "the-verdict-qkv-bias": "the book",
    "shakespeare-124m huggingface": "a Hugging Face folder of type gpt2",
    "shakespeare-124m openai": "OpenAI",
}


def options(knobs: dict[str, object]) -> list[str]:
    return [word for name, value in knobs.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("form", KINDS)
def test_what_was_found_is_said_and_it_speaks(
    form: str, letters: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hornbook(*words: str) -> str:
        if LONG and form == "nanogpt":
            command = [sys.executable, "-m", "hornbook", *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert cli.main([*words]) == 0
        return capsys.readouterr().out

    system = SYSTEMS[form.partition(" ")[0]]
    source, knobs = written(form, weights(system, SIZES, 1), SIZES, tmp_path / "theirs")
    out, tokenizer = tmp_path / "ours", str(letters(SIZES.vocab_size))
    said = hornbook("import", str(source), str(out), "--tokenizer", tokenizer, *options(knobs))
    assert KINDS[form] in said
    assert f"{n_params(system, SIZES):,}" in said
    assert f"hornbook generate {out}" in said
    assert (out / "MANIFEST.json").is_file()
    assert json.loads(hornbook("generate", str(out), "--prompt", "AB", "--max-tokens", "5", "--json"))["text"]


def test_every_kind_is_tried() -> None:
    assert KEPT_IN.keys() < KINDS.keys()
