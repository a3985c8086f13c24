"""What a run's snapshots answer to the same prompts: each what `generate` at its step writes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hornbook.base import files
from hornbook.cli import main
from hornbook.infer import looking_back
from hornbook.infer.looking_back import answers_beside
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.runs.answers import Answers
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards
from hornbook.shards.openings import openings
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, resume

pytestmark = pytest.mark.xdist_group("looking-back")  # one training
look_back = partial(looking_back.look_back, seconds=math.inf)  # however busy the machine is
Knobs = dict[str, Any]
DRAWN: Knobs = {"sample": {"tokens": 12, "rules": {"temperature": 0.9, "top_p": 0.8}}, "seed": 5}


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 steps of bytes; the same of pieces, which begins with words of its own."""
    runs = tmp_path_factory.mktemp("asked")
    fit(tiny(**DRAWN), runs / "bytes")
    own = {"tokenizer": {"kind": "bpe", "vocab_size": 300}, "sample": {"prompts": ["def "], "tokens": 3}}
    fit(tiny(**own), runs / "pieces")
    return runs


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "bytes", tmp_path / "bytes")
    return tmp_path / "bytes"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose models were loaded."""
    steps: list[int] = []

    class Counted(Speaker):
        def __init__(self, folder: Path) -> None:
            steps.append(int(folder.name[5:]))
            super().__init__(folder)

    monkeypatch.setattr(looking_back, "Speaker", Counted)
    return steps


def test_each_snapshot_answers_as_generate_does_at_its_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = look_back(run)
    assert found is not None
    assert list(found.texts) == [1, 2, 4, 6]  # three snapshots, and the end
    assert found.asked.prompts == openings(Shards.open(RunFolder(run).record().shards), 3)
    assert len({*found.texts.values()}) == 4
    for step, texts in found.texts.items():
        capsys.readouterr()
        words = ["generate", str(run), "--at", str(step), "--max-tokens", "12", "--seed", "5", "--json"]
        words += ["--temperature", "0.9", "--top-p", "0.8"]
        for prompt, text in zip(found.asked.prompts, texts, strict=True):
            assert main([*words, "--prompt", prompt]) == 0
            assert json.loads(capsys.readouterr().out)["text"] == text
    assert Answers.of(RunFolder(run)) == found


def test_what_has_answered_is_not_asked_again(run: Path, asked: list[int]) -> None:
    first = look_back(run)
    assert look_back(run) == first
    assert asked == [6, 1, 2, 4]  # the newest, the oldest, and what lies between
    resume(run, {"train": {"steps": 8}})
    again = look_back(run)
    assert again is not None
    assert first is not None
    assert asked[4:] == [8]
    assert {step: again.texts[step] for step in (1, 2, 4)} == {step: first.texts[step] for step in (1, 2, 4)}


def test_what_there_is_no_time_for_is_asked_the_next_time(run: Path, asked: list[int]) -> None:
    found = look_back(run, seconds=0)
    assert found is not None
    assert (found.texts, found.unasked, asked) == ({}, 4, [])
    assert look_back(run) == look_back(run, seconds=0)
    assert len(asked) == 4


def test_answers_of_other_weights_or_of_another_run_are_not_believed(run: Path, asked: list[int]) -> None:
    look_back(run)
    there = RunFolder(run).answers
    edited = there.read_text()
    there.write_text(edited.replace('"step": 2', '"step": 3'))
    assert Answers.of(RunFolder(run)) is None
    there.write_text(edited)
    record = RunFolder(run).record()
    RunFolder(run).write(type(record)(record.config, record.shards, record.fingerprint))
    assert Answers.of(RunFolder(run)) is None


def test_a_file_of_somebody_else_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "answers.json").write_text('{"mine": 1}')
    assert look_back(run) is not None
    assert (run / "answers.json").read_text() == '{"mine": 1}'
    assert "answers.json: not known to be written by Hornbook" in capsys.readouterr().err


def test_a_damaged_snapshot_is_passed_over_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = RunFolder(run).snapshot(2) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    found = look_back(run)
    assert found is not None
    assert list(found.texts) == [1, 4, 6]
    assert "step-00000002: is not asked: model.safetensors has changed" in capsys.readouterr().err


def test_the_machine_of_a_run_that_trains_is_its_own(run: Path, asked: list[int]) -> None:
    with files.locked(run):
        look_back(run)
    assert asked == []


def test_a_model_that_there_is_no_memory_for_is_not_asked(
    run: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking_back, "free_memory_bytes", lambda device: 1000)
    look_back(run)
    assert answers_beside([run]) == [None]
    assert asked == []


def test_the_best_of_several_runs_answer_what_the_first_is_asked(trained: Path, tmp_path: Path) -> None:
    paths = [trained / "pieces", trained / "bytes", tmp_path]
    pieces, other, nobody = answers_beside(paths)
    assert nobody is None
    assert pieces is not None
    assert other is not None
    assert (pieces.asked.prompts, pieces.asked.max_tokens) == (("def ",), 3)
    assert replace(other.asked, max_tokens=3) == pieces.asked
    facts = Shards.open(RunFolder(paths[0]).record().shards).split_facts("train")
    as_much = math.ceil(3 * facts["bytes_of_text"] / facts["tokens"])
    assert other.asked.max_tokens == as_much > 3
    for path, found in zip(paths, (pieces, other), strict=False):
        best = load_speaker(path)
        [[step, texts]] = found.texts.items()
        assert step == int(best.folder.name[5:])
        assert texts == (best.generate("def ", seed=1, max_tokens=found.asked.max_tokens),)


def test_report_keeps_and_shows_the_answers(run: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "pieces", run.parent / "pieces")
    assert main(["report", str(run), str(run.parent / "pieces")]) == 0
    found = Answers.of(RunFolder(run))
    assert found is not None
    page = (run / "report.html").read_text()
    beside = (run.parent / "comparison.html").read_text()
    for prompt in found.asked.prompts:
        assert json.dumps(prompt) in page
        assert beside.count(f"<i>{prompt}</i>") == 2
    assert "seed 5, at most 12 tokens, temperature 0.9, top p 0.8" in page
    assert "not asked" not in capsys.readouterr().err
