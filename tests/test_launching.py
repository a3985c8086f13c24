"""One run by several processes, as users start it: found again after one of them is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.base.errors import UserError
from hornbook.cli.launching import Launch
from hornbook.runs.folder import RunFolder
from train.worlds import digest

WORDS = (
    "--tokenizer.kind byte --model.n-layer 1 --model.n-embd 16 --model.n-head 1 --model.context 32 "
    "--train.batch-tokens 256 --train.micro-batch 1 --train.threads 1 --train.save-every-steps 5 --train.device cpu "
    "--train.dtype float32 --sample.tokens 1"
)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("demo", None),
        ("demo --processes 2", Launch(2)),
        ("demo --hosts=1:4 --meet there:29400 --processes 8", Launch(8, 1, 4, "there:29400")),
        ("demo --hosts 2 --meet there", Launch(1, 2, 2, "there")),
    ],
)
def test_what_is_asked_for_is_taken_out_of_the_words(words: str, asked: Launch | None) -> None:
    left = words.split()
    assert Launch.taken_from(left) == asked
    assert left == ["demo"]


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ("--processes none", "give 1 or more"),
        ("--processes", "a value is missing"),
        ("--hosts 4:1 --meet there", "give 4, or 1:4"),
        ("--hosts 2", "--meet HOST:PORT"),
    ],
)
def test_what_cannot_be_meant_is_told(words: str, mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        Launch.taken_from(words.split())


@pytest.mark.long
def test_a_process_that_is_killed_costs_seconds_and_no_bit(
    child: Callable[..., subprocess.Popen[str]], text_file: Path, tmp_path: Path
) -> None:
    run, alone = tmp_path / "two", tmp_path / "alone"
    words = ["train", "--data", str(text_file), *WORDS.split(), "--train.steps", "60", "--schedule.kind", "constant"]
    started = child(*words, "--processes", "2", "--out", str(run))
    wait_until(lambda: bool(RunFolder(run).checkpoints()), started)
    os.kill(ranks_of(started)[-1], signal.SIGKILL)
    output, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert "was killed (SIGKILL); going on from the newest checkpoint" in errors
    assert "going on from" in output
    assert child(*words, "--out", str(alone)).wait(timeout=200) == 0
    assert digest(run) == digest(alone)


@pytest.mark.long
def test_ctrl_c_stops_all_and_saves(
    child: Callable[..., subprocess.Popen[str]], text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", "--data", str(text_file), *WORDS.split(), "--train.steps", "100000", "--processes", "2"]
    started = child(*words, "--out", str(run))
    wait_until(lambda: bool(RunFolder(run).checkpoints()), started)
    ranks = ranks_of(started)
    for each in (started.pid, *ranks):  # as a terminal does
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGINT)
    output, errors = started.communicate(timeout=120)
    assert started.returncode == 130, errors
    assert "all of it saved; go on with" in output
    assert "Traceback" not in errors
    assert not any(Path(f"/proc/{each}").exists() for each in ranks)


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
    return [each for each in children if b"hornbook" in Path(f"/proc/{each}/cmdline").read_bytes()]


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + 200
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < patience
        time.sleep(0.05)
