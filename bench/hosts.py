"""Hosts that are lost, and come back: network namespaces of this machine, on a bridge, as root, with iproute2.

    PYTHONPATH=src:tests python bench/hosts.py [--out hosts] [--trials 10] [--changes 100] [--only killed cut ...]

Three hosts train one model, over links of 8 Mbit/s, lest it be done before the trial is.

- killed: all processes of one die, at once or after its link fell silent; it comes back with the same words.
- cut: the link of one is cut for twice the patience, so that it sees it or not, and mended.
- first: the host of the first process, where what is seen comes from, is killed, and comes back.
- cut-first: its link is cut and mended; until its patience ends it holds the run's folder.
- place: `hornbook meet` is killed, and begun again after ten seconds.
- place-host: one of the hosts keeps the place, as --meet names it; it is killed, and begun again after ten seconds.
- changes: of four hosts one at random is killed, or comes back, or a process of it alone is killed, at random moments,
  until there were so many changes in all; two are always left.

Each ends with the weights and moments of a run by one process that nothing befell, bit for bit: four micro-batches a
step, which three add up in the order of one. OUT/tally.jsonl has a line for each trial, with the seconds from what
befell to the next step; the next call goes on where it ends. The exit code is 1 where any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load_file

from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import read_log
from train.worlds import digest

PORT = 29400
PATIENCE = 20
SECONDS_AT_MOST, SECONDS_TO_THE_END = 300, 1800
SLOW = "tbf rate 8mbit burst 16kb latency 400ms"
WORDS = (
    "--tokenizer.kind byte --model.n-layer 1 --model.n-embd 16 --model.n-head 1 --model.context 32 "
    "--train.batch-tokens 128 --train.micro-batch 1 --train.threads 1 --train.save-every-steps 20 "
    "--train.device cpu --train.dtype float32 --train.compile false --train.eval-every-steps 500 "
    "--train.snapshots false --sample.tokens 1 --schedule.kind constant"
)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Net:
    """One that no other program of this kind uses at the time."""

    def __init__(self) -> None:
        for number in itertools.count(77):
            self._lock: IO[str] = open(f"{tempfile.gettempdir()}/hornbook-net-{number}", "w")  # noqa: SIM115
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        self.bridge, self._addresses = f"hornbook{number}", f"10.{number}.0"
        self.place = self.address_of(254)

    def address_of(self, host: int) -> str:
        return f"{self._addresses}.{host}"

    def __enter__(self) -> Net:
        self.__exit__()
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.place}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self.bridge)


class Host:
    """One of them."""

    def __init__(self, number: int, net: Net) -> None:
        self.name, self.link, self._net = f"{net.bridge}-{number}", f"{net.bridge[-2:]}hb{number}", net
        self.launcher: subprocess.Popen[str] | None = None
        for left in (("link", "del", self.link), ("netns", "del", self.name)):  # by a trial that was killed
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*left)
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.link, "master", net.bridge, "up")
        for words in (f"addr add {net.address_of(number)}/24 dev eth0", "link set eth0 up", "link set lo up"):
            ip("-n", self.name, *words.split())
        subprocess.run(f"tc qdisc add dev {self.link} root {SLOW}".split(), check=True)

    @property
    def is_up(self) -> bool:
        return self.launcher is not None and self.launcher.poll() is None

    def hurry(self) -> None:
        subprocess.run(f"tc qdisc del dev {self.link} root".split(), capture_output=True)

    def ranks(self) -> list[int]:
        """Its processes that train."""
        assert self.launcher is not None
        pids = [int(each) for each in ip("netns", "pids", self.name).split()]
        return [each for each in pids if each != self.launcher.pid and b"hornbook" in _words_of(each)]

    def start(self, *words: str, log: Path) -> None:
        env = os.environ | {"HORNBOOK_PATIENCE_SECONDS": str(PATIENCE), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
        with log.open("a") as told:
            command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "hornbook", *words]
            self.launcher = subprocess.Popen(command, stdout=told, stderr=told, text=True, env=env)

    def cut(self, at_once: bool = True) -> None:
        """So that the host knows it at once, or so that what is sent is lost."""
        ip("link", "set", self.link, *(("down",) if at_once else ("nomaster",)))

    def mend(self) -> None:
        ip("link", "set", self.link, "master", self._net.bridge, "up")

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


def _words_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Steps:
    """When a run took its first steps after a silence, seen by its log, which is cut back when it goes on."""

    def __init__(self, run: Path) -> None:
        self._size, self._changed, self._log = 0, time.monotonic(), run / "metrics.jsonl"
        self._begun: list[float] = []
        self.stood_still = 0.0
        """Seconds for which this machine stopped all of it."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        cut, last = True, time.monotonic()
        while not self._ended.wait(0.02):
            now = time.monotonic()
            if now - last > 1:
                self.stood_still += now - last
                self._changed += now - last
            last = now
            with contextlib.suppress(OSError):
                if (size := self._log.stat().st_size) != self._size:
                    if size > self._size and (cut or now - self._changed > 3):
                        self._begun.append(now)
                    cut, self._size, self._changed = size < self._size, size, now

    def after(self, act: Callable[[], object], hosts: list[Host]) -> float:
        """Seconds from what befell until the next."""
        stood_still = self.stood_still
        act()
        moment = time.monotonic()
        wait_for(lambda: any(each > moment for each in self._begun), hosts)
        seconds = next(each for each in self._begun if each > moment) - moment
        return round(max(seconds - (self.stood_still - stood_still), 0), 1)


