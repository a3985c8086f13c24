"""A preparation ends at once when it is told to, wherever it is, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hornbook.base.ours import UNFINISHED, hidden

BYTES = 30_000_000  # many seconds of work, most of it in a few calls of a library


@pytest.fixture(scope="module")
def long_text(some_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text((some_text * (BYTES // len(some_text) + 1))[:BYTES])
    return path


@contextmanager
def preparing(source: str, kind: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # where it is ignored, as in a shell's background, so it is there
    command = [sys.executable, "-m", "hornbook", "prepare", source, "--out", str(folder / "out" / "shards")]
    with subprocess.Popen(
        [*command, "--tokenizer.kind", kind],
        env={**os.environ, "HORNBOOK_HOME": str(folder / "home")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def wait_until(there: Callable[[], object], child: subprocess.Popen[str]) -> None:
    while not there():
        assert child.poll() is None, child.stderr and child.stderr.read()
        time.sleep(0.01)


def end(child: subprocess.Popen[str], number: int, allowed: float, folder: Path) -> tuple[int, str]:
    began = time.monotonic()
    child.send_signal(number)
    _, said = child.communicate(timeout=100)
    assert time.monotonic() - began < allowed
    assert [path for name in ("out", "home") for path in (folder / name).rglob("*") if not path.is_dir()] == []
    assert list((folder / "out").glob("*")) == []
    return child.returncode, said


@pytest.mark.parametrize(
    ("kind", "at", "number", "code"),
    [
        ("bpe", "learning", signal.SIGTERM, 143),
        ("wordpiece", "learning", signal.SIGHUP, 129),
        ("char", "encoding", signal.SIGINT, 130),
    ],
)
def test_a_preparation_ends_at_once(
    kind: str, at: str, number: int, code: int, long_text: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    with preparing(str(long_text), kind, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith(f"learning a {kind} vocabulary from 30M bytes of long")
        allowed = max(time.monotonic() - began, 2.5)  # what starting takes, on a machine that is busy
        if at == "encoding":
            wait_until((tmp_path / "out" / hidden(UNFINISHED, "shards") / "tokenizer.json").exists, child)
        time.sleep(0.3)
        assert end(child, number, allowed, tmp_path) == (code, "interrupted\n" if number == signal.SIGINT else "")


def test_a_preparation_that_waits_for_its_text_ends_at_once(tmp_path: Path) -> None:
    with preparing("-", "byte", tmp_path) as child:
        assert child.stdin is not None
        child.stdin.write("text " * 1_000_000)
        child.stdin.flush()
        wait_until(lambda: list((tmp_path / "home").glob("spool/*")), child)
        assert end(child, signal.SIGTERM, 60, tmp_path) == (143, "")
