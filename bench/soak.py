"""Runs that are killed, damaged and refused by the disk, thousands of times: rows 1, 3 and 5 of the promise on
reliability. `make soak`, or:

    PYTHONPATH=tests:tests/train python bench/soak.py [--out soak] [--kills 1000] [--corruptions 13000] [--failures 500]

- A kill is a real SIGKILL, at a random moment or at a random operation on the disk, of a run, of its preparation, or of
  a resume; some runs are killed several times. Whatever is there then must be whole, nothing that was saved gone,
  and at last the run must be the uninterrupted one: losses, samples, weights, moments, snapshots.
- A corruption strikes a checkpoint, best weights, a snapshot, shards or the record of a run that was killed. It must be
  told, or proved harmless: each byte that would be read is as it was written. The run then goes on from what is good;
  every twentieth time all the way, to the uninterrupted end.
- A failed write is ENOSPC, EDQUOT or EIO at a random operation, once or from there on; or a small disk that another
  program really fills. One line tells so, all that was saved is whole, and on a healthy disk the run comes to its end.

Each try is a process forked from this one, which has torch imported. FOLDER/tally.jsonl has a line for each, and the
next call goes on after the last one. What failed is kept in FOLDER/failed. The exit code is 1 where anything did.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from trial import all_of, exact, learned, leftovers, metrics, snapshots, tiniest, write_short_text

from damage import misread
from hornbook.base import files
from hornbook.base.errors import HornbookError, UserError
from hornbook.base.settings import merge
from hornbook.runs.folder import RunFolder, step_of, strangeness
from hornbook.runs.logs import read_log
from hornbook.shards.format import Shards, listed
from hornbook.text.tokenizer import TOKENIZER_FILES
from hornbook.train import loop, precision
from hornbook.train.checkpoint import newest_checkpoint
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, resume

TRACEBACK = 70
SECONDS_AT_MOST = 120
RESUMED_EVERY = 20
SMALL_DISK = "3m"
STEPS = 24
NEWEST = "step-00000015"
# The best model is scored on all of a text that a run is long enough for.
PARTS = {"train": {"batch_tokens": 1536, "eval_every_steps": None}}
# Where a scale begins that overflows, and how soon it tries to grow, so that in a run's steps it does both.
precision.FIRST_SCALE, precision.STEPS_TO_GROW = 2.0**30, 5


class WrongError(Exception):
    """What must not happen has happened."""


def must(holds: object, what: str) -> None:
    if not holds:
        raise WrongError(what)


class Watch:
    """Stands in for files._step in a child: it can be seen from outside what that does to the disk, and at one
    operation the child is killed, or the disk fails."""

    def __init__(self, last: int | None = None, kill: str = "", number: int = 0, ever_after: bool = False) -> None:
        self._last, self._kill, self._number, self._ever_after = last, kill, number, ever_after
        self._seen, self._count, self._lock = mmap.mmap(-1, 128), 0, threading.Lock()

    def __call__(self, kind: str, path: Path, act: Callable[[], Any]) -> Any:
        with self._lock:
            operation, self._count = self._count, self._count + 1
            self._seen[64:72] = self._count.to_bytes(8, "little")
        place = 0 if threading.current_thread() is threading.main_thread() else 32
        self._seen[place : place + 32] = kind.encode().ljust(32)
        try:
            hit = self._last is not None and (operation >= self._last if self._ever_after else operation == self._last)
            if hit and self._number and kind not in ("unlink", "rmtree", "rmdir"):
                raise OSError(self._number, os.strerror(self._number), str(path))
            if hit and self._kill == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = act()
            if hit and self._kill == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        finally:
            self._seen[place : place + 32] = bytes(32)

    @property
    def operations(self) -> int:
        return int.from_bytes(self._seen[64:72], "little")

    @property
    def at_work(self) -> list[str]:
        """The operations that a child was in when it died: the loop's, and that of the thread beside it."""
        return [each for place in (0, 32) if (each := self._seen[place : place + 32].strip(b"\0 ").decode())]