def wait_for(there: Callable[[], bool], hosts: list[Host], at_most: float = SECONDS_AT_MOST) -> None:
    waited, last = 0.0, time.monotonic()
    while not there():
        waited, last = waited + min(time.monotonic() - last, 1), time.monotonic()  # who was stopped has not waited
        ended = [each for each in hosts if not each.is_up]
        assert not any(each.launcher and each.launcher.returncode > 0 for each in ended), "a host ended with an error"
        assert not hosts or len(ended) < len(hosts) or there(), "all hosts ended"
        assert waited < at_most, f"not within {at_most} s"
        time.sleep(0.05)


class Trial:
    def __init__(self, folder: Path, text: Path, steps: int, seed: str, kept_by: int | None = None) -> None:
        """`kept_by`: the number of the host that keeps the place to meet; by none of them otherwise."""
        self.folder, self.run, self.draw = folder, folder / "run", random.Random(seed)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        folder.mkdir(parents=True)
        self.net, self._kept_by = Net(), kept_by
        self._words = ["train", "--data", str(text), *WORDS.split(), "--train.steps", str(steps)]
        meet = f"{self.net.address_of(kept_by) if kept_by else self.net.place}:{PORT}"
        self._words += ["--out", str(self.run), "--hosts", "1:4", "--meet", meet]
        self.place: subprocess.Popen[bytes] | None = None
        self.hosts: list[Host] = []
        self.steps = Steps(self.run)

    def __enter__(self) -> Trial:
        self.net.__enter__()
        return self

    def begin(self, hosts: int) -> None:
        """Until some checkpoints are there."""
        if self._kept_by is None:
            self.keep_place()
        for number in range(1, hosts + 1):
            self.hosts.append(Host(number, self.net))
            self.start(self.hosts[-1])
        wait_for(lambda: len(RunFolder(self.run).checkpoints()) > 1, self.hosts)
        time.sleep(self.draw.uniform(0, 3))

    def __exit__(self, *_: object) -> None:
        self.steps.end()
        for each in self.hosts:
            each.remove()
        if self.place is not None:
            self.place.kill()
            self.place.wait()
        self.net.__exit__()

    def keep_place(self) -> None:
        told = (self.folder / "place.log").open("a")
        words = [sys.executable, "-m", "hornbook", "meet", f"{self.net.place}:{PORT}"]
        self.place = subprocess.Popen(words, stdout=told, stderr=told)

    def start(self, host: Host) -> None:
        host.start(*self._words, log=self.folder / f"{host.name}.log")

    def befell(self, what: str, act: Callable[[], object], *left: Host) -> None:
        self.seconds[what].append(self.steps.after(act, list(left)))

    def end(self, *hosts: Host) -> None:
        for each in hosts:
            each.hurry()
        wait_for(lambda: not any(each.is_up for each in hosts), [], SECONDS_TO_THE_END)
        assert all(each.launcher is not None and each.launcher.returncode == 0 for each in hosts), "ended with an error"

    def lose(self, host: Host) -> None:
        """At once, or as it is where a cable or the power fails: what it would still say is not heard."""
        silent = self.draw.random() < 0.5
        if silent:
            host.cut(at_once=False)
        host.kill()
        if silent:
            host.mend()

    def killed(self, number: int = 2) -> None:
        self.begin(3)
        host = self.hosts[number]
        left = [each for each in self.hosts if each is not host]
        self.befell("two go on", lambda: self.lose(host), *left)
        self.befell("three again", lambda: self.start(host), *self.hosts)
        self.end(*self.hosts)

    def first(self) -> None:
        self.killed(0)

    def cut(self, number: int = 2) -> None:
        self.begin(3)
        host, since = self.hosts[number], time.monotonic()
        left = [each for each in self.hosts if each is not host]
        self.befell("two go on", lambda: host.cut(at_once=self.draw.random() < 0.5), *left)
        time.sleep(max(since + 2 * PATIENCE - time.monotonic(), 0))
        self.befell("three again", host.mend, *self.hosts)
        self.end(*self.hosts)

    def cut_first(self) -> None:
        self.cut(0)

    def place_lost(self) -> None:
        self.begin(3)
        assert self.place is not None
        self.place.kill()
        self.place.wait()
        time.sleep(10)
        self.befell("three again", self.keep_place, *self.hosts)
        self.end(*self.hosts)

    def place_lost_with_its_host(self) -> None:
        self.begin(3)
        host = self.hosts[1]
        self.lose(host)
        time.sleep(10)
        self.befell("three again", lambda: self.start(host), *self.hosts)
        self.end(*self.hosts)

    def changes(self, number: int) -> None:
        self.begin(4)
        for _ in range(number):
            up = [each for each in self.hosts if each.is_up]
            down = [each for each in self.hosts if not each.is_up]
            kinds = ["a process is killed"] + ["a host is killed"] * (len(up) > 2) + ["a host comes"] * bool(down)
            kind, host = self.draw.choice(kinds), self.draw.choice(up)
            if kind == "a host comes":
                host = self.draw.choice(down)
                self.befell(kind, functools.partial(self.start, host), *up, host)
            elif kind == "a host is killed":
                self.befell(kind, functools.partial(self.lose, host), *(each for each in up if each is not host))
            else:
                self.befell(kind, functools.partial(os.kill, self.draw.choice(host.ranks()), signal.SIGKILL), *up)
            time.sleep(self.draw.uniform(0, 3))
        up = [each for each in self.hosts if each.is_up]
        for each in up[1:]:  # what is left is quicker alone
            each.kill()
        self.end(up[0])


