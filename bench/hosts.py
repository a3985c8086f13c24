"""Hosts that are lost, and come back: network namespaces of this machine, on a bridge, as root, with iproute2.

    PYTHONPATH=src:tests python bench/hosts.py [--out hosts] [--times 3] [--only killed returned cut ...]

- killed: of three hosts one falls silent (its link is cut, then its processes are killed); the other two go on.
- returned: of two hosts one falls silent, the other goes on alone; it comes back with the same words and is taken in.
- cut: the link of one of two hosts is cut for twice the patience; the other goes on alone, and takes it in again.
- cut-first: the same of the host of the first process, which holds the run's folder until its patience ends.
- first: the host of the first process, where what is seen comes from, is killed; the other goes on.
- place: `hornbook meet` is killed, and begun again after ten seconds; both hosts meet there again.

Each ends with the weights and moments of a run by one process that nothing befell: bit for bit on one host and two;
within 1e-5 where three have added up. OUT/tally.jsonl has a line for each trial, with the seconds from what befell
to the next step; the exit code is 1 where any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hornbook.runs.folder import RunFolder
from train.worlds import digest

NET, BRIDGE, PORT = "10.77.0", "hornbook", 29400
PLACE = f"{NET}.254"
PATIENCE = 20
SECONDS_AT_MOST = 400
TOLERANCE = 1e-5
WORDS = (
    "--tokenizer.kind byte --model.n-layer 1 --model.n-embd 16 --model.n-head 1 --model.context 32 "
    "--train.batch-tokens 128 --train.micro-batch 1 --train.threads 1 --train.save-every-steps 20 "
    "--train.device cpu --train.dtype float32 --train.compile false --train.eval-every-steps 500 "
    "--train.snapshots false --sample.tokens 1 --schedule.kind constant"
)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Host:
    """One of them."""

    def __init__(self, number: int) -> None:
        self.name, self.link = f"hornbook{number}", f"hb{number}"
        self.launcher: subprocess.Popen[str] | None = None
        for left in (("link", "del", self.link), ("netns", "del", self.name)):  # by a trial that was killed
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*left)
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.link, "master", BRIDGE, "up")
        for words in (f"addr add {NET}.{number}/24 dev eth0", "link set eth0 up", "link set lo up"):
            ip("-n", self.name, *words.split())

    def start(self, *words: str, log: Path) -> None:
        env = os.environ | {"HORNBOOK_PATIENCE_SECONDS": str(PATIENCE), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
        with log.open("a") as told:
            command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "hornbook", *words]
            self.launcher = subprocess.Popen(command, stdout=told, stderr=told, text=True, env=env)

    def cut(self) -> None:
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        ip("link", "set", self.link, "up")

    def kill(self) -> None:
        """All its processes, and of those that they began meanwhile."""
        while pids := ip("netns", "pids", self.name).split():
            for each in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(each), signal.SIGKILL)
            time.sleep(0.05)
        if self.launcher is not None:
            self.launcher.wait()

    def remove(self) -> None:
        self.kill()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self.link)  # a namespace takes its time to let go of it
        ip("netns", "del", self.name)


class Steps:
    """When a run took its first steps after a silence, seen by its log, which is cut back when it goes on."""

    def __init__(self, run: Path) -> None:
        self.size, self.changed, self._log = 0, time.monotonic(), run / "metrics.jsonl"
        self.begun: list[float] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        cut = True
        while True:
            with contextlib.suppress(OSError):
                if (size := self._log.stat().st_size) != self.size:
                    now = time.monotonic()
                    if size > self.size and (cut or now - self.changed > 3):
                        self.begun.append(now)
                    cut, self.size, self.changed = size < self.size, size, now
            time.sleep(0.02)

    def after(self, moment: float, hosts: list[Host]) -> float:
        """Seconds until the next."""
        wait_for(lambda: any(each > moment for each in self.begun), hosts)
        return round(next(each for each in self.begun if each > moment) - moment, 1)


def wait_for(there: Callable[[], bool], hosts: list[Host]) -> None:
    until = time.monotonic() + SECONDS_AT_MOST
    while not there():
        ended = [each for each in hosts if each.launcher is not None and each.launcher.poll() is not None]
        assert not any(each.launcher and each.launcher.returncode > 0 for each in ended), "a host ended with an error"
        assert not hosts or len(ended) < len(hosts) or there(), "all hosts ended"
        assert time.monotonic() < until, f"not within {SECONDS_AT_MOST} s"
        time.sleep(0.05)


class Trial:
    def __init__(self, folder: Path, text: Path, steps: int, hosts: int) -> None:
        self.folder, self.run = folder, folder / "run"
        self.seconds: dict[str, float] = {}
        folder.mkdir(parents=True)
        self._words = ["train", "--data", str(text), *WORDS.split(), "--train.steps", str(steps)]
        self._words += ["--out", str(self.run), "--hosts", f"1:{hosts}", "--meet", f"{PLACE}:{PORT}"]
        self.place: subprocess.Popen[bytes] | None = None
        self.hosts: list[Host] = []
        self._count = hosts

    def __enter__(self) -> Trial:
        return self

    def begin(self) -> None:
        """With all hosts, until some checkpoints are there."""
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{PLACE}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        self.keep_place()
        for number in range(1, self._count + 1):
            self.hosts.append(Host(number))
        for each in self.hosts:
            self.start(each)
        self.steps = Steps(self.run)
        wait_for(lambda: len(RunFolder(self.run).checkpoints()) > 1, self.hosts)

    def __exit__(self, *_: object) -> None:
        for each in self.hosts:
            each.remove()
        if self.place is not None:
            self.place.kill()
            self.place.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", BRIDGE)

    def keep_place(self) -> None:
        told = (self.folder / "place.log").open("a")
        self.place = subprocess.Popen([sys.executable, "-m", "hornbook", "meet", str(PORT)], stdout=told, stderr=told)

    def start(self, host: Host) -> None:
        host.start(*self._words, log=self.folder / f"{host.name}.log")

    def befell(self, what: str, act: Callable[[], object], *left: Host) -> None:
        act()
        self.seconds[what] = self.steps.after(time.monotonic(), list(left))

    def end(self, *hosts: Host) -> None:
        wait_for(lambda: all(each.launcher is not None and each.launcher.poll() is not None for each in hosts), [])
        assert all(each.launcher is not None and each.launcher.returncode == 0 for each in hosts), "ended with an error"

    def silence(self, host: Host) -> None:
        host.cut()
        host.kill()
        host.mend()

    def killed(self) -> None:
        one, two, three = self.hosts
        self.befell("two go on", lambda: self.silence(three), one, two)
        self.end(one, two)

    def returned(self) -> None:
        one, two = self.hosts
        self.befell("one goes on", lambda: self.silence(two), one)
        self.befell("two again", lambda: self.start(two), one, two)
        self.end(one, two)

    def cut(self) -> None:
        self.cut_off(*self.hosts)

    def cut_first(self) -> None:
        self.cut_off(*reversed(self.hosts))

    def cut_off(self, one: Host, two: Host) -> None:
        since = time.monotonic()
        self.befell("one goes on", two.cut, one)
        time.sleep(max(since + 2 * PATIENCE - time.monotonic(), 0))
        self.befell("two again", two.mend, one, two)
        self.end(one, two)

    def first(self) -> None:
        one, two = self.hosts
        self.befell("the other goes on", lambda: self.silence(one), two)
        self.end(two)

    def place_lost(self) -> None:
        assert self.place is not None
        self.place.kill()
        self.place.wait()
        time.sleep(10)
        self.befell("both again", self.keep_place, *self.hosts)
        self.end(*self.hosts)


TRIALS: dict[str, tuple[int, Callable[[Trial], None]]] = {
    "killed": (3, Trial.killed),
    "returned": (2, Trial.returned),
    "cut": (2, Trial.cut),
    "cut-first": (2, Trial.cut_first),
    "first": (2, Trial.first),
    "place": (2, Trial.place_lost),
}


def furthest(run: Path, alone: Path) -> float:
    """The largest difference between their weights."""
    one, two = (load_file(max(each.glob("checkpoints/step-*")) / "model.safetensors") for each in (run, alone))
    return max(float((one[name] - two[name]).abs().max()) for name in two)


def tried(kind: str, folder: Path, text: Path, steps: int, alone: Path) -> dict[str, Any]:
    hosts, act = TRIALS[kind]
    trial = Trial(folder, text, steps, hosts)
    told: dict[str, Any] = {"kind": kind, "ok": False}
    try:
        with trial:
            trial.begin()
            act(trial)
        told["furthest"] = furthest(trial.run, alone)
        told["bits"] = digest(trial.run) == digest(alone)
        told["ok"] = told["bits"] or (hosts == 3 and told["furthest"] <= TOLERANCE)
    except (AssertionError, subprocess.CalledProcessError) as wrong:
        told["wrong"] = str(wrong)
    if told["ok"]:
        shutil.rmtree(folder)
    return told | {"seconds": trial.seconds}


def lines_of_text() -> Iterator[str]:
    for module in (argparse, contextlib, shutil, subprocess, threading):
        yield Path(str(module.__file__)).read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("hosts"))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HORNBOOK_HOME", str(out / "home"))
    text, alone = out / "text.txt", out / f"alone-{asked.steps}"
    text.write_text("".join(lines_of_text()))
    if not RunFolder(alone).checkpoint(asked.steps).is_dir():
        shutil.rmtree(alone, ignore_errors=True)
        words = ["train", "--data", str(text), *WORDS.split(), "--train.steps", str(asked.steps), "--out", str(alone)]
        subprocess.run([sys.executable, "-m", "hornbook", *words], check=True, stdout=subprocess.DEVNULL)
    failed = 0
    with (out / "tally.jsonl").open("a") as tally:
        for number, kind in itertools.product(range(asked.times), asked.only):
            folder = out / f"{kind}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            told = tried(kind, folder, text, asked.steps, alone)
            failed += not told["ok"]
            line = json.dumps(told)
            print(line, flush=True)
            tally.write(f"{line}\n")
            tally.flush()
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