def forked(act: Callable[[], object], told: Path, home: Path, watch: Watch | None = None) -> int:
    """The id of a process that does it."""
    if pid := os.fork():
        return pid
    code = TRACEBACK
    try:
        handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ["HORNBOOK_HOME"] = str(home)
        if watch is not None:
            files._step = watch  # type: ignore[assignment]
        act()
        code = 0
    except HornbookError as error:
        code = error.exit_code
        print("\n".join(f"error: {each}" for each in error.mistakes), flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def import_what_training_does(names: Path, act: Callable[[], object]) -> None:
    """Before anything is forked: what torch imports when it is first asked takes two thirds of a try."""

    def act_and_tell() -> None:
        act()
        names.write_text("\n".join(sys.modules))

    os.environ["HORNBOOK_HOME"] = str(names.with_name("home"))
    must(ended(forked(act_and_tell, names.with_name("told"), names.with_name("home"))) == 0, "no run at all")
    for name in names.read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def ended(pid: int, kill_after: float | None = None) -> int:
    """The exit code of a process, which is killed after so many seconds; negative where a signal ended it."""
    waited, last = 0.0, time.monotonic()
    while True:
        now = time.monotonic()
        waited, last = waited + min(now - last, 0.1), now  # who was stopped meanwhile has not waited
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if waited >= (SECONDS_AT_MOST if kill_after is None else kill_after):
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            must(kill_after is not None, f"a process was still at it after {SECONDS_AT_MOST} s")
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)


@dataclass(frozen=True)
class Peace:
    """A run that nothing happens to."""

    config: RunConfig
    run: Path
    all: tuple[Any, ...]
    seconds: float
    operations: int


