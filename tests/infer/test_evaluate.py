from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hornbook import cli
from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.infer.evaluate import evaluate
from hornbook.infer.score import Score
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards, TokenArray
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.corpora import CORPORA, find_source
from hornbook.text.corpus import SPLIT, Corpus, Remote
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


def test_a_run_evaluates_to_what_it_wrote_down(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiny(train={"steps": 20, "eval_every_steps": 5, "save_every_steps": 5, "keep_checkpoints": 9}), run, Progress())
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_step = {each["step"]: each for each in written if "val_loss" in each}
    best = min(by_step.values(), key=lambda each: each["val_loss"])
    for at, expected in [("best", best), ("newest", by_step[20]), ("5", by_step[5])]:
        result = evaluate(run, None, at, device="cpu")
        assert result["loss"] == pytest.approx(expected["val_loss"], rel=1e-6)
        assert result["bits_per_byte"] == pytest.approx(expected["val_bits_per_byte"], rel=1e-6)
    assert by_step[5]["val_loss"] > best["val_loss"]


def test_the_test_part_is_scored_once_and_every_look_is_told(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    fit(
        tiny(shards={"test_fraction": 0.1}, train={"steps": 2, "save_every_steps": 1, "eval_every_steps": 2}),
        run,
        Progress(io.StringIO()),
    )
    shards = Shards.open(RunFolder(run).record().shards)
    facts = shards.split_facts("test")
    expected = load_speaker(run, device="cpu").score_tokens(shards.split("test"), facts["bytes_of_text"])
    capsys.readouterr()
    first = evaluate(run, None, device="cpu", split="test")
    assert {name: first[name] for name in ("loss", "bits_per_byte", "tokens")} == {
        name: getattr(expected, name) for name in ("loss", "bits_per_byte", "tokens")
    }
    assert first["looked_before"] == []
    assert capsys.readouterr().err == ""
    assert evaluate(run, None, device="cpu", split="val")["tokens"] != first["tokens"], "which is no look at it"
    with monkeypatch.context() as patch:
        patch.setattr(Speaker, "score_tokens", None)  # a second look at the same model scores nothing
        again = evaluate(run, None, device="cpu", split="test")
    assert (again["loss"], again["scored_at"]) == (first["loss"], first["scored_at"])
    assert len(again["looked_before"]) == 1
    assert f"looked at before, last at {first['scored_at']}: loss {first['loss']:.4f}" in capsys.readouterr().err
    other = evaluate(run, None, "1", device="cpu", split="test")
    assert other["loss"] != first["loss"]
    assert evaluate(run, None, "1", device="cpu", split="test")["loss"] == other["loss"]
    assert "looked at before, 2 times" in capsys.readouterr().err
    kept = json.loads((run / "tested.json").read_text())
    assert [each["loss"] for each in kept["looks"]] == [first["loss"], other["loss"]]
    (run / "tested.json").write_text(json.dumps(kept | {"looks": []}))
    with pytest.raises(UserError, match="was edited"):
        evaluate(run, None, device="cpu", split="test")


def test_a_test_part_that_is_not_there_is_told(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    fit(tiny(train={"steps": 1}), tmp_path / "run", Progress(io.StringIO()))
    with pytest.raises(UserError, match=re.escape("holds no test part; train anew with --shards.test-fraction")):
        evaluate(tmp_path / "run", None, device="cpu", split="test")
    text = tmp_path / "a.txt"
    text.write_text("some text")
    with pytest.raises(UserError, match="goes with a run or with shards"):
        evaluate(tmp_path / "run", str(text), device="cpu", split="test")


def test_a_text_of_ones_own_is_scored_with_the_end_of_each_document(speaker: Speaker, tmp_path: Path) -> None:
    for name, text in {"a.txt": "first text", "b.txt": "zwölf"}.items():
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    result = evaluate(speaker.folder, str(tmp_path / "texts"), device="cpu")
    text_bytes = len(b"first text") + len("zwölf".encode())
    assert result["tokens"] == text_bytes + 2
    assert result["bits_per_byte"] == pytest.approx(result["loss"] * 1.4426950408889634 * result["tokens"] / text_bytes)


def test_what_cannot_be_evaluated_is_told(speaker: Speaker, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the text: --data"):
        evaluate(speaker.folder, None, device="cpu")
    shards = tmp_path / "shards"
    prepare(find_source(str(text_file)), TokenizerConfig(kind="char"), ShardsConfig(), shards)
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        evaluate(speaker.folder, str(shards), device="cpu")


@pytest.fixture
def of_words(untaught: Callable[..., GPT], some_text: str, tmp_path: Path) -> Path:
    """A model whose tokenizer drops blanks, and puts a token before each text as well as after it."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=300), [some_text], 1)
    folder = tmp_path / "words"
    folder.mkdir()
    save_model(untaught(context=16, vocab_size=tokenizer.vocab_size), tokenizer, folder)
    return folder


@pytest.mark.parametrize("kind", ["byte", "wordpiece"])
def test_a_text_is_framed_as_preparation_frames_it(
    kind: str, speaker: Speaker, of_words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is the template in the tokenizer.json, which preparation is tested against."""
    folder = of_words if kind == "wordpiece" else speaker.folder
    texts = [f"def f{number}(x):  return x\n" for number in range(5)]
    for number, text in enumerate(texts):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    scored: list[list[int]] = []
    score = Speaker.score_tokens

    def watched(self: Speaker, tokens: TokenArray, text_bytes: int) -> Score:
        scored.append(tokens.read(0, len(tokens)).tolist())
        return score(self, tokens, text_bytes)

    monkeypatch.setattr(Speaker, "score_tokens", watched)
    result = evaluate(folder, str(tmp_path / "texts"), device="cpu")
    judge = AutoTokenizer.from_pretrained(folder)
    end = [judge.eos_token_id]
    if kind == "wordpiece":
        framed = [judge.encode(text) for text in texts]
    else:
        framed = [end, *([*judge.encode(text, add_special_tokens=False), *end] for text in texts)]
    assert scored == [[token for document in framed for token in document]]
    assert result["keeps_text"] == (kind == "byte")


def test_a_corpus_with_splits_is_scored_on_its_validation_split(
    speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    texts = {"train": b"train " * 40, "val": b"validation", "test": b"test it"}
    remotes = [Remote(f"https://example.org/{split}.txt", len(text), split) for split, text in texts.items()]
    tales = Corpus("tales", "tales", "none", "nowhere", lambda choice: remotes, switches=(SPLIT,))
    monkeypatch.setitem(CORPORA, "tales", tales)
    monkeypatch.setitem(CORPORA, "plain", replace(tales, name="plain", remote=lambda choice: [plain], switches=()))
    plain = Remote("https://example.org/plain.txt", 5)
    for folder, name, text in [*(("tales", name, text) for name, text in texts.items()), ("plain", "plain", b"plain")]:
        (tmp_path / "corpora" / folder).mkdir(parents=True, exist_ok=True)
        if name != "train":  # what is not needed is not fetched
            (tmp_path / "corpora" / folder / f"{name}.txt").write_bytes(text)
    for data, said, tokens in [
        ("tales", "validation split of tales", 11),
        ("tales:split=val", "tales:split=val", 11),
        ("tales:split=test", "tales:split=test", 8),
        ("plain", "plain", 6),
    ]:
        result = evaluate(speaker.folder, data, device="cpu")
        assert (result["text"], result["tokens"]) == (said, tokens)
    (tmp_path / "corpora" / "tales" / "train.txt").write_bytes(texts["train"])
    assert evaluate(speaker.folder, "tales:split=all", device="cpu")["tokens"] == sum(map(len, texts.values())) + 3
    assert cli.main(["eval", str(speaker.folder), "--data", "tales", "--device", "cpu"]) == 0
    assert "text           validation split of tales\n" in capsys.readouterr().out


def test_bits_per_byte_of_a_text_that_the_tokenizer_does_not_keep_say_so(
    of_words: Path, speaker: Speaker, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, told in ((of_words, 1), (speaker.folder, 0)):
        assert cli.main(["eval", str(folder), "--data", str(text_file), "--device", "cpu"]) == 0
        assert capsys.readouterr().out.count("without what the tokenizer drops") == told