KINDS: dict[str, Callable[[Trial], None]] = {
    "killed": Trial.killed,
    "cut": Trial.cut,
    "first": Trial.first,
    "cut-first": Trial.cut_first,
    "place": Trial.place_lost,
    "place-host": Trial.place_lost_with_its_host,
}
CHANGES = "changes"
CHANGES_IN_A_RUN, STEPS_FOR_A_CHANGE = 25, 200


def furthest(run: Path, alone: Path) -> float:
    """The largest difference between their weights."""
    one, two = (load_file(max(each.glob("checkpoints/step-*")) / "model.safetensors") for each in (run, alone))
    return max(float((one[name] - two[name]).abs().max()) for name in two)


def tried(kind: str, act: Callable[[Trial], None], folder: Path, text: Path, alone: Path, steps: int) -> dict[str, Any]:
    trial = Trial(folder, text, steps, folder.name, kept_by=2 if kind == "place-host" else None)
    told: dict[str, Any] = {"kind": kind, "ok": False}
    try:
        with trial:
            act(trial)
        told["ok"] = digest(trial.run) == digest(alone)
        if not told["ok"]:
            told["wrong"] = f"weights differ by {furthest(trial.run, alone)}"
    except (AssertionError, subprocess.CalledProcessError) as wrong:
        told["wrong"] = str(wrong)
    if told["ok"]:
        shutil.rmtree(folder)
    return told | {"stood_still": round(trial.steps.stood_still, 1), "seconds": trial.seconds}


