"""What a run recites: held against samples of which it is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.infer.originality import originality
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

pytestmark = pytest.mark.xdist_group("originality")  # one training


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    fit(tiny(train={"steps": 2, "batch_tokens": 128}), run)
    return run


def said(run: Path, *texts: str) -> None:
    """As if it had logged these."""
    lines = [json.dumps({"step": 2, "prompt": "", "text": each}) + "\n" for each in texts]
    RunFolder(run).samples.write_text("".join(lines))


def trained_on(run: Path) -> str:
    shards = Shards.open(RunFolder(run).record().shards)
    tokens = shards.split("train")
    return shards.tokenizer.decode(tokens.read(0, len(tokens)).tolist())


def test_what_was_learned_by_heart_is_told_with_its_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = trained_on(run)
    said(run, text[1000:3000], text[20_000:22_000] + " and a few words of its own, one after another", text[1000:2000])
    assert main(["originality", str(run), "--log", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["of_samples"]["share"] > 0.9
    assert found["verdict"].startswith("It mostly recites: ")
    assert found["share_in_passages"] > 0.95
    assert [each["sample"] for each in found["passages"][:2]] in ([0, 1], [1, 0])
    assert {each["token"] // 100 for each in found["passages"][:2]} <= {9, 10, 199, 200}
    twins = Shards.open(RunFolder(run).record().shards).manifest["report"]["twins"]
    assert found["near_duplicates"] == twins
    assert twins["compared"] == 1
    assert len(found["passages"]) == 2  # the third sample stands in the first one's place
    assert main(["originality", str(run), "--log"]) == 0
    told = capsys.readouterr().out
    assert "as in document 1 (token " in told
    assert "twins        0 of 1 validation documents" in told
    assert told.splitlines()[-1] == found["verdict"]


def test_its_own_words_are_its_own(run: Path, test_data: Path) -> None:
    said(run, (test_data / "the-verdict.txt").read_text()[:8000])
    found = originality(run, from_log=True)
    assert found.of_samples.value < 0.01
    assert found.verdict.startswith("It writes its own: ")
    said(run, "a word or two")
    assert "too little to tell" in originality(run, from_log=True).verdict


def test_a_part_that_is_recited_shows(run: Path, test_data: Path) -> None:
    text = (test_data / "the-verdict.txt").read_text()
    said(run, text[:3000] + trained_on(run)[5000:8500])
    assert originality(run, from_log=True).verdict.startswith("It recites in part: ")


def test_the_model_writes_where_no_log_is_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.infer.originality.SAMPLES", 3)
    monkeypatch.setattr("hornbook.infer.originality.TOKENS", 40)
    found = originality(run)
    assert found.samples == 3
    assert found.of_held_out.sequences > 50


def test_a_model_without_its_run_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="not a run, whose training text is known"):
        originality(RunFolder(run).checkpoints()[0])
    RunFolder(run).samples.write_text("")
    with pytest.raises(UserError, match="holds no samples; leave --log out"):
        originality(run, from_log=True)
