"""What other people's dashboards read back, each by its own reader, is what the log says.

TensorBoard's comes with the test extra; the others are large, and are tried where they are installed.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from hornbook.base.errors import MachineError, UserError
from hornbook.cli import main
from hornbook.report import dashboards
from hornbook.report.dashboards import DASHBOARDS, Dashboard, Line, Shown, Take
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import read_log
from hornbook.train import loop
from hornbook.train.config import RunConfig, TrainConfig
from hornbook.train.start import fit, resume

Numbers = dict[tuple[str, int], float]


def read_tensorboard(run: Path) -> Numbers:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    there = EventAccumulator(str(run / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    found = [(tag, each) for tag in there.Tags()["scalars"] for each in there.Scalars(tag)]
    numbers = {(tag, each.step): each.value for tag, each in found}
    assert len(numbers) == len(found)
    return numbers


def records_of_wandb(data: bytes) -> Iterator[bytes]:
    """What lies in its file: after a head of 7 bytes LevelDB's log format, blocks of 32 KiB in which a record stands
    whole (1), or as its first (2), middle (3) and last piece (4), each after a checksum, its length and that kind."""
    assert data[:4] == b":W&B"
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_wandb(run: Path) -> Numbers:
    """The files that `wandb sync` sends, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    numbers: Numbers = {}
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {each.name for each in files} == {f"run-{RunFolder(run).record().run_id}.wandb"}
    for file in files:
        for data in records_of_wandb(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            row = {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in record.history.item}
            step = record.history.step.num
            numbers |= {(name, step): value for name, value in row.items() if not name.startswith("_")}
    return numbers


def read_mlflow(run: Path) -> Numbers:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("hornbook")
    assert experiment is not None
    (there,) = client.search_runs([experiment.experiment_id])
    assert there.data.params["train.batch_tokens"] == "256"
    found = [each for name in there.data.metrics for each in client.get_metric_history(there.info.run_id, name)]
    numbers = {(each.key, each.step): each.value for each in found}
    assert len(numbers) == len(found)
    return numbers


def read_trackio(run: Path) -> Numbers:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"{run.name}-{RunFolder(run).record().run_id[:8]}"
    rows = SQLiteStorage.get_logs("hornbook", name)
    found = [
        ((each, row["step"]), value) for row in rows for each, value in row.items() if each not in ("step", "timestamp")
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


READERS: dict[str, Callable[[Path], Numbers]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


def logged(run: Path, name: str) -> Numbers:
    """An evaluation, and the last score, say some things again of their step; the first one counts."""
    numbers, newest = dict[tuple[str, int], float](), 0
    for entry in read_log(run / "metrics.jsonl"):
        newest = max(newest, entry["step"])
        rows = {name: value for name, value in entry.items() if isinstance(value, list)}
        each = {f"{name}/{place}": value for name, row in rows.items() for place, value in enumerate(row)}
        told = {name: value for name, value in entry.items() if name not in ("step", *rows)} | each
        said = {(name, newest): value for name, value in told.items() if value is not None}
        numbers = said | numbers
    return {at: float(np.float32(value)) for at, value in numbers.items()} if name == "tensorboard" else numbers


class Killed(BaseException):
    pass


def killed_in_step_six(config: RunConfig, run: Path) -> None:
    """Of whose step 3 there is a checkpoint."""
    factor = loop.lr_factor

    def kill(*words: Any) -> float:
        if words[1] == 5:
            while not RunFolder(run).checkpoint(3).is_dir():
                time.sleep(0.001)
            raise Killed
        return factor(*words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "lr_factor", kill)
        with pytest.raises(Killed):
            fit(config, run)


@pytest.fixture
def config(tiny: Callable[..., RunConfig]) -> RunConfig:
    return tiny(train={"save_every_steps": 3, "eval_every_steps": 3, "steps": 6})


@pytest.fixture(params=list(READERS))
def read(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Numbers]:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.getbasetemp() / "trackio"))  # read once, at its import
    pytest.importorskip(request.param)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")  # whoever is logged in stays out of it
    return READERS[request.param]


def test_what_is_read_back_is_the_log_also_after_a_resume_that_cuts_it_back(
    read: Callable[[Path], Numbers], request: pytest.FixtureRequest, config: RunConfig, tmp_path: Path
) -> None:
    """After the kill it has steps 4 and 5, of which the resume knows nothing, and takes them at another rate."""
    name = request.node.callspec.params["read"]
    run, knobs = tmp_path / "run", {"dashboards": (name,)}
    killed_in_step_six(config.with_(train=knobs), run)
    assert read(run) == logged(run, name)
    assert ("loss", 5) in read(run)
    before = logged(run, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "lr_factor", lambda *_: 0.25)
        resume(run)
    assert read(run) == logged(run, name)
    assert before["lr", 5] != logged(run, name)["lr", 5]
    assert ("val_loss", 6) in read(run)


def test_the_last_score_of_the_best_model_stands_at_the_end(
    read: Callable[[Path], Numbers], request: pytest.FixtureRequest, config: RunConfig, tmp_path: Path
) -> None:
    """It is about an earlier step. Sent afterwards, all at once; and once more, which changes nothing."""
    name, run = request.node.callspec.params["read"], tmp_path / "run"
    fit(config, run)
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "final_val_loss": 5.25, "loss": null, "left_out": true}\n')
    for _ in range(2):
        assert main(["report", str(run), "--to", name]) == 0
        assert read(run) == logged(run, name)
        assert read(run)["final_val_loss", 6] == 5.25
        time.sleep(1.1)  # two of TensorBoard's files in one second are read in any order