def summary(tally: list[dict[str, Any]]) -> Iterator[str]:
    yield "| kind | tries | came through, bit for bit | what | times | median, s | most, s |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for kind in [*KINDS, CHANGES]:
        of_it = [each for each in tally if each["kind"] == kind]
        for what in sorted({what for each in of_it for what in each["seconds"]}):
            seconds = [each for told in of_it for each in told["seconds"].get(what, ())]
            middle, most = statistics.median(seconds), max(seconds)
            through = sum(each["ok"] for each in of_it)
            yield f"| {kind} | {len(of_it)} | {through} | {what} | {len(seconds)} | {middle:.1f} | {most:.1f} |"


def run_alone(text: Path, out: Path, steps: int) -> Path:
    alone = out / f"alone-{steps}"
    if not RunFolder(alone).checkpoint(steps).is_dir():
        shutil.rmtree(alone, ignore_errors=True)
        words = ["train", "--data", str(text), *WORDS.split(), "--train.steps", str(steps), "--out", str(alone)]
        subprocess.run([sys.executable, "-m", "hornbook", *words], check=True, stdout=subprocess.DEVNULL)
    return alone


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("hosts"))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=500, help="of a trial; of changes, as many for each of them")
    parser.add_argument("--only", nargs="+", choices=[*KINDS, CHANGES], default=[*KINDS, CHANGES])
    parser.add_argument("--summary", action="store_true", help="tell what the tally has, and do nothing")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HORNBOOK_HOME", str(out / "home"))
    text, tally = out / "text.txt", out / "tally.jsonl"
    text.write_text("".join(Path(str(module.__file__)).read_text() for module in (argparse, shutil, subprocess)))
    while not asked.summary:
        there = read_log(tally)
        done = {kind: sum(each["kind"] == kind for each in there) / asked.trials for kind in asked.only}
        if CHANGES in done:
            changed = sum(len(times) for each in there if each["kind"] == CHANGES for times in each["seconds"].values())
            done[CHANGES] = changed / max(asked.changes, 1)
        kind = min(asked.only, key=lambda each: done[each])
        if done[kind] >= 1:
            break
        act, steps = KINDS.get(kind), asked.steps
        if act is None:
            left = min(asked.changes - changed, CHANGES_IN_A_RUN)
            act, steps = functools.partial(Trial.changes, number=left), left * STEPS_FOR_A_CHANGE
        alone = run_alone(text, out, steps)
        folder = out / f"{kind}-{len(there)}"
        shutil.rmtree(folder, ignore_errors=True)
        told = {"number": len(there), **tried(kind, act, folder, text, alone, steps)}
        with tally.open("a") as file:
            file.write(json.dumps(told) + "\n")
        print(json.dumps(told), flush=True)
    print("\n".join(summary(read_log(tally))))
    return int(any(not each["ok"] for each in read_log(tally)))


if __name__ == "__main__":
    sys.exit(main())