class Soak:
    def __init__(self, place: Path) -> None:
        self.place, self.home = place, place / "home"
        self.text = place / "short.txt"
        self.text.write_text(write_short_text(self.text).read_text()[:1000])  # read twice in a run
        (place / "other.txt").write_text(self.text.read_text()[::-1])
        adamw, beside = {"optim": {"kind": "adamw"}}, {"eval_every_steps": 5, "keep_checkpoints": 1}
        knobs: dict[str, dict[str, Any]] = {
            "muon": {},
            "adamw, its text prepared meanwhile": adamw,
            "bfloat16": {"train": {"dtype": "bfloat16"}},
            "float16": {"train": {"dtype": "float16"}},
            "averaged": adamw | {"train": {"average": "ema"}},
            "best weights beside": {"train": beside},
            "evaluated on a part, then on the whole": PARTS | {"data": str(self.long_text(place / "long.txt"))},
        }
        each_saved = {"train": {"steps": STEPS, "save_every_steps": 3, "eval_every_steps": 8, "threads": 1}}
        configs = {name: tiniest(self.text, **merge(each_saved, each)) for name, each in knobs.items()}
        import_what_training_does(place / "modules", lambda: fit(configs["muon"], place / "first"))
        self.peace = {name: self.in_peace(name, config) for name, config in configs.items()}
        self.killed = self.killed_run()

    @staticmethod
    def long_text(path: Path) -> Path:
        path.write_text(" ".join(random.Random(1).choices(["one", "two", "three", "four"], k=19_000)))
        return path

    def home_of(self, name: str, place: Path) -> Path:
        return place / "home" if "prepared" in name else self.home

    def in_peace(self, name: str, config: RunConfig) -> Peace:
        place, watch, began = self.place / "peace" / name, Watch(), time.monotonic()
        place.mkdir(parents=True)
        self.must_end(
            forked(lambda: fit(config, place / "run"), place / "told", self.home_of(name, place), watch), place
        )
        seconds = time.monotonic() - began
        return Peace(config, place / "run", all_of(place / "run"), seconds, watch.operations)

    def killed_run(self) -> Path:
        """A run that was killed in step 17, with its shards; and shards, and a run, of other texts and settings. Moved
        since, so that no copy of it looks where the first one was."""
        place, peace = self.place / "killed", self.peace["muon"]

        def fit_until_killed() -> None:
            factor = loop.lr_factor

            def kill_in_step_17(*words: Any) -> float:
                if words[1] == 16:
                    while not RunFolder(place / "run").checkpoint(15).is_dir():
                        time.sleep(0.001)
                    os.kill(os.getpid(), signal.SIGKILL)
                return factor(*words)

            loop.lr_factor = kill_in_step_17
            fit(peace.config, place / "run")

        def other() -> None:
            settings = {"data": str(self.place / "other.txt"), "seed": 2, "train": {"steps": 15}}
            fit(peace.config.with_(**settings), place / "other")

        place.mkdir()
        must(ended(forked(fit_until_killed, place / "told", place / "home")) == -signal.SIGKILL, "was not killed")
        self.must_end(forked(other, place / "told", place / "other-home"), place)
        return place.rename(self.place / "killed-and-moved")

    def must_end(self, pid: int, place: Path) -> None:
        code = ended(pid)
        must(code == 0, f"ended with {code}: {(place / 'told').read_text()[-2000:]}")

    def going_on(self, name: str, place: Path, watch: Watch | None = None) -> int:
        """A process that begins the run, or goes on with it."""
        run, config = place / "run", self.peace[name].config
        act = (lambda: resume(run)) if RunFolder(run).checkpoints() else (lambda: fit(config, run))
        return forked(act, place / "told", self.home_of(name, place), watch)

    # Kills

    def kill(self, place: Path, draw: random.Random) -> dict[str, Any]:
        name = draw.choice(list(self.peace))
        peace, run, kills, wanted = self.peace[name], place / "run", [], draw.choice((1, 1, 2, 3, 5))
        for _ in range(3 * wanted):
            before = newest_good(run)
            if draw.random() < 0.5:
                how, watch = "a moment", Watch()
                code = ended(self.going_on(name, place, watch), kill_after=draw.random() * peace.seconds)
            else:
                how = draw.choice(("before", "after"))
                watch = Watch(draw.randrange(peace.operations), kill=how)
                code = ended(self.going_on(name, place, watch))
            must(code in (0, -signal.SIGKILL), f"ended with {code}: {(place / 'told').read_text()[-2000:]}")
            if code == 0:
                break
            after = newest_good(run)
            step = max((each["step"] for each in metrics(run)), default=0)
            kills.append({"by": how, "step": step, "saved": after, "in": watch.at_work})
            must(after >= before, f"checkpoint {before} is gone after a kill; the newest is {after}")
            if len(kills) == wanted:
                break
        self.must_end(self.going_on(name, place), place)
        must(all_of(run) == peace.all, "another run than the uninterrupted one")
        must(leftovers(run) == [], f"left behind: {leftovers(run)}")
        return {"what": name, "count": len(kills), "kills": kills}

    # Corruptions

    def corrupt(self, place: Path, draw: random.Random) -> dict[str, Any]:
        shutil.copytree(self.killed, place, dirs_exist_ok=True, symlinks=True)
        os.environ["HORNBOOK_HOME"] = str(place / "home")
        run = RunFolder(place / "run")
        record = run.record()
        Shards.open(record.shards).checked()  # once, so that it is noted which times its files have
        kind = draw.choice(list(HARMS))
        folders = [*run.checkpoints()] * 4 + [*run.best_models(), *run.snapshots()] + [record.shards] * 6
        target = draw.choice(folders if kind in NEED_A_FOLDER else [*folders, run.path, run.path])
        others = [each for each in (*run.kept(), *RunFolder(place / "other").kept()) if each != target]
        if target == record.shards:
            others = [each.parent for each in place.glob("other-home/shards/*/manifest.json")]
        names = [run.record_file.name] if target == run.path else sorted(_bytes_of(target))
        before, file = _bytes_of(target, names), target / draw.choice(names)
        if not HARMS[kind](file, draw, others):
            return {"what": f"{kind}: not of {file.name}", "count": 0}
        facts = {"what": kind, "of": _called(target, run), "file": file.name, "count": 1}
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            found = self.found(target, run, record.run_id)
        facts["found"] = found or "harmless"
        if found is None:
            must(_same(before, _bytes_of(target, names), target), f"{facts}: taken, though not as it was written")
        if kind == "extra":
            must(found is None, f"{facts}: a file of somebody else's is no damage")
        if target.name == NEWEST and target.parent.name == "checkpoints":
            must(len(told.getvalue().splitlines()) == (found is not None or kind == "extra"), f"{facts}: not one line")
        if draw.randrange(RESUMED_EVERY) == 0 or (target == record.shards and draw.random() < 0.1):
            facts["resumed"] = self.resumed_after(place, target, found)
        return facts

    def found(self, target: Path, run: RunFolder, run_id: str) -> str | None:
        """What is told of damage before anything of the folder is used."""
        if target == run.path:
            try:
                return "edited" if run.record().edited else None
            except UserError as error:
                return str(error)
        if target.parent.parent != run.path:  # shards
            try:
                there = Shards.open(target).checked()
            except UserError as error:
                return str(error)
            return None if there.fingerprint == run.record().fingerprint else "other data"
        wrong = files.damage(target) or strangeness(target, run_id)
        if target.parent.name == "checkpoints":
            taken = newest_checkpoint(run, run_id)
            must((taken == target) == (wrong is None) or target.name != NEWEST, f"{taken.name} is taken: {wrong}")
            must(files.damage(taken) is None, f"{taken.name} is taken, and damaged")
        return wrong

    def resumed_after(self, place: Path, target: Path, found: str | None) -> str:
        run, peace = place / "run", self.peace["muon"]
        code = ended(forked(lambda: resume(run), place / "told", place / "home"))
        if target == run and found is not None:
            must(code in (0, 2), f"ended with {code}: {(place / 'told').read_text()[-2000:]}")
            return "refused" if code == 2 else "taken as edited"
        if found == "other data":
            must(code == 2, f"ended with {code}: {(place / 'told').read_text()[-2000:]}")
            return "refused"
        must(code == 0, f"ended with {code}: {(place / 'told').read_text()[-2000:]}")
        must(whole_but_snapshots(run) == peace.all[:3], "another run than the uninterrupted one")
        kept = {step: each for step, each in snapshots(run).items() if run / "snapshots" / f"step-{step:08}" != target}
        must(kept.items() <= peace.all[3].items(), "other snapshots")
        must(len(kept) >= len(peace.all[3]) - 1, "snapshots are missing")
        return "the uninterrupted run"

    # Failed writes

    def fail(self, place: Path, draw: random.Random) -> dict[str, Any]:
        name = draw.choice(list(self.peace))
        peace, run, really = self.peace[name], place / "run", draw.random() < 0.3 and can_mount()
        number = draw.choice((errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO))
        if draw.random() < 0.5:  # a resume
            ended(self.going_on(name, place, Watch(draw.randrange(peace.operations), kill="before")))
        if really:
            facts = {"how": "a full disk"}
            code = self.filled(name, place, draw)
        else:
            ever_after = draw.random() < 0.5
            facts = {"how": f"{errno.errorcode[number]} {'from there on' if ever_after else 'once'}"}
            watch = Watch(draw.randrange(peace.operations), number=number, ever_after=ever_after)
            code = ended(self.going_on(name, place, watch))
            facts["operations"] = watch.operations
        said = (place / "told").read_text()
        errors = [line for line in said.splitlines() if line.startswith("error")]
        must(code in (0, 1) and len(errors) == code, f"ended with {code}: {said[-2000:]}")
        newest_good(run)
        must(leftovers(run) == [], f"left behind: {leftovers(run)}")
        self.must_end(self.going_on(name, place), place)
        must(whole_but_snapshots(run) == peace.all[:3], "another run than the uninterrupted one")
        missing = peace.all[3].keys() - snapshots(run).keys()
        must(snapshots(run).items() <= peace.all[3].items(), "other snapshots")
        must(not missing or "left out" in said, f"snapshots are missing: {missing}")
        return {"what": name, "count": 1, **facts, "told": errors[:1], "snapshots_left_out": sorted(missing)}

    def filled(self, name: str, place: Path, draw: random.Random) -> int:
        """On a disk of its own, which another program fills while it trains."""
        run, other = place / "run", place / "run" / "of-another-program"
        run.mkdir(exist_ok=True)
        kept = shutil.move(run, place / "kept")
        run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(run)], check=True)
        try:
            shutil.copytree(kept, run, dirs_exist_ok=True)
            pid = self.going_on(name, place)
            time.sleep(draw.random() * self.peace[name].seconds)
            leaves = draw.randrange(0, 20_000)
            with contextlib.suppress(OSError), open(other, "wb", buffering=0) as file:
                free = shutil.disk_usage(run).free - leaves
                while free > 0:
                    free -= file.write(bytes(min(free, 65536)))
            code = ended(pid)
            other.unlink()
            shutil.rmtree(kept)
            shutil.copytree(run, kept)
        finally:
            subprocess.run(["umount", str(run)], check=True)
        run.rmdir()
        shutil.move(kept, run)
        return code


