"""A run's numbers on other people's dashboards. Each is an extra, and nothing needs one.

In: a run's log.  Out: its numbers in TensorBoard, Weights & Biases, MLflow or trackio.
A dashboard is one entry in DASHBOARDS: a function that opens it, and gives back what takes lines of the log. A thread
of its own follows the log for each, so that a dashboard is told what the log says and nothing else, and training waits
for none; one that fails is told in one line, and left. A run that is resumed has its log cut back, and so are
dashboards, or they get the whole history anew.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from hornbook.base.console import warn
from hornbook.base.errors import MachineError, UserError, one_line
from hornbook.base.files import make_folder
from hornbook.base.settings import flat
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import Following

LOOKS_EVERY_SECONDS = 1.0
# At the end of a run, for what is still under way to a server.
WAITS_AT_MOST_SECONDS = 60.0
LONGEST_SETTING = 500
PROJECT = "hornbook"


class Line(NamedTuple):
    """Of the log, as dashboards take it: steps never fall, and none has a number twice."""

    step: int
    time: float
    """In seconds since 1970."""
    numbers: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """The run that a dashboard shows."""

    folder: Path
    run_id: str
    began: float
    settings: dict[str, str]
    """By dotted names."""
    holds_before: int = 0
    """What is known of steps before this one still holds, nothing else does."""


Take = Callable[[Sequence[Line]], None]


@contextlib.contextmanager
def tensorboard(run: Shown) -> Iterator[Take]:
    """`tensorboard --logdir runs`. It keeps 32 bits of a number. It is told from which step on to forget what earlier
    files say."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(make_folder(run.folder / "tensorboard")), purge_step=run.holds_before)

    def take(lines: Sequence[Line]) -> None:
        for line in lines:
            for name, number in line.numbers.items():
                writer.add_scalar(name, number, line.step, line.time)
        writer.flush()

    with contextlib.closing(writer):
        yield take


@contextlib.contextmanager
def wandb(run: Shown) -> Iterator[Take]:
    """On the server of whoever is logged in; else below the run's folder, for `wandb sync`. It goes on under the same
    id: what comes again of a step takes the place of what was there."""
    import wandb

    offline = "WANDB_MODE" not in os.environ and not wandb.api.api_key
    there = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run.run_id,
        name=run.folder.name,
        dir=make_folder(run.folder),
        config=dict(run.settings),
        resume="allow",
        mode="offline" if offline else None,
        settings=wandb.Settings(console="off", silent=True),
    )

    def take(lines: Sequence[Line]) -> None:
        for line in lines:
            there.log(line.numbers, step=line.step)

    try:
        yield take
    finally:
        there.finish()


@contextlib.contextmanager
def mlflow(run: Shown) -> Iterator[Take]:
    """At MLFLOW_TRACKING_URI, or beside the run: `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`. It cannot
    take back what it was told, so that a resume takes the place of the run before."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    beside = make_folder(run.folder.parent).resolve() / "mlflow.db"
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside}")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known is not None else client.create_experiment(name)
    for old in client.search_runs([experiment], f"tags.hornbook_run = '{run.run_id}'"):
        client.delete_run(old.info.run_id)
    tags = {"hornbook_run": run.run_id}
    there = client.create_run(experiment, round(run.began * 1000), tags, run.folder.name).info.run_id
    for each in _pieces([Param(key, value) for key, value in run.settings.items()], 100):
        client.log_batch(there, params=each)

    def take(lines: Sequence[Line]) -> None:
        found = [
            Metric(name, number, round(line.time * 1000), line.step)
            for line in lines
            for name, number in line.numbers.items()
        ]
        for each in _pieces(found, 1000):  # more it does not take at once
            client.log_batch(there, metrics=each)

    yield take
    client.set_terminated(there)


@contextlib.contextmanager
def trackio(run: Shown) -> Iterator[Take]:
    """`trackio show --project hornbook`. As MLflow, it gets the history anew."""
    import trackio

    name = f"{run.folder.name}-{run.run_id[:8]}"
    with contextlib.suppress(ValueError):  # no such project yet
        for old in [each for each in trackio.Api().runs(PROJECT) if each.name == name]:
            old.delete()
    quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    there = trackio.init(PROJECT, name, config=dict(run.settings), **quiet)

    def take(lines: Sequence[Line]) -> None:
        for line in lines:
            there.log(line.numbers, step=line.step)

    try:
        yield take
    finally:
        there.finish()


def _pieces(things: list[Any], size: int) -> Iterator[list[Any]]:
    return (things[begin : begin + size] for begin in range(0, len(things), size))


@dataclass(frozen=True)
class Dashboard:
    open: Callable[[Shown], AbstractContextManager[Take]]
    takes_back: bool
    """Whether it can forget what was told of steps from one on."""


DASHBOARDS = {
    "tensorboard": Dashboard(tensorboard, takes_back=True),
    "wandb": Dashboard(wandb, takes_back=True),
    "mlflow": Dashboard(mlflow, takes_back=False),
    "trackio": Dashboard(trackio, takes_back=False),
}


def refuse_absent(names: Sequence[str]) -> None:
    """Tell before any work is done what is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"dashboard {name}: is not installed; pip install {name}, or go without it (--train.dashboards none)"
            )


