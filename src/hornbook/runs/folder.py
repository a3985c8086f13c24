"""The folder of a run, known in one place.

runs/NAME/
    run.json                     what was asked for, of which data, on which machine; with a hash of itself
    metrics.jsonl                a line a step and a line an evaluation
    samples.jsonl                what the model said on its way
    answers.json                 what each model that is kept says to the same prompts (answers.py)
    checkpoints/step-00001000/   model folders with what training needs to go on, the newest and the best
    best/step-00000840/          the model folder of the best evaluation, where no checkpoint was due in its step
    snapshots/step-00000512/     model folders of half precision, for looking back

In: a path.  Out: these, and of a name where a model is meant the model folder. Nothing here writes but the record.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from hornbook.base import files, ours
from hornbook.base.console import command, say, warn
from hornbook.base.errors import UserError
from hornbook.base.settings import nearest
from hornbook.base.stored import stored
from hornbook.model.config import CONFIG, WEIGHTS, ModelConfig

RECORD = "run.json"
# Of run.json. One without a number is of the first.
FORMAT = 1
METRICS, SAMPLES, ANSWERS = "metrics.jsonl", "samples.jsonl", "answers.json"
CHECKPOINTS, BEST, SNAPSHOTS = "checkpoints", "best", "snapshots"
# Beside the model in a checkpoint.
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
OPTIMIZERS = "optimizer*.safetensors"  # in parts, where several processes wrote it
OPTIMIZER_KNOBS = "optimizer.json"  # beside the optimizer of a model that was imported
MOST_STEPS_NAMED = 10
USUAL = Path("runs")


@dataclass(frozen=True)
class Record:
    """What run.json says."""

    config: dict[str, Any]
    shards: Path
    fingerprint: str
    """Of the shards."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    more: dict[str, Any] = field(default_factory=dict)
    edited: bool | None = False
    """Since it was written; None where it cannot tell."""

    def with_(self, **more: Any) -> Self:
        return replace(self, more=self.more | more)

    def as_dict(self) -> dict[str, Any]:
        data = {"folder": str(self.shards.resolve()), "fingerprint": self.fingerprint}
        known = {"format": FORMAT, "run_id": self.run_id, "created": self.created, "config": self.config, "data": data}
        return known | self.more


@dataclass(frozen=True)
class RunFolder:
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def record_file(self) -> Path:
        return self.path / RECORD

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def samples(self) -> Path:
        return self.path / SAMPLES

    @property
    def answers(self) -> Path:
        return self.path / ANSWERS

    def has_record(self) -> bool:
        return self.record_file.is_file()

    def is_ours(self) -> bool:
        """Whether Hornbook wrote the record that lies here."""
        try:
            self.record()
        except UserError:
            return False
        return True

    def record(self) -> Record:
        value = files.read_json(self.record_file)
        if isinstance(written := value.get("format", 1), int) and written > FORMAT:
            raise UserError(f"{self.record_file}: written by a newer Hornbook (format {written}); upgrade this one")
        try:
            more = {name: each for name, each in value.items() if name not in KNOWN}
            return Record(
                config=dict(value["config"]),
                shards=self._where_shards_are(value["data"]),
                fingerprint=str(value["data"]["fingerprint"]),
                run_id=str(value["run_id"]),
                created=str(value.get("created", "")),
                more=more,
                edited=not ours.is_unchanged(value) if "sha256" in value else None,
            )
        except (KeyError, TypeError, ValueError, OSError):  # the last of a path that no disk takes
            raise UserError(f"{self.record_file}: damaged; train again into another --out") from None

    def _where_shards_are(self, data: dict[str, Any]) -> Path:
        """Where they were, or as far from here as they were then: somebody may have moved all of it together."""
        there, from_here = Path(data["folder"]), self.path / data.get("from_run", "nowhere")
        return from_here.resolve() if from_here.is_dir() and not there.is_dir() else there

    def write(self, record: Record) -> None:
        value = record.as_dict()
        with contextlib.suppress(ValueError):  # on another of Windows' drives
            value["data"]["from_run"] = os.path.relpath(record.shards.resolve(), self.path.resolve())
        files.write_json(self.record_file, ours.with_own_hash(value))

    def model(self) -> ModelConfig:
        """What the run trains, which it knows before its first checkpoint."""
        record = self.record()
        if not isinstance(model := record.config.get("model"), dict):
            raise UserError(f"{self.record_file}: damaged; it does not say which model the run trains")
        return stored(ModelConfig, model, self.record_file)

    def checkpoint(self, step: int) -> Path:
        return self.path / CHECKPOINTS / f"step-{step:08}"

    def best_model(self, step: int) -> Path:
        return self.path / BEST / f"step-{step:08}"

    def snapshot(self, step: int) -> Path:
        return self.path / SNAPSHOTS / f"step-{step:08}"

    def checkpoints(self) -> list[Path]:
        """Those that are finished, newest first."""
        return _folders_of_steps(self.path / CHECKPOINTS)

    def best_models(self) -> list[Path]:
        """The best weights so far, where no checkpoint holds them; while they are replaced, two."""
        return _folders_of_steps(self.path / BEST)

    def snapshots(self) -> list[Path]:
        """The weights of earlier steps, newest first."""
        return _folders_of_steps(self.path / SNAPSHOTS)

    def kept(self) -> list[Path]:
        """All of these, newest first; where a step has several, its checkpoint first, its snapshot last."""
        return sorted([*self.checkpoints(), *self.best_models(), *self.snapshots()], key=step_of, reverse=True)

    def first_good(self, candidates: Iterable[Path], wrong_with: Callable[[Path], str | None] | None = None) -> Path:
        """The first of these that nothing is wrong with; each before it is named in one line, and so is what lies in
        it and is not ours."""
        folder = None
        for folder in candidates:
            wrong = (wrong_with or files.damage)(folder)
            if wrong is None:
                files.name_strangers(folder)
                return folder
            warn(f"{folder}: {wrong}; taking the next one")
        if folder is not None:
            raise UserError(f"{self}: every checkpoint is damaged; train again into another --out")
        begin = command("train", "--out", self.path)
        raise UserError(f"{self}: has no checkpoint yet; begin it anew: {begin}")

    def refuse_taken(self) -> None:
        """A new run goes where no run is, nor anything of somebody else's."""
        if self.checkpoints():
            go_on = command("resume", self.path)
            raise UserError(f"{self}: holds a run already; choose another --out, or go on with it: {go_on}")
        if (name := self.stranger()) is not None:
            raise UserError(
                f"{self.path / name}: not known to be written by Hornbook; choose another --out, or move it away"
            )

    def stranger(self) -> str | None:
        """What stands where a new run would write, and is of no run that ended before its first checkpoint."""
        known = self.is_ours()
        for path in (self.record_file, self.metrics, self.samples):
            if path.is_symlink() or (path.exists() and not known):
                return path.name
        if known:
            return None
        return next(
            (each for each in (CHECKPOINTS, BEST, SNAPSHOTS) if ours.in_the_way(self.path / each) is not None), None
        )


