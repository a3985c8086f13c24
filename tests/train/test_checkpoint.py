"""A run's state survives what a disk and a kill can do to it.

A crash is played in process: from one operation on, nothing reaches the disk any more. test_resume.py kills real
processes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from harm import HARMS, flip_a_bit
from trial import all_of, exact, good_checkpoints, knob_words, learned, leftovers, metrics, settle, snapshots, tiniest

from effort import long, tries
from hornbook.base import files, ours
from hornbook.base.errors import MachineError, UserError
from hornbook.cli import main
from hornbook.report.verify import verify
from hornbook.runs.folder import RunFolder, resolve, step_of
from hornbook.shards.prepare import open_or_prepare
from hornbook.train.checkpoint import has_snapshot
from hornbook.train.config import RunConfig, ScheduleConfig
from hornbook.train.schedule import lr_factor
from hornbook.train.start import fit, resume

TAKES_NO_ROOM = ("unlink", "rmtree", "rename")


every_so_many = pytest.mark.parametrize("every", [7, pytest.param(1, marks=long)])


class Killed(BaseException):
    """Not an Exception: nothing may catch it and carry on."""


# Of an operation: whether it is the loop's or of the thread beside it, and its number among those.
Operation = tuple[bool, int]


class Disk:
    """Stands in for files._step: counts operations, and from the one called `last` on, is dead."""

    def __init__(
        self, last: Operation | None = None, half: bool = False, after_each: Callable[[], None] | None = None
    ) -> None:
        self.kinds: dict[bool, list[str]] = {True: [], False: []}
        self._last = last
        self._half = half
        self._after_each = after_each
        self._dead = False
        self._loop, self._one_at_a_time = threading.current_thread(), threading.RLock()

    def __call__(self, kind: str, path: Path, act: Callable[[], Any]) -> Any:
        with self._one_at_a_time:
            of_loop = threading.current_thread() is self._loop
            operation = (of_loop, len(self.kinds[of_loop]))
            self.kinds[of_loop].append(kind)
            if not self._dead and operation == self._last:
                self._dead = True
                if self._half:
                    for file in sorted(path.rglob("*"))[:3]:
                        file.unlink()
            if self._dead:
                raise Killed
            result = act()
            if self._after_each is not None:
                self._after_each()
            return result

    def operations(self) -> list[tuple[Operation, str]]:
        return [((of_loop, number), kind) for of_loop, kinds in self.kinds.items() for number, kind in enumerate(kinds)]


def kill_and_go_on(config: RunConfig, run: Path, disk: Callable[[Any], Any], deadly: Disk) -> None:
    disk(deadly)
    with pytest.raises(Killed):
        fit(config, run)
    disk(Disk())
    if RunFolder(run).checkpoints():
        resume(run)
    else:
        fit(config, run)


def chosen(whole: Disk, every: int) -> list[Operation]:
    """Its removals, and so many of the other operations."""
    return [each for each, kind in whole.operations() if kind in ("unlink", "rmtree") or each[1] % every == 0]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Puts a Disk in place, or takes another's."""

    def put(step: Any) -> Any:
        settle()
        monkeypatch.setattr(files, "_step", step)
        return step

    return put


def wait_for(run: Path, step: int) -> None:
    """Until the checkpoint of a step, which is written beside training, is there."""
    while not RunFolder(run).checkpoint(step).is_dir():
        time.sleep(0.001)