@functools.cache
def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


def newest_good(run: Path) -> int:
    """The step of the newest checkpoint; nothing that has its name may be damaged."""
    for each in RunFolder(run).kept():
        damage = files.damage(each)
        must(damage is None, f"{each.name} {damage}")
    return max(map(step_of, RunFolder(run).checkpoints()), default=0)


def whole_but_snapshots(run: Path) -> tuple[Any, ...]:
    return exact(metrics(run)), read_log(run / "samples.jsonl"), learned(run)


# What becomes of a file, or of its folder; False where that cannot be done to it, or would change nothing.


def _rewritten(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random, list[Path]], bool]:
    def harm(file: Path, draw: random.Random, _: list[Path]) -> bool:
        before = file.read_bytes()
        after = change(before, draw)
        file.write_bytes(after)
        return after != before

    return harm


def _flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwritten(data: bytes, draw: random.Random, with_zeros: bool) -> bytes:
    first = draw.randrange(len(data))
    count = draw.randint(1, len(data) - first)
    return data[:first] + (bytes(count) if with_zeros else draw.randbytes(count)) + data[first + count :]


def _missing(file: Path, _: random.Random, __: list[Path]) -> bool:
    file.unlink()
    return True


def _extra(file: Path, draw: random.Random, _: list[Path]) -> bool:
    (file.parent / draw.choice(("._model.safetensors", "Thumbs.db", "note.txt"))).write_bytes(draw.randbytes(99))
    return True


