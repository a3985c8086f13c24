from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path

import pytest
import tiktoken
import tokenizers

from hornbook import cli
from hornbook.base.console import Progress
from hornbook.shards.format import Shards
from hornbook.text.gpt2 import RANKS
from hornbook.text.learning import learn_from
from hornbook.text.readers import Part, Source
from hornbook.text.tokenizer import TokenizerConfig


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char"])
def test_a_learned_vocabulary_is_a_file_that_other_programs_and_prepare_read(
    kind: str, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sized = tmp_path / "deep" / "words.json", [] if kind == "char" else ["--vocab-size", "400"]
    assert cli.main(["tokenizer", "train", str(text_file), "--kind", kind, *sized, "--out", str(out)]) == 0
    assert f"hornbook tokenizer show {out} " in capsys.readouterr().out
    judge = tokenizers.Tokenizer.from_file(str(out))
    if sized:
        assert judge.get_vocab_size() == 400
    words = ["--tokenizer.kind", "file", "--tokenizer.file", str(out), "--out", str(tmp_path / "shards")]
    assert cli.main(["prepare", str(text_file), *words]) == 0
    train = Shards.open(tmp_path / "shards").split("train").read(0, 200).tolist()
    judge.encode_special_tokens = True
    expected = judge.encode(text_file.read_text()[:2000]).ids if kind == "wordpiece" else None
    expected = expected or judge.encode(text_file.read_text()[:2000], add_special_tokens=False).ids
    assert train == expected[:200]


def test_what_a_corpus_holds_back_is_not_learned_from(tmp_path: Path) -> None:
    for name, text in (("train", "abc\n"), ("val", "xyz\n")):
        (tmp_path / f"{name}.txt").write_text(text * 50)
    parts = tuple(Part("c", tmp_path, (tmp_path / f"{each}.txt",), split=each) for each in ("val", "train"))
    learned = learn_from(Source("c", parts), TokenizerConfig(kind="char"), Progress(live=False))
    assert {learned.name(token) for token in range(4)} == {"a", "b", "c", "\n"}


def test_no_more_is_read_than_is_learned_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 100)
    source = Source.of(Part("t", tmp_path, (tmp_path / "a.txt", tmp_path / "b.txt")))
    learned = [
        learn_from(source, TokenizerConfig(kind="char", train_bytes=size), Progress(live=False)).vocab_size
        for size in (100, 101)
    ]
    assert learned[1] == learned[0] + 1


def test_a_text_is_shown_in_pieces_beside_gpt2s_tokens(
    text_file: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks, text = test_data / RANKS, "Every effort moves you,\nGisburn: naïve"
    if not ranks.is_file():
        pytest.skip(f"no {RANKS} among the test data")
    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    known = {base64.b64decode(token): int(rank) for token, rank in lines}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    gpt2 = len(tiktoken.Encoding("r50k", pat_str=pattern, mergeable_ranks=known, special_tokens={}).encode(text))
    out = tmp_path / "v.json"
    assert cli.main(["tokenizer", "train", str(text_file), "--vocab-size", "500", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 500
    ids = tokenizers.Tokenizer.from_file(str(out)).encode(text).ids
    size = len(text.encode())
    words = ["tokenizer", "show", str(out), text]
    assert cli.main([*words, "--ranks-file", str(ranks)]) == 0
    shown = capsys.readouterr().out
    assert f"ids     {' '.join(map(str, ids))}\n" in shown
    assert f"{len(ids)} for {size} bytes: {size / len(ids):.2f} bytes per token" in shown
    assert f"GPT-2   {gpt2} for {size} bytes: {size / gpt2:.2f} bytes per token" in shown
    assert cli.main([*words, "--ranks-file", str(ranks), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ids"] == ids
    assert facts["gpt2"] == {"tokens": gpt2, "bytes_per_token": size / gpt2}


def test_where_gpt2s_vocabulary_is_not_at_hand_that_is_said_and_nothing_is_fetched(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("hornbook.text.gpt2.RANKS_AT", "http://127.0.0.1:9/never")
    out = tmp_path / "v.json"
    assert cli.main(["tokenizer", "train", str(text_file), "--kind", "char", "--out", str(out)]) == 0
    assert cli.main(["tokenizer", "show", str(out), "def f"]) == 0
    shown = capsys.readouterr().out
    assert "|d|e|f| |f|\n" in shown
    assert "not at hand" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train", "name a text"),
        ("train some.txt", "--out tokenizer.json"),
        ("train some.txt --out there", "there: is there already"),
        ("train some.txt --kind gpt2 --out new", "nothing of it is learned"),
        ("train some.txt --kind char --vocab-size 300 --out new", "has the vocabulary it needs"),
        ("train none.txt --out new", "no such file"),
        ("show there text", "not a tokenizer"),
        ("shwo", "should be one of train, show"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.txt").write_text("some text\n" * 100)
    (tmp_path / "there").write_text("{}")
    assert cli.main(["tokenizer", *shlex.split(words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert (tmp_path / "there").read_text() == "{}"
    assert not (tmp_path / "new").exists()
