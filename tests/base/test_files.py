from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effort import long
from hornbook.base import files
from hornbook.base.errors import LONGEST_LINE, MachineError, UserError
from hornbook.base.ours import Hidden
from hornbook.base.unfinished import BinaryWriter, finish_folder, unfinished_folder
from hornbook.runs.logs import Log, read_log

OLD, NEW = b"old" * 50, b"new" * 70
CRASHED = 17


def write_folder(path: Path, content: bytes) -> None:
    with files.staged_folder(path, {"step": len(content)}) as staging:
        (staging / "inner").mkdir()
        (staging / "a.bin").write_bytes(content)
        files.write_bytes(staging / "inner" / "b.bin", content[::-1])


def write_manifested_folder(path: Path, content: bytes) -> None:
    manifest: dict[str, Any] = {}
    with unfinished_folder(path, "state") as place:
        writer = BinaryWriter(place / "a.bin")
        writer.write(content)
        manifest["a.bin"] = writer.close()
        finish_folder(place, path, "state", "list.json", manifest, listed)


def listed(folder: Path) -> set[str] | None:
    manifest = folder / "list.json"
    return {"list.json", "a.bin"} if manifest.is_file() and files.is_unchanged(files.read_json(manifest)) else None


def write_through_library(path: Path, content: bytes) -> None:
    with files.staged_file(path, replace=True) as staging:
        staging.write_bytes(content)


def read_folder(path: Path) -> bytes | None:
    if not path.exists():
        return None
    assert files.damage(path) is None
    content = (path / "a.bin").read_bytes()
    assert (path / "inner" / "b.bin").read_bytes() == content[::-1]
    assert files.manifest_notes(path) == {"step": len(content)}
    return content


def read_manifested_folder(path: Path) -> bytes | None:
    if not path.exists():
        return None
    manifest = files.read_json(path / "list.json")
    assert files.is_unchanged(manifest)
    assert files.sha256(path / "a.bin") == manifest["a.bin"]
    return (path / "a.bin").read_bytes()