@pytest.fixture(scope="session")
def in_peace(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    run = tmp_path_factory.mktemp("peace") / "run"
    fit(tiniest(short_text), run)
    return run


def killed_in_step_four(config: RunConfig, run: Path) -> Path:
    """Of whose steps 2 and 3 there are checkpoints."""

    def kill_in_step_four(config: ScheduleConfig, step: int, *share: Any) -> float:
        if step == 3:
            wait_for(run, step)
            raise Killed
        return lr_factor(config, step, *share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hornbook.train.loop.lr_factor", kill_in_step_four)
        with pytest.raises(Killed):
            fit(config, run)
    settle()
    assert good_checkpoints(run) == [3, 2]
    return run


@pytest.fixture(scope="session")
def killed(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed in step 4."""
    return killed_in_step_four(tiniest(short_text), tmp_path_factory.mktemp("killed") / "run")


@pytest.fixture
def half_way(killed: Path, tmp_path: Path) -> Path:
    """It, for a test to do with as it likes."""
    return shutil.copytree(killed, tmp_path / "run")


def test_a_run_that_was_copied_away_and_one_that_was_renamed_go_on(half_way: Path, in_peace: Path) -> None:
    copy = shutil.copytree(half_way, half_way.parent / "away" / "copy")
    renamed = half_way.rename(half_way.with_name("renamed"))
    for run in (copy, renamed):
        resume(run)
        assert all_of(run) == all_of(in_peace)
        assert set(verify(run).values()) == {None}


def test_a_run_that_was_moved_together_with_its_shards_goes_on(in_peace: Path, tmp_path: Path) -> None:
    here, away = tmp_path / "here", tmp_path / "away"
    shards = shutil.copytree(RunFolder(in_peace).record().shards, here / "shards")
    fit(tiniest(shards), here / "peace")
    killed_in_step_four(tiniest(shards), here / "runs" / "run")
    here.rename(away)
    resume(away / "runs" / "run")
    assert all_of(away / "runs" / "run") == all_of(away / "peace")
    assert RunFolder(away / "runs" / "run").record().shards == away / "shards"


@every_so_many
def test_a_kill_before_any_operation_of_a_run_loses_nothing(
    every: int, short_text: Path, tmp_path: Path, disk: Callable[[Any], Any]
) -> None:
    """Two saves, of which the second lets go of the first; removals are also cut in their middle."""
    config = tiniest(short_text, train={"steps": 2, "keep_checkpoints": 1})
    open_or_prepare(config.data, config.tokenizer, config.shards)
    whole = disk(Disk())
    fit(config, tmp_path / "whole")
    removals = [each for each, kind in whole.operations() if kind == "rmtree"]
    assert min(map(len, whole.kinds.values())) > 25
    assert removals
    for last, half in [(each, False) for each in chosen(whole, every)] + [(each, True) for each in removals]:
        run = tmp_path / f"{last}-{half}"
        kill_and_go_on(config, run, disk, Disk(last, half))
        assert all_of(run) == all_of(tmp_path / "whole"), f"killed before operation {last}"
        assert leftovers(run) == []
        shutil.rmtree(run)


@every_so_many
def test_a_kill_before_any_operation_of_a_resume_loses_nothing(
    every: int, half_way: Path, in_peace: Path, tmp_path: Path, disk: Callable[[Any], Any]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(half_way, again)
    whole = disk(Disk())
    resume(again)
    for last in chosen(whole, every):
        run = tmp_path / str(last)
        shutil.copytree(half_way, run)
        disk(Disk(last))
        with pytest.raises(Killed):
            resume(run)
        assert good_checkpoints(run)
        assert not any(files.damage(each) for each in RunFolder(run).snapshots())
        disk(Disk())
        resume(run)
        assert all_of(run) == all_of(in_peace), f"killed before operation {last}"
        shutil.rmtree(run)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_whole_checkpoint_exists_after_every_operation(
    keep: int, short_text: Path, tmp_path: Path, disk: Callable[[Any], Any]
) -> None:
    run, seen = tmp_path / "run", [0]

    def look() -> None:
        good = good_checkpoints(run)
        assert good or seen[-1] == 0
        seen.append(max(good, default=0))

    disk(Disk(after_each=look))
    fit(tiniest(short_text, train={"keep_checkpoints": keep}), run)
    assert seen == sorted(seen)
    assert seen[-1] == 4


def best_models(run: Path) -> dict[str, str]:
    return {each.name: files.sha256(each / "model.safetensors") for each in RunFolder(run).best_models()}


@every_so_many
def test_a_kill_while_the_best_weights_are_written_loses_nothing(
    every: int, short_text: Path, tmp_path: Path, disk: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of the first step, in which nothing is saved, since a learning rate far too high follows it."""
    monkeypatch.setattr("hornbook.train.loop.lr_factor", lambda _config, step, *_: 1.0 if step < 1 else 1000.0)
    knobs = {"steps": 4, "save_every_steps": 2, "eval_every_steps": 1, "keep_checkpoints": 1, "snapshots": False}
    config, peace = tiniest(short_text, train=knobs), tmp_path / "peace"
    below_best: list[Operation] = []

    def look(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        result = whole(kind, path, act)
        if "best" in path.parts and threading.current_thread() is not threading.main_thread():
            below_best.append((False, len(whole.kinds[False]) - 1))
        return result

    whole = Disk()
    disk(look)
    fit(config, peace)
    assert best_models(peace).keys() == {"step-00000001"}
    assert resolve(peace) == RunFolder(peace).best_model(1)
    assert verify(peace)[resolve(peace)] is None
    losses = {each["step"]: each["val_loss"] for each in metrics(peace) if "val_loss" in each}
    assert files.manifest_notes(resolve(peace))["val_loss"] == losses[1] == min(losses.values())
    assert len(below_best) > 10
    for last in sorted({*below_best[::every], *below_best[-2:]}):  # the last ones give it its name
        run = tmp_path / str(last[1])
        kill_and_go_on(config, run, disk, Disk(last))
        assert (all_of(run), best_models(run)) == (all_of(peace), best_models(peace)), f"killed before {last}"
        assert leftovers(run) == []


def contents(place: Path) -> dict[str, bytes]:
    if place.is_file():
        return {"": place.read_bytes()}
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(
    harm: Callable[[Path], None], half_way: Path, in_peace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = half_way / "checkpoints" / "step-00000003"
    harm(newest)
    known, before = ours.listed(newest), contents(newest)
    capsys.readouterr()
    resume(half_way)
    named, *more = capsys.readouterr().err.splitlines()
    assert "step-00000003" in named
    assert all_of(half_way) == all_of(in_peace)
    if known is None:  # nothing proves that it was ours, so that it makes way and is kept
        (told,) = more
        assert told.endswith("; it is kept as step-00000003.set-aside")
        assert contents(newest.with_name("step-00000003.set-aside")) == before
    else:
        assert not more


def test_another_runs_checkpoint_is_named_and_the_own_one_before_taken(
    half_way: Path, in_peace: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiniest(short_text, seed=2, train={"steps": 3}), tmp_path / "other")
    newest = RunFolder(half_way).checkpoints()[0]
    shutil.rmtree(newest)
    shutil.copytree(RunFolder(tmp_path / "other").checkpoints()[0], newest)
    capsys.readouterr()
    resume(half_way)
    assert capsys.readouterr().err.count("step-00000003: belongs to another run") == 1
    assert all_of(half_way) == all_of(in_peace)


def test_where_every_checkpoint_is_damaged_the_command_ends_with_one_line(
    half_way: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in RunFolder(half_way).checkpoints():
        flip_a_bit(folder)
    capsys.readouterr()
    assert main(["resume", str(half_way)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "every checkpoint is damaged" in errors[0]


def test_a_damaged_checkpoint_does_not_push_out_the_good_ones_that_follow(
    short_text: Path, tmp_path: Path, disk: Callable[[Any], Any]
) -> None:
    """It is of a later step than they are, so by number alone it would be the one to keep."""
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"save_every_steps": 2, "eval_every_steps": 100}), run)
    flip_a_bit(run / "checkpoints" / "step-00000004")
    record = json.loads((run / "run.json").read_text())
    record["config"]["train"] |= {"keep_checkpoints": 1, "save_every_steps": 1}
    (run / "run.json").write_text(json.dumps(record))
    disk(Disk(after_each=lambda: pytest.fail("no whole checkpoint") if not good_checkpoints(run) else None))
    resume(run)
    assert 4 in good_checkpoints(run)


def edit_record(run: Path, knob: str, value: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    *path, name = knob.split(".")
    reduce(dict.__getitem__, path, record["config"])[name] = value
    (run / "run.json").write_text(json.dumps(record))


def make_older(run: Path) -> None:
    """As runs were written that told neither a hash of their record nor, in checkpoints, what was learned by."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: record[key] for key in record if key != "sha256"}))
    for folder in RunFolder(run).checkpoints():
        state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", files.MANIFEST))
        del state["settings"]
        (folder / "state.json").write_text(json.dumps(state))
        size, digest = (folder / "state.json").stat().st_size, files.sha256(folder / "state.json")
        manifest["files"]["state.json"] = {"bytes": size, "sha256": digest}
        (folder / files.MANIFEST).write_text(json.dumps(ours.with_own_hash(manifest)))


@pytest.mark.parametrize(
    ("knob", "was", "value"),
    [
        ("seed", 1, 2),
        ("optim.lr", 0.003, 0.004),
        ("optim.kind", "muon", "adamw"),
        ("model.n_embd", 8, 16),
        ("order.kind", "phased", "windows"),
        ("schedule.warmup_steps", 2, 3),
        ("train.batch_tokens", 64, 32),
    ],
)
def test_a_record_that_was_edited_to_learn_otherwise_is_refused_and_told_by_verify(
    knob: str, was: Any, value: Any, half_way: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_record(half_way, knob, value)
    with pytest.raises(UserError, match=rf"made with {knob} {was}, but run\.json says {value}; put run\.json back"):
        resume(half_way)
    assert "run.json: was edited since it was written" in capsys.readouterr().err
    assert verify(half_way)[half_way / "run.json"] == "was edited since it was written"


def test_an_edit_that_changes_nothing_that_is_learned_is_told_and_taken(
    half_way: Path, in_peace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_record(half_way, "train.keep_checkpoints", 1)
    capsys.readouterr()
    resume(half_way)
    assert capsys.readouterr().err.count("run.json: was edited since it was written; taken as it is now") == 1
    assert (good_checkpoints(half_way)[0], len(good_checkpoints(half_way))) == (4, 1)
    assert all_of(half_way) == all_of(in_peace)
    assert set(verify(half_way).values()) == {None}


def test_another_end_of_a_run_is_no_edit(half_way: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    resume(half_way, {"train": {"steps": 5}})
    assert verify(half_way)[half_way / "run.json"] is None
    resume(half_way, {"train": {"steps": 6}})
    assert capsys.readouterr().err == ""
    assert good_checkpoints(half_way)[0] == 6


def test_an_older_run_goes_on_as_it_did(
    half_way: Path, in_peace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_older(half_way)
    assert half_way / "run.json" not in verify(half_way)
    for knob, value, told in (("model.n_embd", 16, "model.n_embd 8"), ("optim.kind", "adamw", "another optimizer")):
        edited = shutil.copytree(half_way, tmp_path / knob)
        edit_record(edited, knob, value)
        with pytest.raises(UserError, match=rf"{told}.*put run\.json back"):
            resume(edited)
    capsys.readouterr()
    resume(half_way)
    assert capsys.readouterr().err == ""
    assert all_of(half_way) == all_of(in_peace)


LITTER = ("._model.safetensors", "Thumbs.db", ".DS_Store", "note.txt", "inner/note.txt", "link")


def strew(folder: Path) -> dict[str, bytes]:
    """Files of a desktop's and of the user's own, where a checkpoint lies; a link leads out of it."""
    (folder / "inner").mkdir()
    (folder.parent / "elsewhere").write_bytes(b"linked")
    (folder / "link").symlink_to("../elsewhere")
    for name in LITTER[:-1]:
        (folder / name).write_bytes(name.encode())
    return {name: (folder / name).read_bytes() for name in LITTER}


def test_files_of_others_in_a_checkpoint_are_named_and_do_no_harm(
    half_way: Path, in_peace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strew(half_way / "checkpoints" / "step-00000003")
    shutil.copy(half_way / "run.json", half_way / "checkpoints" / "step-00000003" / "Icon")
    for command in (["resume", str(half_way)], ["verify", str(half_way)]):
        capsys.readouterr()
        assert main(command) == 0
        (told,) = capsys.readouterr().err.splitlines()
        assert "step-00000003: Hornbook did not write .DS_Store, ._model.safetensors, Icon and 4 more; pass" in told
    assert all_of(half_way) == all_of(in_peace)


def test_files_of_others_stay_when_their_checkpoint_is_let_go_of(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"steps": 3}), run)
    theirs = strew(run / "checkpoints" / "step-00000002")
    capsys.readouterr()
    resume(run, {"train": {"steps": 8}})
    (told,) = capsys.readouterr().err.splitlines()
    assert "step-00000002: deleted, but for what Hornbook did not write: .DS_Store, ._model.safeten" in told
    left = run / "checkpoints" / "step-00000002"
    assert {path.relative_to(left).as_posix() for path in left.rglob("*") if not path.is_dir()} == theirs.keys()
    assert {name: (left / name).read_bytes() for name in theirs} == theirs
    assert 2 not in [step_of(each) for each in RunFolder(run).checkpoints()]
    assert set(verify(run).values()) == {None}
    resume(run, {"train": {"steps": 9}})
    assert capsys.readouterr().err == ""


def resumed_on(disk: Callable[[Any], Any], run: Path, number: int, full_from: int = 10**9, below: str = "run") -> int:
    """How often it writes below a folder, on a disk that takes no more than so much of it."""
    done = 0

    def step(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        nonlocal done
        if kind not in TAKES_NO_ROOM and (below == "run" or below in path.parts):
            done += 1
            if done > full_from:
                raise OSError(number, os.strerror(number))
        return act()

    disk(step)
    resume(run)
    return done


@every_so_many
@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=long)])
def test_a_disk_that_fills_at_any_write_of_a_save_costs_nothing_that_was_saved(
    number: int, every: int, half_way: Path, in_peace: Path, tmp_path: Path, disk: Callable[[Any], Any]
) -> None:
    writes = resumed_on(disk, shutil.copytree(half_way, tmp_path / "whole"), number)
    for full_from in range(0, writes, every):
        run = shutil.copytree(half_way, tmp_path / str(full_from))
        with pytest.raises(MachineError, match="the disk is full" if number == errno.ENOSPC else "the disk fails") as e:
            resumed_on(disk, run, number, full_from)
        assert len(e.value.mistakes) == 1
        assert 3 in good_checkpoints(run) or 4 in good_checkpoints(run)
        assert leftovers(run) == []
        disk(Disk())
        if full_from % 5 == 0:
            resume(run)
            assert all_of(run) == all_of(in_peace)
        shutil.rmtree(run)


@pytest.mark.parametrize("log", ["metrics.jsonl", "samples.jsonl"])
def test_a_line_that_the_disk_does_not_take_once_is_written_after_all(
    log: str, short_text: Path, in_peace: Path, tmp_path: Path, disk: Callable[[Any], Any]
) -> None:
    """The step before it is saved, and what was to follow it, an evaluation or a sample, is done by the resume."""
    lines = len((in_peace / log).read_bytes().splitlines())
    assert lines > 1

    for failing in range(lines):
        run, done = tmp_path / str(failing), itertools.count()

        def step(kind: str, path: Path, act: Callable[[], Any], done: Any = done, failing: int = failing) -> Any:
            if kind == "append" and path.name == log and next(done) == failing:
                os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'{"step": ')
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return act()

        disk(step)
        with pytest.raises(MachineError, match="the disk is full"):
            fit(tiniest(short_text), run)
        disk(Disk())
        assert good_checkpoints(run)
        resume(run)
        assert all_of(run) == all_of(in_peace), f"line {failing}"


@pytest.mark.parametrize("what_fills_it", ["checkpoints", "another program"])
def test_a_disk_that_really_fills_ends_with_one_line(
    what_fills_it: str,
    short_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (it takes root)")

    def fill(config: ScheduleConfig, step: int, *share: Any) -> float:
        if what_fills_it == "another program" and step == 2:
            wait_for(run, step)
            with contextlib.suppress(OSError), open(place / "other", "wb", buffering=0) as other:
                while True:
                    other.write(bytes(4096))
        return lr_factor(config, step, *share)

    try:
        run = place / "run"
        monkeypatch.setattr("hornbook.train.start.check_room", lambda *_: None)
        monkeypatch.setattr("hornbook.train.loop.lr_factor", fill)
        saves = {"save_every_steps": 1 if what_fills_it == "checkpoints" else 2, "eval_every_steps": 1000}
        words = knob_words(tiniest(short_text, train={"steps": 200, "keep_checkpoints": 99} | saves))
        assert main(["train", *words, f"--out={run}"]) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(errors) == 1
        assert "the disk is full; make room" in errors[0]
        assert good_checkpoints(run)
        assert leftovers(run) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("log", ["metrics.jsonl", "samples.jsonl"])
def test_a_log_that_the_disk_does_not_take_ends_with_one_line(
    log: str, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is closed, which tries to write once more."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / log).symlink_to("/dev/full")
    monkeypatch.setattr(RunFolder, "stranger", lambda _: None)  # which a link would be
    with pytest.raises(MachineError, match="the disk is full") as error:
        fit(tiniest(short_text), tmp_path / "run")
    assert len(error.value.mistakes) == 1


def test_too_little_room_is_told_before_the_first_step(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 100_000)
    with pytest.raises(MachineError, match="keep fewer with --train"):
        fit(tiniest(short_text), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    fit(
        tiniest(short_text, train={"keep_checkpoints": 1, "steps": 1}, model={"n_embd": 2, "mlp_width": 2}),
        tmp_path / "run",
    )


@pytest.mark.parametrize("room", ["enough", "too little"])
def test_the_room_asked_for_is_what_checkpoints_really_take(
    room: str, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that are kept, the best one, and the one being written with a better one's weights."""
    config = tiniest(short_text, optim={"kind": "adamw"})
    fit(config, tmp_path / "before")
    newest = resolve(tmp_path / "before", "newest")
    tensors = [safetensors.torch.load_file(newest / f"{each}.safetensors") for each in ("model", "optimizer")]
    model, optimizer = (sum(tensor.nbytes for tensor in each.values()) for each in tensors)
    taken = 4 * (model + optimizer) + model
    monkeypatch.setattr(files, "free_bytes", lambda _: int(taken * (1.05 if room == "enough" else 0.95)))
    with pytest.raises(MachineError, match="make room") if room == "too little" else contextlib.nullcontext():
        fit(config, tmp_path / "run")


def test_the_newest_ones_and_the_best_one_are_kept(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that jumps far too high after two steps makes an early checkpoint the best."""
    run = tmp_path / "run"
    knobs = {"steps": 8, "eval_every_steps": 1, "save_every_steps": 1, "keep_checkpoints": 2}
    monkeypatch.setattr("hornbook.train.loop.lr_factor", lambda _config, step, *_: 1.0 if step < 2 else 1000.0)
    fit(tiniest(short_text, train=knobs), run)
    evaluations = {entry["step"]: entry["val_loss"] for entry in metrics(run) if "val_loss" in entry}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert best < 7
    assert good_checkpoints(run) == [8, 7, best]
    assert resolve(run).name == f"step-{best:08}"
    assert resolve(run, "newest").name == "step-00000008"
    assert resolve(run, "7").name == "step-00000007"


def test_another_machine_is_one_warning_line_each(
    half_way: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = files.read_json(RunFolder(half_way).checkpoints()[0] / "state.json")["machine"]
    monkeypatch.setattr("hornbook.base.machine.Machine.facts", lambda _: facts | {"torch": "9.9", "threads": 64})
    capsys.readouterr()
    resume(half_way)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all("not bit for bit" in line for line in told)


def test_logs_are_cut_back_to_where_the_checkpoint_was(half_way: Path, in_peace: Path) -> None:
    """Lines of steps that were never saved, and half a line, come from a kill in the middle of writing."""
    with open(half_way / "metrics.jsonl", "a") as log:
        log.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    with open(half_way / "samples.jsonl", "a") as log:
        log.write('{"step": 4, "pro')
    resume(half_way)
    assert all_of(half_way) == all_of(in_peace)


def test_snapshots_are_the_weights_of_their_steps_in_half_precision(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"steps": 9, "keep_checkpoints": 99}), run)
    assert [each.name for each in RunFolder(run).snapshots()] == [f"step-0000000{step}" for step in (8, 4, 2, 1)]
    for snapshot in RunFolder(run).snapshots():
        theirs = safetensors.torch.load_file(run / "checkpoints" / snapshot.name / "model.safetensors")
        kept = safetensors.torch.load_file(snapshot / "model.safetensors")
        assert kept.keys() == theirs.keys()
        assert all(torch.equal(kept[name], theirs[name].half()) for name in kept)
        assert json.loads((snapshot / "config.json").read_text())["dtype"] == "float16"
    assert {folder.parent.name for folder, damage in verify(run).items() if damage is None} >= {"snapshots"}
    flip_a_bit(RunFolder(run).snapshots()[0])
    assert verify(run)[RunFolder(run).snapshots()[0]] == "model.safetensors has changed since it was written"


def test_a_run_learns_the_same_with_snapshots_and_without(in_peace: Path, short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"snapshots": False}), run)
    assert snapshots(run) == {}
    assert snapshots(in_peace).keys() == {1, 2, 4}
    assert (exact(metrics(run)), learned(run)) == (exact(metrics(in_peace)), learned(in_peace))


@pytest.mark.parametrize(("parameters", "share"), [(10**6, 2), (10**9, 4)])
def test_snapshots_are_spaced_by_a_factor_and_those_of_large_models_wider(parameters: int, share: int) -> None:
    steps = [step for step in range(1, 5000) if has_snapshot(step, parameters)]
    assert steps[0] == 1
    assert {later / earlier for earlier, later in itertools.pairwise(steps)} == {share}
    assert steps[-1] * share > 5000


@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=long)])
def test_a_disk_that_takes_no_snapshot_stops_nothing(
    number: int, in_peace: Path, half_way: Path, tmp_path: Path, disk: Callable[[Any], Any], capsys: Any
) -> None:
    """At any write of it but the last, which only makes sure of the name, which is there by then."""
    writes = resumed_on(disk, shutil.copytree(half_way, tmp_path / "whole"), number, below="snapshots")
    assert writes > 10
    for full_from in range(0, writes - 1, tries(3, 1)):
        run = shutil.copytree(half_way, tmp_path / str(full_from))
        capsys.readouterr()
        resumed_on(disk, run, number, full_from, "snapshots")
        (told,) = capsys.readouterr().err.splitlines()
        assert f"step-00000004: left out ([Errno {number}]" in told
        assert snapshots(run) == {step: each for step, each in snapshots(in_peace).items() if step < 4}
        assert all_of(run)[:3] == all_of(in_peace)[:3]
        assert leftovers(run) == []
        shutil.rmtree(run)


def test_snapshots_leave_the_checkpoints_their_room(
    half_way: Path, in_peace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two checkpoints are there; of the four that are reckoned with, two may still come."""
    parameters = resolve(half_way).joinpath("model.safetensors").stat().st_size // 4
    free = (4 * 12 + 4) * parameters
    seen = iter([free, 2 * 12 * parameters])
    monkeypatch.setattr(files, "free_bytes", lambda _: next(seen))
    capsys.readouterr()
    resume(half_way)
    (told,) = capsys.readouterr().err.splitlines()
    assert "step-00000004: left out, to keep room on the disk for checkpoints" in told
    assert all_of(half_way)[:3] == all_of(in_peace)[:3]


def test_snapshots_of_steps_that_are_taken_again_are_made_again(half_way: Path, in_peace: Path) -> None:
    """Of a kill after they were written, on a machine that does not repeat itself to the bit; 8 is past the end."""
    for step in (4, 8):
        shutil.copytree(half_way / "snapshots" / "step-00000001", half_way / "snapshots" / f"step-0000000{step}")
    resume(half_way)
    assert all_of(half_way) == all_of(in_peace)


def test_a_run_that_begins_anew_has_none_of_the_snapshots_before(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hornbook.train.loop.save", lambda _: pytest.fail("killed before its first checkpoint"))
        with pytest.raises(pytest.fail.Exception):
            fit(tiniest(short_text, train={"save_every_steps": 3, "eval_every_steps": 3}), tmp_path / "run")
    assert snapshots(tmp_path / "run").keys() == {1, 2}
    assert resolve(tmp_path / "run").name == "step-00000002"
    fit(tiniest(short_text, seed=2, train={"steps": 1}), tmp_path / "run")
    fit(tiniest(short_text, seed=2, train={"steps": 1}), tmp_path / "peace")
    assert all_of(tmp_path / "run") == all_of(tmp_path / "peace")


def test_a_snapshot_speaks_and_is_scored_as_a_checkpoint_of_its_step(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"steps": 9, "keep_checkpoints": 1, "eval_every_steps": 4}), run)
    assert 4 not in good_checkpoints(run)
    capsys.readouterr()
    assert main(["eval", str(run), "--at", "4", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    (logged,) = [each["val_loss"] for each in metrics(run) if each["step"] == 4 and "val_loss" in each]
    assert scored["loss"] == pytest.approx(logged, abs=1e-3)
    assert main(["generate", str(run), "--at", "4", "--prompt", "the", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the")
    assert main(["generate", str(run), "--at", "3", "--prompt", "the"]) == 2
    assert "no checkpoint of step 3; kept are 1, 2, 4, 8, 9, and best and newest" in capsys.readouterr().err