def _of_another(file: Path, draw: random.Random, others: list[Path]) -> bool:
    """The file of the same name in another checkpoint, of this run or of another."""
    there = [each / file.name for each in others if (each / file.name).is_file()]
    if not there or (data := draw.choice(there).read_bytes()) == file.read_bytes():
        return False
    file.write_bytes(data)
    return True


def _stale_manifest(file: Path, draw: random.Random, others: list[Path]) -> bool:
    name = "manifest.json" if (file.parent / "manifest.json").is_file() else files.MANIFEST
    return _of_another(file.with_name(name), draw, others)


def _whole_of_another(file: Path, draw: random.Random, others: list[Path]) -> bool:
    other = draw.choice(others)
    shutil.rmtree(file.parent)
    shutil.copytree(other, file.parent)
    return True


def _edited(file: Path, draw: random.Random, _: list[Path]) -> bool:
    """One value of a JSON file, which stays JSON."""
    inside = sorted(file.parent.glob("*.json")) if file.name != "run.json" else [file]
    path = draw.choice(inside)
    before = path.read_bytes()
    _, value = draw.choice(list(misread(json.loads(before))))
    path.write_bytes(json.dumps(value, indent=2).encode(errors="surrogatepass"))
    return path.read_bytes() != before


def _tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, random.Random, list[Path]], bool]:
    def harm(file: Path, draw: random.Random, _: list[Path]) -> bool:
        inside = sorted(file.parent.glob("*.safetensors"))
        if not inside:
            return False
        path = draw.choice(inside)
        tensors = safetensors.torch.load(path.read_bytes())
        name = draw.choice(sorted(tensors))
        changed = change(tensors[name]).contiguous()
        if (changed.dtype, changed.shape) == (tensors[name].dtype, tensors[name].shape):
            return False
        path.write_bytes(safetensors.torch.save({**tensors, name: changed}))
        return True

    return harm


def _swapped(file: Path, draw: random.Random, _: list[Path]) -> bool:
    """Two files of a folder, one in the other's place."""
    there = [each for each in sorted(file.parent.iterdir()) if each != file and each.is_file()]
    if not there or file.name == "run.json":
        return False
    other = draw.choice(there)
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    return one != two


def _link(file: Path, _: random.Random, __: list[Path]) -> bool:
    elsewhere = file.parent.parent / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    return True


HARMS: dict[str, Callable[[Path, random.Random, list[Path]], bool]] = {
    "a bit flipped": _rewritten(_flipped),
    "cut short": _rewritten(lambda data, draw: data[: draw.randrange(len(data))]),
    "zeros": _rewritten(lambda data, draw: _overwritten(data, draw, with_zeros=True)),
    "noise": _rewritten(lambda data, draw: _overwritten(data, draw, with_zeros=False)),
    "empty": _rewritten(lambda *_: b""),
    "longer": _rewritten(lambda data, draw: data + draw.randbytes(draw.randint(1, 4096))),
    "missing": _missing,
    "extra": _extra,
    "swapped": _swapped,
    "of another checkpoint": _of_another,
    "stale manifest": _stale_manifest,
    "another run's or step's": _whole_of_another,
    "edited": _edited,
    "another dtype": _tensors(lambda each: each.to(torch.bfloat16 if each.dtype != torch.bfloat16 else torch.float32)),
    "another shape": _tensors(lambda each: each.flatten()[:-1] if each.ndim < 2 else each.mT),
    "a link": _link,
}
NEED_A_FOLDER = {
    "another dtype", "another shape", "stale manifest", "another run's or step's", "swapped", "of another checkpoint",
    "extra",
}  # fmt: skip