def read_file(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


Write = Callable[[Path, bytes], None]
Read = Callable[[Path], bytes | None]
WAYS: dict[str, tuple[Write, Read]] = {
    "write_bytes": (files.write_bytes, read_file),
    "staged_file": (write_through_library, read_file),
    "staged_folder": (write_folder, read_folder),
    "unfinished_folder": (write_manifested_folder, read_manifested_folder),
}
every_way = pytest.mark.parametrize(("write", "read"), WAYS.values(), ids=WAYS)


class Steps:
    """Stands for `files._step`: counts the steps, and at one of them does something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def count(self, work: Callable[[], object]) -> int:
        taken: list[str] = []
        with self._monkeypatch.context() as patched:
            patched.setattr(files, "_step", lambda kind, path, act: (taken.append(kind), act())[1])
            work()
        return len(taken)

    def crash_at(self, number: int, after: bool, work: Callable[[], object]) -> None:
        """Run `work` in a process that is gone, with nothing cleaned up, before or after its step `number`."""
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CRASHED
            return
        left = number

        def step(kind: str, path: Path, act: Callable[[], Any]) -> Any:
            nonlocal left
            left -= 1
            if left < 0 and not after:
                os._exit(CRASHED)
            result = act()
            if left < 0:
                os._exit(CRASHED)
            return result

        try:
            files._step = step
            work()
        finally:
            os._exit(1)

    def fail_at(self, number: int, code: int, work: Callable[[], object]) -> None:
        left = number

        def step(kind: str, path: Path, act: Callable[[], Any]) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(code, os.strerror(code), str(path))
            return act()

        with self._monkeypatch.context() as patched:
            patched.setattr(files, "_step", step)
            work()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def fresh(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def only_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@every_way
def test_what_was_written_is_there_and_nothing_else(write: Write, read: Read, tmp_path: Path) -> None:
    for content in (OLD, NEW, b""):
        write(tmp_path / "it", content)
        assert read(tmp_path / "it") == content
        assert only_in(tmp_path) == {"it"}


@every_way
@pytest.mark.parametrize("before", [OLD, None], ids=["replacing", "new"])
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=long)], ids=["before", "after"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    write: Write, read: Read, before: bytes | None, after: bool, steps: Steps, tmp_path: Path
) -> None:
    def prepared(name: str) -> Path:
        final = fresh(tmp_path, name) / "it"
        if before is not None:
            write(final, before)
        return final

    rehearsed = prepared("rehearsal")
    found = set()
    for number in range(steps.count(lambda: write(rehearsed, NEW))):
        final = prepared(str(number))
        steps.crash_at(number, after, lambda final=final: write(final, NEW))
        if (at_once := read(final)) is not None:
            assert at_once in (before, NEW)
        twin = fresh(tmp_path, f"{number}-again") / "it"
        shutil.copytree(final.parent, twin.parent, dirs_exist_ok=True)
        write(twin, NEW)
        assert read(twin) == NEW
        files.remove_leftovers(final.parent)
        found.add(read(final))
        assert only_in(final.parent) <= {"it"}
        write(final, NEW)
        assert read(final) == NEW
    assert found <= {before, NEW}
    assert NEW in found or not after


@every_way
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_one_line_and_leaves_the_old_or_the_new(
    write: Write, read: Read, code: int, steps: Steps, tmp_path: Path
) -> None:
    rehearsed = fresh(tmp_path, "rehearsal") / "it"
    write(rehearsed, OLD)
    for number in range(steps.count(lambda: write(rehearsed, NEW))):
        final = fresh(tmp_path, str(number)) / "it"
        write(final, OLD)
        with pytest.raises(MachineError) as caught:
            steps.fail_at(number, code, lambda final=final: write(final, NEW))
        assert caught.value.exit_code == 1
        assert len(caught.value.mistakes) == 1
        assert len(str(caught.value)) <= LONGEST_LINE
        assert read(final) in (OLD, NEW)
        left = only_in(final.parent) - {"it"}
        assert not {name for name in left if name.startswith(".staged")}
        if read(final) == OLD:
            assert not left


def test_a_library_that_hides_a_full_disk_is_seen_through(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="full"), files.staged_folder(tmp_path / "it"):
        raise RuntimeError("SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)")
    assert not only_in(tmp_path)


def interrupt_writing(path: Path) -> None:
    path.write_bytes(NEW)
    raise KeyboardInterrupt


@every_way
def test_everything_is_safely_on_the_disk_before_it_takes_its_name(
    write: Write, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "_step", lambda kind, path, act: (taken.append((kind, path.name)), act())[1])
    final = tmp_path / "it"
    write(final, NEW)
    named = max(place for place, step in enumerate(taken) if step == ("rename", "it"))
    synced = [name for kind, name in taken[:named] if kind == "fsync"]
    written = [path.name for path in final.rglob("*") if path.is_file()] if final.is_dir() else [final.name]
    assert all(any(name.endswith(each) for name in synced) for each in written)
    assert ("fsync", tmp_path.name) in taken[named:]


@every_way
def test_an_interrupted_writer_cleans_up(write: Write, read: Read, tmp_path: Path) -> None:
    write(tmp_path / "it", OLD)
    for manager in (files.staged_file, files.staged_folder):
        with pytest.raises(KeyboardInterrupt), manager(tmp_path / "it") as staging:
            interrupt_writing(staging / "part" if staging.is_dir() else staging)
    assert read(tmp_path / "it") == OLD
    assert only_in(tmp_path) == {"it"}


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=long)], ids=["before", "after"])
def test_a_crash_in_removing_leaves_all_or_nothing(after: bool, steps: Steps, tmp_path: Path) -> None:
    rehearsed = fresh(tmp_path, "rehearsal") / "it"
    write_folder(rehearsed, OLD)
    for number in range(steps.count(lambda: files.remove(rehearsed))):
        final = fresh(tmp_path, str(number)) / "it"
        write_folder(final, OLD)
        steps.crash_at(number, after, lambda final=final: files.remove(final))
        assert read_folder(final) in (OLD, None)
        files.remove_leftovers(final.parent)
        assert only_in(final.parent) <= {"it"}


def test_removing_takes_files_links_and_folders_but_not_what_a_link_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    write_folder(kept, OLD)
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(OLD)
    write_folder(tmp_path / "folder", OLD)
    for name in ("link", "broken", "file", "folder", "never there"):
        files.remove(tmp_path / name)
    assert only_in(tmp_path) == {"kept"}
    assert read_folder(kept) == OLD


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=long)], ids=["before", "after"])
def test_a_crash_in_logging_loses_no_line_that_was_synced(after: bool, steps: Steps, tmp_path: Path) -> None:
    def work(path: Path) -> None:
        log = Log(path, keep_bytes=len(kept))
        for number in range(3):
            log.write({"step": number})
            log.sync()
        log.close()

    kept = b'{"step": "kept"}\n'
    rehearsed = tmp_path / "rehearsal"
    rehearsed.write_bytes(kept)
    for number in range(steps.count(lambda: work(rehearsed))):
        path = tmp_path / str(number)
        path.write_bytes(kept + b'{"step": "after the checkpoint"}\n{"ste')
        steps.crash_at(number, after, lambda path=path: work(path))
        entries = read_log(path)
        assert entries[0] == {"step": "kept"}
        work(path)
        assert read_log(path) == [{"step": "kept"}, {"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_under_a_log_is_one_line(code: int, steps: Steps, tmp_path: Path) -> None:
    def work() -> None:
        log = Log(tmp_path / "log", keep_bytes=0)
        log.write({"step": 1})
        log.sync()
        log.close()

    for number in range(steps.count(work)):
        with pytest.raises(MachineError):
            steps.fail_at(number, code, work)


def test_a_log_grows_from_where_it_is_cut_back_to(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.write({"step": 1, "text": "zwölf\n"})
    length = log.sync()
    log.write({"step": 2})
    log.close()
    assert length == len(path.read_bytes().splitlines(keepends=True)[0])
    again = Log(path, keep_bytes=length)
    again.write({"step": 3})
    again.close()
    assert read_log(path) == [{"step": 1, "text": "zwölf\n"}, {"step": 3}]
    Log(path).close()
    assert read_log(path) == []


def test_a_log_that_someone_shortened_is_not_filled_with_zeros(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", keep_bytes=1_000)
    log.write({"step": 1})
    log.close()
    (tmp_path / "log").write_bytes(b"")
    log = Log(tmp_path / "log", keep_bytes=1_000)
    log.write({"step": 2})
    log.close()
    assert read_log(tmp_path / "log") == [{"step": 2}]


def test_a_line_that_is_cut_off_or_no_entry_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_log(path) == []
    path.write_bytes(b'{"a": 1}\n[1]\n\n\xff\xfe\n{"b": 2}\n{"c": ')
    assert read_log(path) == [{"a": 1}, {"b": 2}]


def any_file(folder: Path, chance: random.Random) -> Path:
    return chance.choice([folder / "a.bin", folder / "inner" / "b.bin", folder / files.MANIFEST])


def flip_a_bit(folder: Path, chance: random.Random) -> None:
    path = any_file(folder, chance)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(folder: Path, chance: random.Random) -> None:
    path = any_file(folder, chance)
    os.truncate(path, chance.randrange(path.stat().st_size))


def lengthen(folder: Path, chance: random.Random) -> None:
    path = any_file(folder, chance)
    path.write_bytes(path.read_bytes() + b"x")


def zero(folder: Path, chance: random.Random) -> None:
    path = any_file(folder, chance)
    data = path.read_bytes()
    start = chance.randrange(len(data))
    path.write_bytes(data[:start] + bytes(len(data) - start))


def empty(folder: Path, chance: random.Random) -> None:
    any_file(folder, chance).write_bytes(b"")


def lose(folder: Path, chance: random.Random) -> None:
    any_file(folder, chance).unlink()


def swap(folder: Path, chance: random.Random) -> None:
    first, second, between = folder / "a.bin", folder / "inner" / "b.bin", folder / "between"
    first.rename(between)
    second.rename(first)
    between.rename(second)


def link(folder: Path, chance: random.Random) -> None:
    path = any_file(folder, chance)
    moved = folder.parent / f"moved{chance.random()}"
    path.rename(moved)
    path.symlink_to(moved)


def edit_the_manifest(folder: Path, chance: random.Random) -> None:
    manifest = json.loads((folder / files.MANIFEST).read_text())
    data = b"other" * chance.randrange(1, 9)
    (folder / "a.bin").write_bytes(data)
    manifest["files"]["a.bin"] = {"bytes": len(data), "sha256": files.sha256(folder / "a.bin")}
    (folder / files.MANIFEST).write_text(json.dumps(manifest, indent=2))


def take_the_manifest_of_another(folder: Path, chance: random.Random) -> None:
    other = folder.parent / f"other{chance.random()}"
    write_folder(other, chance.randbytes(9))
    shutil.copy(other / files.MANIFEST, folder / files.MANIFEST)


def scramble_the_manifest(folder: Path, chance: random.Random) -> None:
    texts = [
        "",
        "null",
        "[]",
        "{}",
        '{"sha256": 1}',
        '{"files": {}}',
        "[" * 50_000,
        "\0" * 9,
        '{"sha256": {}, "files": 3}',
    ]
    (folder / files.MANIFEST).write_text(chance.choice(texts))


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_bit, truncate, lengthen, zero, empty, lose, swap, link, edit_the_manifest,
        take_the_manifest_of_another, scramble_the_manifest,
    ],
    ids=lambda harm: harm.__name__,
)  # fmt: skip
def test_damage_is_found(harm: Callable[[Path, random.Random], None], tmp_path: Path) -> None:
    for seed in range(20):
        folder = tmp_path / str(seed)
        chance = random.Random(seed)
        write_folder(folder, chance.randbytes(chance.randrange(1, 300)) + b"end")
        assert files.damage(folder) is None
        harm(folder, chance)
        found = files.damage(folder)
        assert found, seed
        assert "\n" not in found


def test_a_folder_that_was_never_sealed_is_damaged(tmp_path: Path) -> None:
    assert "never finished" in str(files.damage(tmp_path))
    assert files.damage(tmp_path / "none")
    write_folder(tmp_path / "it", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "it")
    assert files.damage(tmp_path / "link")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff", b"\0", b"[" * 100_000])
def test_what_is_no_json_object_is_the_users_mistake(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError) as caught:
        files.read_json(tmp_path / "a.json")
    assert len(caught.value.mistakes) == 1
    with pytest.raises(UserError, match="no such file"):
        files.read_json(tmp_path / "b.json")


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    value = {"ä": [1, 0.1, None, True, "\n"], "inner": {"x": "\u2028"}}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert "ä" in (tmp_path / "a.json").read_text(encoding="utf-8")


def hold(folder: Path, says: Any) -> None:
    with files.locked(folder):
        says.send("held")
        says.recv()


@pytest.mark.skipif(sys.platform == "win32", reason="locks need fcntl")
def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    here, there = multiprocessing.get_context("fork").Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, there), daemon=True)
    holder.start()
    assert here.recv() == "held"
    with pytest.raises(UserError, match="another process"), files.locked(tmp_path):
        pass
    holder.kill()
    holder.join()
    with files.locked(tmp_path):
        pass


def test_a_file_where_a_folder_should_be_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(UserError, match="--out"):
            files.make_folder(path)


@pytest.mark.parametrize(("place", "mend"), [("home/shards", "set HORNBOOK_HOME to another"), ("out", "another --out")])
def test_where_nothing_may_be_written_the_advice_is_for_that_place(
    place: str, mend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    path = tmp_path / place / "it"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(files, "_step", forbidden)
    with pytest.raises(UserError, match=f"it: no permission to write here; .*{mend}"):
        files.make_folder(path)
    with pytest.raises(MachineError, match=f"it: no permission to write here; .*{mend}"):
        files.write_bytes(path, NEW)


def test_a_hash_is_the_hash_that_others_compute(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "abc") == known
    writer = BinaryWriter(tmp_path / "piecewise")
    for piece in (b"a", b"", b"bc"):
        writer.write(piece)
    assert (writer.close(), writer.bytes_written) == (known, 3)


def test_a_small_file_is_read_at_once_and_others_are_left_to_be_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for size in (1, 9):
        path.write_bytes(b"\r" * size)
        assert files.read_if_small(path, 10) == path.read_bytes()
    for data in (b"", b"x" * 10, b"x" * 11):
        path.write_bytes(data)
        assert files.read_if_small(path, 10) is None
    assert files.read_if_small(tmp_path, 10**6) is None
    assert files.read_if_small(tmp_path / "missing", 10) is None


def test_free_space_is_told_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert 0 < files.free_bytes(tmp_path / "a" / "b") <= shutil.disk_usage(tmp_path).total


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    assert files.home() == tmp_path
    monkeypatch.delenv("HORNBOOK_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in files.home().parents


def test_leftovers_of_a_live_process_are_spared(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    living = tmp_path / str(Hidden("staged", "one", os.getppid()))
    left = tmp_path / str(Hidden("staged", "two", int(dead.stdout)))
    for folder in (living, left):
        folder.mkdir()
    files.remove_leftovers(tmp_path, shared=True)
    assert living.is_dir()
    assert not left.exists()
    files.remove_leftovers(tmp_path)  # where nobody else can be at work
    assert not living.exists()
