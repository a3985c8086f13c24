from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from hornbook import cli
from hornbook.base.files import staged_folder
from hornbook.text import look
from hornbook.text.gpt2 import RANKS
from hornbook.text.records import Document
from hornbook.text.tokenizer import RANKED, TokenizerConfig, train_tokenizer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def documents(*lengths: int) -> list[Document]:
    return [Document(f"d{number}", "x" * length) for number, length in enumerate(lengths)]


def test_the_histogram_counts_every_document_once() -> None:
    lengths = [0, 1, 1, 2, 3, 4, 7, 8, 1000, 1023, 1024]
    seen = look.Look.at(iter(documents(*lengths)), TokenizerConfig(kind="byte"))
    assert seen.histogram() == [(0, 1), (1, 2), (2, 2), (4, 2), (8, 1), (512, 2), (1024, 1)]
    assert seen.all_read


def test_a_look_reads_no_more_than_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "READ_BYTES", 1000)
    read = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            read.append(1)
            yield Document("d", "y" * 300)

    seen = look.Look.at(endless(), TokenizerConfig(kind="byte"))
    assert len(seen.documents) == 4
    assert len(read) == 5
    assert not seen.all_read


def test_pieces_are_the_text_between_bars_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    look.show_pieces([b"Caf", "é".encode(), b" \n", b"\xc3", b"\x1b[31m"], more=True)
    assert capsys.readouterr().out == "|Caf|é| ↵\n|\\xc3|\\x1b[31m|...|\n"


def test_pieces_are_coloured_on_a_terminal_and_the_text_cannot_steer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    look.show_pieces([b"evil\x1b]0;title\x07", b"\x9b31m", "\u202e".encode()], more=False)
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    for escape in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert escape not in shown
    assert "\\x1b]0;title\\x07" in shown


def test_the_command_shows_documents_tokens_and_lengths(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpora", str(text_file), "--show", "--tokenizer.kind", "char"]) == 0
    shown = capsys.readouterr().out
    size = len(text_file.read_text())
    assert f"some.txt ({size:,} characters, {size:,} tokens)" in shown
    assert '|"|"|"|T|e|x|t| |w|r|a|p|p|i|n|g|' in shown
    assert "learned from them" in shown
    assert f"{'32,768 to 65,535':>20} {1:>8,} #" in shown


@pytest.mark.parametrize("kind", get_args(TokenizerConfig.model_fields["kind"].annotation))
def test_every_tokenizer_shows_its_pieces_which_are_the_text(
    kind: str, text_file: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    if kind in RANKED:
        if not (ranks := test_data / (RANKS if kind == "gpt2" else f"{kind}.tiktoken")).is_file():
            pytest.skip(f"no {ranks.name} among the test data")
        words = ["--tokenizer.ranks-file", str(ranks)]
    if kind == "file":
        words = ["--tokenizer.file", str(tmp_path / "given")]
        with staged_folder(tmp_path / "given", {}) as staging:
            train_tokenizer(TokenizerConfig(kind="bpe"), [text_file.read_text()], 1000).save(staging)
    assert cli.main(["corpora", str(text_file), "--show", "--tokenizer.kind", kind, *words]) == 0
    shown = capsys.readouterr().out
    assert f" of a {kind} vocabulary of " in shown
    assert ("learned from them" in shown) == (kind in ("bpe", "char", "wordpiece"))
    assert cli.main(["corpora", str(text_file), "--show", "--json", "--tokenizer.kind", kind, *words]) == 0
    first = json.loads(capsys.readouterr().out)["first"][0]
    begins = text_file.read_text()[:100].replace("\n", "↵")
    if kind == "wordpiece":  # which does not keep blanks, nor tell them
        begins = re.sub(r"[\s↵]", "", begins)
        assert re.sub(r"\s", "", "".join(first["pieces"])).startswith(begins)
    else:
        assert "".join(first["pieces"]).startswith(begins)


def test_ids_from_elsewhere_are_shown_by_the_tokenizer_that_made_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["tokens"] = np.array([*b"two\n", 256, *b"words", 256], np.int32)
    assert cli.main(["corpora", str(tmp_path / "ids.h5"), "--show", "--tokenizer.kind", "byte"]) == 0
    shown = capsys.readouterr().out
    assert "ids.h5 (11 tokens)" in shown
    assert "|t|w|o|↵\n|<|endoftext|>|w|o|r|d|s|<|endoftext|>|" in shown
    assert "9 bytes, 11 tokens" in shown
    assert cli.main(["corpora", str(tmp_path / "ids.h5"), "--show"]) == 2
    assert "name the one that made them" in capsys.readouterr().err


def test_a_look_reads_texts_as_they_are_to_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"one": "yes", "other": "no"}\n' * 3)
    words = ["corpora", str(tmp_path / "a.jsonl"), "--show", "--tokenizer.kind", "char", "--text.field", "other"]
    assert cli.main([*words, "--max-documents", "2"]) == 0
    shown = capsys.readouterr().out
    assert "|n|o|" in shown
    assert "all 2 documents" in shown


def test_the_same_as_json(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpora", str(text_file), "--show", "--json", "--tokenizer.kind", "byte"]) == 0
    facts = json.loads(capsys.readouterr().out)
    data = text_file.read_bytes()
    assert facts["tokens"] == len(data)
    assert facts["first"][0]["ids"] == list(data[: look.SHOWN_TOKENS])
    assert facts["histogram"] == [{"least_tokens": 32768, "documents": 1}]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--show"], "needs a name"),
        (["python-stdlib", "--show", "--documents", "0"], "at least 1"),
        (["python-stdlib", "--tokenizer.kind", "byte"], "only with --show"),
        (["python-stdlib", "--show", "--tokenizer.kin", "byte"], "tokenizer.kind"),
        (["pyton-stdlib"], "did you mean python-stdlib"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpora", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