KNOWN = {"format", "run_id", "created", "config", "data", "sha256"}


def free_folder(name: str, parent: Path) -> Path:
    """Where a run goes that was given no --out: NAME in `parent`, or NAME-2 and so on where there is a run already."""
    folder, number = RunFolder(parent / name), 1
    while folder.checkpoints() or folder.stranger():
        taken, number = folder, number + 1
        folder = RunFolder(parent / f"{name}-{number}")
    if number > 1:
        mend = f"to go on with it: {command('resume', taken.path)}" if taken.checkpoints() else "none of Hornbook's"
        say(f"{taken} is there already ({mend}); this is a new run, {folder}")
    return folder.path


def did_you_mean(path: Path) -> str:
    """The end of a line that says of a path that no run is there: which run was meant, by its bare name or misspelt."""
    parents = [parent for parent in (path.parent, USUAL) if parent.is_dir()]
    there = [each for parent in parents for each in sorted(parent.iterdir()) if RunFolder(each).has_record()]
    by_name = {each.name: each for each in reversed(there)}
    near = path.name if path.name in by_name else nearest(path.name, list(by_name))
    return f"; did you mean {by_name[near]}?" if near else ""


def resolve(path: Path, at: str = "best") -> Path:
    """The model folder that is meant: `path` itself, or of a run the best checkpoint, or the newest, or that of a
    step, be it a checkpoint or a snapshot."""
    if not path.exists():
        raise UserError(f"{path}: no such model or run" + (did_you_mean(path) or "; hornbook train makes one"))
    if (path / CONFIG).is_file():
        return path
    run = RunFolder(path)
    if not run.has_record():
        raise UserError(f"{path}: neither a model (no {CONFIG}) nor a run (no {RECORD})")
    candidates = run.kept()
    if at == "best":
        candidates = [*sorted([*run.checkpoints(), *run.best_models()], key=_validation_loss), *run.snapshots()]
    elif at != "newest":
        candidates = [each for each in candidates if each.name.removeprefix("step-").lstrip("0") == at.lstrip("0")]
        if not candidates:
            steps = [str(step) for step in sorted({step_of(each) for each in run.kept()})] or ["none"]
            if len(steps) > MOST_STEPS_NAMED:
                steps[MOST_STEPS_NAMED // 2 : -MOST_STEPS_NAMED // 2] = ["..."]
            raise UserError(f"{path}: no checkpoint of step {at}; kept are {', '.join(steps)}, and best and newest")
    return run.first_good(candidates, lambda each: damage_of_model(each) or strangeness(each))


def strangeness(folder: Path, run_id: str | None = None) -> str | None:
    """What else lies under the name of a step of a run, whole though it is."""
    notes = files.manifest_notes(folder)
    if run_id is not None and notes.get("run_id") != run_id:
        return "belongs to another run"
    if notes.get("step") != step_of(folder):
        return f"holds step {notes.get('step')}"
    if folder.parent.name == CHECKPOINTS and not (folder / STATE).is_file():
        return f"has no {STATE}: it is no checkpoint"
    if folder.parent.name == BEST and "val_loss" not in notes:
        return "is a snapshot"
    if folder.parent.name == SNAPSHOTS and "val_loss" in notes:
        return "is no snapshot"  # which may have its weights in fewer bits
    return None


def damage_of_model(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint for those who will not train on: its moments, two thirds of it, are not read."""
    return files.damage(checkpoint, unread={each.name for each in checkpoint.glob(OPTIMIZERS)})


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _folders_of_steps(folder: Path) -> list[Path]:
    found = [each for each in folder.glob("step-*") if each.name.removeprefix("step-").isdigit() and _is_of_ours(each)]
    return sorted(found, key=step_of, reverse=True)


def _is_of_ours(folder: Path) -> bool:
    """Not what somebody had put into a checkpoint and stayed when that was let go of."""
    return not folder.is_dir() or any((folder / name).exists() for name in (files.MANIFEST, CONFIG, WEIGHTS))


def _validation_loss(checkpoint: Path) -> float:
    try:
        loss = float(files.manifest_notes(checkpoint)["val_loss"])
    except (UserError, KeyError, ValueError, TypeError):
        return math.inf
    return math.inf if math.isnan(loss) else loss  # nothing sorts beside a NaN