@contextlib.contextmanager
def cannot_open(run: Shown) -> Iterator[Take]:
    raise ConnectionError("no network\nat all")
    yield


@contextlib.contextmanager
def cannot_take(run: Shown) -> Iterator[Take]:
    def take(lines: Sequence[Line]) -> None:
        raise SystemExit(3)

    yield take


@contextlib.contextmanager
def cannot_close(run: Shown) -> Iterator[Take]:
    yield lambda _: None
    raise RuntimeError("no answer")


@pytest.mark.parametrize("broken", [cannot_open, cannot_take, cannot_close])
def test_a_dashboard_that_fails_is_told_in_one_line_and_costs_nothing(
    broken: Any, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DASHBOARDS, "wandb", Dashboard(broken, takes_back=True))
    monkeypatch.setattr(dashboards, "refuse_absent", lambda _: None)
    monkeypatch.setattr("hornbook.train.start.refuse_absent", lambda _: None)
    fit(config, tmp_path / "peace")
    capsys.readouterr()
    assert fit(config.with_(train={"dashboards": ("wandb",)}), tmp_path / "run").reason == "done"
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert told.startswith("warning: wandb: ")
    assert told.endswith("; the run goes on without it")
    told, untold = (read_log(tmp_path / each / "metrics.jsonl") for each in ("run", "peace"))
    assert [each.get("loss") for each in told] == [each.get("loss") for each in untold]
    with pytest.raises(MachineError, match="wandb: ") if broken is not cannot_take else pytest.raises(SystemExit):
        dashboards.send(RunFolder(tmp_path / "run"), "wandb")


def test_one_that_never_answers_is_left(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = dashboards.threading.Event()

    @contextlib.contextmanager
    def waits(run: Shown) -> Iterator[Take]:
        yield lambda _: never.wait()

    monkeypatch.setitem(DASHBOARDS, "wandb", Dashboard(waits, takes_back=True))
    monkeypatch.setattr("hornbook.train.start.refuse_absent", lambda _: None)
    monkeypatch.setattr(dashboards, "WAITS_AT_MOST_SECONDS", 0.01)
    try:
        assert fit(config.with_(train={"dashboards": ("wandb",)}), tmp_path / "run").reason == "done"
    finally:
        never.set()
    assert "wandb: is still at work after" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(DASHBOARDS))
def test_one_that_is_not_installed_is_told_before_any_work(
    name: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"{name}: is not installed; pip install {name}, or go without it"):
        fit(config.with_(train={"dashboards": (name,)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_knob_and_the_tests_know_every_dashboard() -> None:
    (names,) = {get_args(each) for each in get_args(TrainConfig.model_fields["dashboards"].annotation)} - {()}
    assert set(names) == DASHBOARDS.keys() == READERS.keys()