@contextlib.contextmanager
def shown_on(names: Sequence[str], folder: RunFolder, holds_before: int) -> Iterator[None]:
    """While this lasts, dashboards are told what comes to a run's log."""
    ended = threading.Event()
    run = _shown(folder, holds_before)
    threads = [threading.Thread(target=_follow, args=(name, run, folder, ended), daemon=True) for name in names]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        ended.set()
        for name, each in zip(names, threads, strict=True):
            each.join(WAITS_AT_MOST_SECONDS)
            if each.is_alive():
                warn(f"{name}: is still at work after {WAITS_AT_MOST_SECONDS:.0f} s, and is left")


def send(folder: RunFolder, name: str) -> None:
    """All of a run's log to a dashboard, at once."""
    refuse_absent([name])
    try:
        with DASHBOARDS[name].open(_shown(folder, 0)) as take:
            take(_Lines(folder, _shown(folder, 0)).more())
    except Exception as error:
        raise MachineError(f"{name}: {_why(error)}") from error


def _follow(name: str, run: Shown, folder: RunFolder, ended: threading.Event) -> None:
    dashboard, lines = DASHBOARDS[name], _Lines(folder, run)
    first = run.holds_before if dashboard.takes_back else 0
    try:
        with dashboard.open(run) as take:
            at_the_end = False
            while not at_the_end:
                at_the_end = ended.wait(LOOKS_EVERY_SECONDS)
                take([each for each in lines.more() if each.step >= first])
    except BaseException as error:  # whatever it is, it must not cost the run
        warn(f"{name}: {_why(error)}; the run goes on without it")


def _why(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")[:150]


class _Lines:
    """The log of a run, line by line. What an evaluation says again of its step, its tokens and its time, stands as it
    was said first; the last score of the best model, which is about an earlier step, stands at the end."""

    def __init__(self, folder: RunFolder, run: Shown) -> None:
        self._log, self._began = Following(folder.metrics), run.began
        self._step, self._time, self._said = 0, run.began, set[str]()

    def more(self) -> list[Line]:
        return [self._line(entry) for entry in self._log.more()[1]]

    def _line(self, entry: dict[str, Any]) -> Line:
        if entry["step"] > self._step:
            self._step, self._said = entry["step"], set()
        if "seconds" in entry:
            self._time = self._began + entry["seconds"]
        numbers = {name: value for name, value in _numbers(entry) if name != "step" and name not in self._said}
        self._said |= numbers.keys()
        return Line(self._step, self._time, numbers)


def _numbers(entry: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Of a row of numbers, as there is one for the layers, each under its place: `layers/0`."""
    for name, value in entry.items():
        for place, each in enumerate(value) if isinstance(value, list) else [("", value)]:
            if isinstance(each, bool | int | float):
                yield f"{name}/{place}" if isinstance(value, list) else name, float(each)


def _shown(folder: RunFolder, holds_before: int) -> Shown:
    record = folder.record()
    try:
        began = datetime.strptime(record.created, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        began = folder.record_file.stat().st_mtime
    settings = {name: str(value)[:LONGEST_SETTING] for name, value in flat(record.config).items()}
    return Shown(folder.path, record.run_id, began, settings, holds_before)
