"""`hornbook import`, as somebody runs it: one real command for each kind of file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from references import SYSTEMS, Sizes, n_params, weights
from system_files import KEPT_IN, written

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


def hornbook(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hornbook.cli", *words], capture_output=True, text=True, timeout=120)


def options(knobs: dict[str, object]) -> list[str]:
    return [word for name, value in knobs.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("form", KINDS)
def test_what_was_found_is_said_and_it_speaks(form: str, letters: Callable[[int], Path], tmp_path: Path) -> None:
    system = SYSTEMS[form.partition(" ")[0]]
    source, knobs = written(form, weights(system, SIZES, 1), SIZES, tmp_path / "theirs")
    out, tokenizer = tmp_path / "ours", str(letters(SIZES.vocab_size))
    done = hornbook("import", str(source), str(out), "--tokenizer", tokenizer, *options(knobs))
    assert done.returncode == 0, done.stderr
    assert KINDS[form] in done.stdout
    assert f"{n_params(system, SIZES):,}" in done.stdout
    assert f"hornbook generate {out}" in done.stdout
    assert (out / "MANIFEST.json").is_file()
    if form in ("nanogpt", "shakespeare-124m openai"):
        spoke = hornbook("generate", str(out), "--prompt", "AB", "--max-tokens", "5", "--json")
        assert spoke.returncode == 0, spoke.stderr
        assert json.loads(spoke.stdout)["text"]


def test_every_kind_is_tried() -> None:
    assert KEPT_IN.keys() < KINDS.keys()
