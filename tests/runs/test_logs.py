from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hornbook.runs.logs import Following, Log, read_log


def entries(first: int, last: int, told: str = "") -> list[dict[str, Any]]:
    return [{"step": step, "told": told or step} for step in range(first, last)]


def write(path: Path, told: list[dict[str, Any]], keep_bytes: int | None = None) -> int:
    log = Log(path, keep_bytes)
    for each in told:
        log.write(each)
    length = log.sync()
    log.close()
    return length


def test_a_log_that_grows_is_told_entry_by_entry(tmp_path: Path) -> None:
    """As bytes come: also in the middle of a line, and of a character."""
    path, draw = tmp_path / "log.jsonl", random.Random(0)
    told = [{"step": step, "text": draw.choice(["é", "漢字", "a\nb", ""]) * 3} for step in range(200)]
    data = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told).encode()
    following, seen = Following(path), []
    assert following.more() == (False, [])
    written = 0
    while written < len(data):
        written += draw.randrange(1, 90)
        path.write_bytes(data[:written])
        anew, more = following.more()
        assert not anew
        seen += more
    assert seen == told == read_log(path)
    assert following.more() == (False, [])


@pytest.mark.parametrize(
    "more", [0, 1, 40, 500], ids=["none", "one line", "less than there was", "more than there was"]
)
def test_a_log_that_was_cut_back_is_told_anew(more: int, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = write(path, entries(0, 50))
    write(path, entries(50, 100), kept)
    following = Following(path)
    assert following.more() == (False, entries(0, 100))
    write(path, entries(50, 50 + more, "again"), kept)
    assert following.more() == (True, entries(0, 50) + entries(50, 50 + more, "again"))
    assert following.more() == (False, [])


def test_a_log_that_was_deleted_and_begun_anew_is_told_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, entries(0, 9))
    following = Following(path)
    following.more()
    path.unlink()
    assert following.more() == (True, [])
    write(path, entries(0, 3))
    assert following.more() == (False, entries(0, 3))


def test_looking_again_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    length = write(path, entries(0, 20_000))
    following = Following(path)
    following.more()
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr("hornbook.runs.logs.json.loads", lambda line: (parsed.append(line), loads(line))[1])
    write(path, entries(20_000, 20_003), length)
    assert following.more() == (False, entries(20_000, 20_003))
    assert len([line for line in parsed if line]) == 3
