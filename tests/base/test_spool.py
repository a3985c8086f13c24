from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hornbook.base import files
from hornbook.base.ours import Hidden
from hornbook.base.spool import spooled

DEAD = 2**22 + 1  # past the largest number that Linux gives a process


def test_old_streams_of_dead_processes_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    folder = files.make_folder(tmp_path / "spool")
    old, fresh = (str(Hidden("spooled", name, DEAD)) for name in ("old.txt", "fresh.txt"))
    kept = [fresh, *(str(Hidden("spooled", "x", each)) for each in (os.getpid(), os.getppid())), "17-0.txt", "mail"]
    for name in (old, *kept):
        (folder / name).write_bytes(b"x")
        if name != fresh:
            os.utime(folder / name, (1, 1))
    with spooled([b"a", b"b"], ".txt") as (path, _):
        assert path.read_bytes() == b"ab"
        assert {each.name for each in folder.iterdir()} == {path.name, *kept}
    assert {each.name for each in folder.iterdir()} == set(kept)


def test_another_who_clears_up_at_once_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    gone = tmp_path / "spool" / str(Hidden("spooled", "x", DEAD))

    def listing(folder: Path) -> Iterator[Path]:
        return iter([gone])

    monkeypatch.setattr(Path, "iterdir", listing)
    with spooled([b"a"]) as (path, _):
        assert path.read_bytes() == b"a"