def _bytes_of(folder: Path, names: list[str] | None = None) -> dict[str, bytes | None]:
    """The files of ours in a folder."""
    if names is None:
        names = sorted(listed(folder) or files.listed(folder) or ())
    paths = {name: folder / name for name in names}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}


def _same(before: dict[str, bytes | None], after: dict[str, bytes | None], folder: Path) -> bool:
    """Whether all that is read is as it was written. A manifest and a record are what they say; of a tokenizer's files,
    beside shards, what is read of them has a fingerprint, which is compared."""
    for name, was in before.items():
        now = after[name]
        if now == was or (name in TOKENIZER_FILES and (folder / "manifest.json").is_file()):
            continue
        if name not in (files.MANIFEST, "manifest.json", "run.json") or was is None or now is None:
            return False
        if {**json.loads(was), "sha256": ""} != {**json.loads(now), "sha256": ""}:
            return False
    return True


def _called(target: Path, run: RunFolder) -> str:
    if target == run.path:
        return "run.json"
    return target.parent.name if target.parent.parent == run.path else "shards"


class Tally:
    def __init__(self, out: Path) -> None:
        self.path, self.failed = out / "tally.jsonl", out / "failed"
        out.mkdir(parents=True, exist_ok=True)
        self.entries = read_log(self.path)
        self._file = open(self.path, "a")  # noqa: SIM115
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.entries if each["kind"] == kind]

    def done(self, kind: str) -> int:
        return sum(each["count"] for each in self.of(kind))

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def summary(self) -> Iterator[str]:
        for kind in ("kill", "corrupt", "fail"):
            wrong = [each for each in self.of(kind) if "wrong" in each]
            yield f"{kind}: {self.done(kind):,} in {len(self.of(kind)):,} tries, {len(wrong)} wrong"
            by = Counter[str]()
            for each in self.of(kind):
                by[each.get("what", "?") if kind != "fail" else each.get("how", "?")] += each["count"]
            yield from (f"  {count:6,}  {what}" for what, count in by.most_common() if count)
            yield from (f"  WRONG {each['number']}: {each['wrong'][:300]}" for each in wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--corruptions", type=int, default=13_000)
    parser.add_argument("--failures", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", action="store_true", help="tell what the tally has, and do nothing")
    given = parser.parse_args()
    tally = Tally(given.out)
    if not given.summary:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(prefix="hornbook-soak-") as place:
            soak = Soak(Path(place))
            work = {
                "kill": (soak.kill, given.kills),
                "corrupt": (soak.corrupt, given.corruptions),
                "fail": (soak.fail, given.failures),
            }
            told = time.monotonic()
            while unfinished := [kind for kind, (_, goal) in work.items() if tally.done(kind) < goal]:
                kind = min(unfinished, key=lambda kind: tally.done(kind) / work[kind][1])  # all of them side by side
                attempt(kind, work[kind][0], tally, given.seed, Path(place) / "try")
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    print(", ".join(f"{kind} {tally.done(kind)}" for kind in work), flush=True)
    print("\n".join(tally.summary()))
    return int(any("wrong" in each for each in tally.entries))


def attempt(
    kind: str, act: Callable[[Path, random.Random], dict[str, Any]], tally: Tally, seed: int, place: Path
) -> None:
    number = len(tally.of(kind))
    entry = {"kind": kind, "number": number}
    place.mkdir()
    began = time.monotonic()
    try:
        entry |= act(place, random.Random(f"{seed} {kind} {number}"))
    except Exception as error:
        entry |= {"count": 1, "wrong": str(error) if isinstance(error, WrongError) else traceback.format_exc()}
        print(f"WRONG: {entry}", flush=True)
        shutil.copytree(place, tally.failed / f"{kind}-{number}", symlinks=True, dirs_exist_ok=True)
    tally.add({**entry, "seconds": round(time.monotonic() - began, 3)})
    shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
