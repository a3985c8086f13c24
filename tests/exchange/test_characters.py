"""nanoGPT's table of characters, as its preparation writes it by Python's pickle."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from references import SYSTEMS, Sizes, weights
from refusing import refused
from system_files import nanogpt, written
from transformers import AutoModelForCausalLM, AutoTokenizer

from hornbook import cli
from hornbook.exchange.characters import LARGEST, META, read_characters
from hornbook.exchange.imports import import_model
from hornbook.infer.speaker import load_speaker
from hornbook.text.tokenizer import Tokenizer

SIZES = Sizes()
LETTERS = sorted("\n é日" + "".join(map(chr, range(ord("A"), ord("A") + SIZES.vocab_size - 4))))


def table(characters: list[str] = LETTERS) -> dict[str, Any]:
    stoi = {character: number for number, character in enumerate(characters)}
    return {"vocab_size": len(stoi), "itos": {number: each for each, number in stoi.items()}, "stoi": stoi}


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_every_character_has_its_number_and_comes_back(protocol: int, tmp_path: Path) -> None:
    held = table()
    (tmp_path / META).write_bytes(pickle.dumps(held, protocol))
    text = "BAD\n日é BED\n\n"
    tokenizer = read_characters(tmp_path / META)
    assert tokenizer.vocab_size == held["vocab_size"]
    assert tokenizer.encode(text) == [held["stoi"][each] for each in text]
    assert tokenizer.decode(range(SIZES.vocab_size)) == "".join(held["itos"].values())
    assert tokenizer.encode("B~A") == tokenizer.encode("BA")


def test_a_large_table_is_read_whole(tmp_path: Path) -> None:
    characters = [chr(code) for code in range(0xD800)]  # more than a pickle puts into a dictionary at once, or a byte
    (tmp_path / META).write_bytes(pickle.dumps(table(characters)))
    tokenizer = read_characters(tmp_path / META)
    assert tokenizer.encode("\n~日本") == [10, 126, ord("日"), ord("本")]


@pytest.mark.parametrize("place", ["beside", "where preparation leaves it", "named"])
def test_a_model_of_characters_comes_in_and_speaks_on_after_a_line(place: str, tmp_path: Path) -> None:
    tree = nanogpt(weights(SYSTEMS["nanogpt"], SIZES, 1), SIZES)
    tree["config"]["dataset"] = "plays_char"
    out = tmp_path / "repository" / "out"
    at = {"beside": out, "where preparation leaves it": out.parent / "data" / "plays_char", "named": tmp_path / "x"}
    for folder in (out, at[place]):
        folder.mkdir(parents=True, exist_ok=True)
    torch.save(tree, out / "ckpt.pt")
    (at[place] / META).write_bytes(pickle.dumps(table()))
    given = {"tokenizer": at[place] / META} if place == "named" else {}
    found = import_model(str(out / "ckpt.pt"), tmp_path / "model", **given)
    assert found.tokenizer == str(at[place] / META)

    speaker = load_speaker(tmp_path / "model", device="cpu")
    assert speaker.tokenizer.stop is None
    assert speaker.tokenizer.decode(speaker.tokenizer.encode_prompt("")) == "\n"  # with which nanoGPT begins
    said = speaker.generate("BAD", max_tokens=600, temperature=50.0, top_p=None)
    assert len(said) == 600
    assert "\n" in said

    ids = torch.tensor([speaker.tokenizer.encode("BAD\nB")])
    theirs, judge = AutoTokenizer.from_pretrained(tmp_path / "model"), None
    assert theirs("BAD\nB")["input_ids"] == ids[0].tolist()
    assert theirs.decode(ids[0], skip_special_tokens=True) == "BAD\nB"
    if place == "named":
        judge = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert judge.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0).shape[1] == ids.shape[1] + 5


def test_training_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, _ = written("nanogpt", weights(SYSTEMS["nanogpt"], SIZES, 1), SIZES, tmp_path / "theirs")
    (tmp_path / "theirs" / META).write_bytes(pickle.dumps(table()))
    import_model(str(source), tmp_path / "model")
    Path("text.txt").write_text("BAD BED\nCAB\n" * 100)
    words = ["train", "--from", "model", "--data", "text.txt", "--out", "run", "--train.steps", "2"]
    assert cli.main([*words, "--train.device", "cpu"]) == 0
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    kept = Tokenizer.load(newest)
    assert (kept.stop, kept.vocab_size) == (None, SIZES.vocab_size)
    assert json.loads((newest / "config.json").read_text())["eos_token_id"] is None


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/hornbook-was-run",)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (pickle.dumps({"itos": Runs()}), "holds more than a table"),
        (pickle.dumps({"itos": {0: bytearray(5)}}), "holds more than a table"),
        (pickle.dumps(table())[:-40], "not a sound table"),
        (b"", "not a sound table"),
        (b"}q\x00(u.", "no itos"),
        (b"h\x05.", "not a sound table"),
        (pickle.dumps({"stoi": {"a": 0}}), "no itos"),
        (pickle.dumps({"itos": {0: "a", 2: "\n"}}), "without a gap"),
        (pickle.dumps({"itos": {0: "a", 1: "a"}}), "different characters"),
        (pickle.dumps({"itos": {0: "a", 1: "\r\n"}}), "different characters"),
        (pickle.dumps({"itos": {0: "a", 1: "b"}}), "ends a line"),
    ],
)
def test_anything_else_is_refused_and_does_not_run(held: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / META).write_bytes(held)
    assert says in refused(lambda: read_characters(tmp_path / META), tmp_path / META)
    assert not Path("/tmp/hornbook-was-run").exists()


def test_a_file_too_large_for_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / META).touch()
    os.truncate(tmp_path / META, LARGEST + 1)
    assert "too large" in refused(lambda: read_characters(tmp_path / META), tmp_path / META)
