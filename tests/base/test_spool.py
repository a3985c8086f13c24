from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from hornbook.base import files
from hornbook.base.errors import MachineError
from hornbook.base.ours import SPOOLED, STAGED, Hidden
from hornbook.base.room import Room
from hornbook.base.spool import spooled

DEAD = 2**22 + 1  # past the largest number that Linux gives a process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    return files.make_folder(tmp_path / "spool")


def test_a_stream_is_a_file_until_it_is_left(folder: Path) -> None:
    with spooled([b"one ", b"two"], "-", ".gz") as (path, digest):
        assert (path.read_bytes(), path.suffix, path.parent) == (b"one two", ".gz", folder)
        assert digest == hashlib.sha256(b"one two").hexdigest()
    assert list(folder.iterdir()) == []


def test_a_living_process_keeps_its_stream_a_killed_one_does_not_and_strangers_do(folder: Path) -> None:
    names = {
        "abandoned": Hidden(SPOOLED, "a", DEAD),
        "by one of our number": Hidden(SPOOLED, "a", os.getpid()),  # as in another container
        "never locked": Hidden(STAGED, "a", DEAD),
        "about to be locked": Hidden(STAGED, "b", DEAD),
        "of a living process": Hidden(SPOOLED, "a", os.getppid()),
        "a stranger's": "mail",
        "a stranger's too": "17-0.txt",
    }
    paths = {what: folder / str(name) for what, name in names.items()}
    with spooled([b"in use"], "-") as (mine, _):
        for path in (mine, *paths.values()):
            path.write_bytes(b"in use")
            os.utime(path, (1, 1))
        os.utime(paths["about to be locked"], (time.time(), time.time()))
        kept = {
            path for what, path in paths.items() if what not in ("abandoned", "by one of our number", "never locked")
        }
        with spooled([b"another"], "-") as (other, _):
            assert set(folder.iterdir()) == {mine, other, *kept}
        assert mine.read_bytes() == b"in use"


def test_another_who_clears_up_at_once_is_no_trouble(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = folder / str(Hidden(SPOOLED, "x", DEAD))
    abandoned.touch()
    really = files.open_to_write

    def deleted_first(path: Path, mode: str, buffering: int = -1) -> IO[bytes]:
        abandoned.unlink(missing_ok=True)
        return really(path, mode, buffering)

    monkeypatch.setattr(files, "open_to_write", deleted_first)
    with spooled([b"text"], "-") as (path, _):
        assert set(folder.iterdir()) == {path}


def test_a_stream_stops_before_the_disk_is_full_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter(range(1_000, 0, -10))
    monkeypatch.setattr(files, "free_bytes", lambda _: next(free))

    def blocks() -> Iterator[bytes]:
        while True:
            yield b"."

    with pytest.raises(MachineError, match=r"^-: 1 more bytes do not fit"), spooled(blocks(), "-"):
        pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "whole", "most"),
    [(500e9, 1e12, 498e9), (10e9, 10e9, 9.5e9), (1e9, 1e12, 0.1e9), (0, 1e12, 0)],
    ids=["a large disk", "a small one", "little is free", "a full one"],
)
def test_so_much_may_be_taken_of_a_disk(
    free: float, whole: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: int(free))
    usage: Callable[[Any], Any] = lambda _: type("Usage", (), {"total": int(whole)})  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", usage)
    room = Room(tmp_path)
    room.ask(most, "here", "make room")
    with pytest.raises(MachineError, match=r"^here: .* do not fit on the disk.*; make room"):
        room.ask(most * 1.01 + 1, "here", "make room")
