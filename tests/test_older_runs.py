"""What an earlier version wrote is still good: tests/data/ holds two runs, one of each preset, as they stood when they
were killed in step 20 of 30, with the metrics of the steps that followed. Nothing in there is ever made anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import hornbook
from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.report.verify import verify
from hornbook.runs.folder import FORMAT
from hornbook.runs.logs import read_log
from hornbook.train.start import resume

WRITTEN_AT = "bb91b46"
SAID = {"modern": "r and and and and an", "classic": "aaaaaaaaaaaaaaaaaaaa"}


@pytest.fixture(params=SAID)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / "then"
    shutil.copytree(Path(__file__).parent / "data" / WRITTEN_AT, place)
    record = json.loads((place / request.param / "run.json").read_text())
    record["data"]["folder"] = str(place / "shards")
    (place / request.param / "run.json").write_text(json.dumps(record))
    return place / request.param


@pytest.mark.parametrize("shards", ["there", "gone"])
def test_goes_on_as_it_would_have(run: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    then = [each for each in read_log(run / "metrics.jsonl") if each["step"] > 20]
    monkeypatch.chdir(run.parent)  # where its text lies
    if shards == "gone":
        shutil.rmtree(run.parent / "shards")
    assert resume(run).step == 30
    now = [each for each in read_log(run / "metrics.jsonl") if each["step"] > 20]
    # On other processors sums differ in their last digits; Muon has made its matrices orthogonal in other steps since.
    near = {"modern": 2e-3, "classic": 1e-4}[run.name]
    for name in ("loss", "val_loss"):
        expected = [each[name] for each in then if name in each]
        assert [each[name] for each in now if name in each] == pytest.approx(expected, rel=near)
        assert expected


def test_speaks_and_is_whole(run: Path) -> None:
    assert hornbook.load(run).generate("The", max_tokens=20, temperature=0.0) == SAID[run.name]
    assert set(verify(run).values()) == {None}


def test_its_numbers_are_read_beside_those_of_today(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    resume(run)
    opened = hornbook.open_run(run)
    steps = [each for each in opened.metrics() if "loss" in each]
    assert [each["step"] for each in steps if each["grad_norm"] > 0] == list(range(1, 31))
    assert ["matrix_lr" in each for each in steps] == [each["step"] > 20 for each in steps]
    curves = opened.curves()
    assert curves.drops == []
    assert [step for step, _ in curves.grad_norms] == list(range(1, 31))
    assert [step for step, _ in curves.rates["lr"]] == list(range(21, 31))


def test_leaves_for_other_programs(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "model.gguf")]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=13, do_sample=False)
    assert tokenizer.decode(ids[0, 3:]) == SAID[run.name][:13]


def test_a_run_of_a_later_version_asks_for_it(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match=r"run\.json: written by a newer Hornbook"):
        resume(run)


def test_a_knob_that_is_gone_ends_no_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "run.json").read_text())
    record["config"]["optim"]["lookahead"] = 5
    (run / "run.json").write_text(json.dumps(record))
    assert resume(run).step == 30
    assert "optim.lookahead is no setting any more" in capsys.readouterr().err
