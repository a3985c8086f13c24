from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from effort import long
from hornbook.base import files
from hornbook.base.errors import MachineError, UserError
from hornbook.base.ours import UNFINISHED, hidden
from hornbook.shards import prepare as preparing
from hornbook.shards.format import Shards, is_shards
from hornbook.shards.prepare import ShardsConfig, default_folder, open_or_prepare
from hornbook.shards.splits import val_fraction_for
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig

Prepare = Callable[..., Shards]
BYTE = TokenizerConfig(kind="byte")


def documents(shards: Shards, split: str) -> list[str]:
    """What the files of a split hold, cut at each end of text."""
    tokens = shards.split(split)
    ids = tokens.read(0, len(tokens))
    ends = np.flatnonzero(ids == shards.tokenizer.end_of_text)
    pieces = np.split(ids, ends + 1)
    assert len(pieces[-1]) == 0
    return [shards.tokenizer.decode(piece[:-1].tolist()) for piece in pieces[:-1]]


def flat(folder: Path, split: str, dtype: str = "<u2") -> np.ndarray:
    """The files of a split as numpy reads them."""
    return np.concatenate([np.fromfile(path, dtype) for path in sorted(folder.glob(f"{split}-*.bin"))])


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_manifest_tells_what_the_files_hold(kind: str, many_texts: Path, prepared: Prepare) -> None:
    shards = prepared(many_texts, kind, 0.2)
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    texts = {path.read_text() for path in many_texts.iterdir()}
    judge = tokenizers.Tokenizer.from_file(str(shards.folder / "tokenizer.json"))
    judge.encode_special_tokens = True
    found: set[str] = set()
    for split, facts in manifest["splits"].items():
        ids = flat(shards.folder, split)
        held = documents(shards, split)
        if kind != "char" or split == "train":  # a char tokenizer knows the letters of the training text only
            assert set(held) <= texts
            assert facts["bytes_of_text"] == sum(len(text.encode()) for text in held)
            assert facts["tokens"] == len(ids) == sum(len(judge.encode(text).ids) + 1 for text in held)
        assert facts["documents"] == len(held)
        assert split == "train" or 20 < len(held) < 60
        found.update(held)
        for shard in facts["shards"]:
            data = (shards.folder / shard["name"]).read_bytes()
            assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert kind == "char" or found == texts
    assert sum(facts["documents"] for facts in manifest["splits"].values()) == 200
    assert (manifest["dtype"], manifest["vocab_size"]) == ("uint16", judge.get_vocab_size())
    assert shards.damage() is None


def test_a_large_vocabulary_is_written_in_wider_numbers(tmp_path: Path, prepared: Prepare) -> None:
    letters = [chr(code) for code in range(0x20, 0x20000) if not 0xD800 <= code < 0xE000]
    for extra, dtype in ((0, "uint16"), (1, "uint32")):
        path = tmp_path / f"{extra}.txt"
        path.write_text("".join(letters[: 2**16 - 2 + extra]) * 2, newline="")
        shards = prepared(path, "char", 0.5, out=str(extra))
        assert (shards.vocab_size, shards.manifest["dtype"]) == (2**16 + extra, dtype)
        ids = flat(shards.folder, "train", {"uint16": "<u2", "uint32": "<u4"}[dtype])
        np.testing.assert_array_equal(shards.split("train").read(0, len(ids)), ids)
        assert ids.max() == shards.tokenizer.end_of_text


def test_the_split_stays_when_documents_are_added_or_renamed(many_texts: Path, prepared: Prepare) -> None:
    before = prepared(many_texts, val_fraction=0.2, out="before")
    held_back = set(documents(before, "val"))
    for number in range(200, 300):
        (many_texts / f"{number}.txt").write_text(f"More: {number}\n")
    for path in sorted(many_texts.iterdir())[::3]:
        path.rename(path.with_name("x" + path.name))
    after = prepared(many_texts, val_fraction=0.2, out="after")
    older = {text for text in documents(after, "val") if not text.startswith("More")}
    assert older == held_back
    assert held_back.isdisjoint(documents(after, "train"))


def test_a_small_share_of_a_few_large_documents_is_not_left_to_chance(many_texts: Path, prepared: Prepare) -> None:
    """One in a thousand of 200 documents by hash would most likely be none."""
    shards = prepared(many_texts, val_fraction=0.001)
    (val,) = documents(shards, "val")
    assert val
    assert documents(shards, "train")[-1] + val == (many_texts / "199.txt").read_text()


def test_a_single_file_is_split_at_one_place(some_text: str, text_file: Path, prepared: Prepare) -> None:
    shards = prepared(text_file)
    (train,), (val,) = documents(shards, "train"), documents(shards, "val")
    assert train + val == some_text
    assert len(val) == pytest.approx(0.1 * len(some_text), abs=1)


def test_the_share_held_back_shrinks_as_the_text_grows() -> None:
    shares = [val_fraction_for(10**power) for power in range(13)]
    assert shares == sorted(shares, reverse=True)
    assert val_fraction_for(0) == val_fraction_for(5_000_000) == 0.1
    assert val_fraction_for(10**9) * 10**9 == 500_000


def test_the_vocabulary_is_learned_from_the_training_text_only(tmp_path: Path, prepared: Prepare) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc" * 300 + "xyz" * 100)
    shards = prepared(path, "char", 0.25)
    assert shards.vocab_size == 3 + 2


def test_the_vocabulary_is_learned_from_no_more_text_than_allowed(many_texts: Path, prepared: Prepare) -> None:
    (many_texts / "zzz.txt").write_text("\u03a9" * 50)
    assert "\u03a9" not in prepared(many_texts, "char", 0.001, train_bytes=100).tokenizer.decode(range(20))
    some = prepared(many_texts, "char", 0.001, out="some", train_bytes=100)
    more = prepared(many_texts, "char", 0.001, out="more")
    assert some.vocab_size < more.vocab_size


def test_yardsticks_are_what_the_compressors_need(text_file: Path, prepared: Prepare) -> None:
    import bz2

    shards = prepared(text_file)
    text = "".join(documents(shards, "val")).encode()
    bits = shards.split_facts("val")["yardsticks"]
    between = 8 * len(bz2.compress(text)) / len(text)
    assert set(bits) == {"gzip -9", "xz -9"}
    assert all(0.5 * between < each < 2 * between for each in bits.values())
    # What the tokenizer drops, the compressors would still have to write: there is nothing to compare.
    assert "yardsticks" not in prepared(text_file, "wordpiece", out="words").split_facts("val")


def test_of_a_hundred_bytes_a_compressor_tells_nothing(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "short.txt").write_text("to be or not to be, " * 5)
    assert "yardsticks" not in prepared(tmp_path / "short.txt", "byte").split_facts("val")


def test_many_files_hold_what_one_would(many_texts: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(many_texts, val_fraction=0.2, out="whole")
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 100)
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 300)
    parts = prepared(many_texts, val_fraction=0.2, out="parts")
    assert len(parts.split_facts("train")["shards"]) > 10
    for split in ("train", "val"):
        np.testing.assert_array_equal(flat(parts.folder, split), flat(whole.folder, split))
        assert parts.split_facts(split)["tokens"] == whole.split_facts(split)["tokens"]


def test_the_fingerprint_is_of_the_tokens_and_not_of_place_or_time(many_texts: Path, prepared: Prepare) -> None:
    first = prepared(many_texts, out="first")
    for path in many_texts.iterdir():
        os.utime(path, (1, 1))
    assert prepared(many_texts, out="second").fingerprint == first.fingerprint
    assert prepared(many_texts, "char", out="third").fingerprint != first.fingerprint
    assert prepared(many_texts, val_fraction=0.4, out="fourth").fingerprint != first.fingerprint
    (many_texts / "000.txt").write_text("other")
    assert prepared(many_texts, out="fifth").fingerprint != first.fingerprint


def test_text_is_prepared_once_and_again_when_it_or_a_knob_changes(
    many_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []

    def counted(*args: Any, **more: Any) -> Shards:
        times.append(args)
        return original(*args, **more)

    original = preparing.prepare
    monkeypatch.setattr(preparing, "prepare", counted)
    data = str(many_texts)
    first = open_or_prepare(data, BYTE, ShardsConfig())
    assert open_or_prepare(data, BYTE, ShardsConfig()).fingerprint == first.fingerprint
    assert open_or_prepare(str(first.folder), BYTE, ShardsConfig()).folder == first.folder
    assert len(times) == 1
    (many_texts / "007.txt").write_text("edited\n")
    edited = open_or_prepare(data, BYTE, ShardsConfig())
    assert edited.fingerprint != first.fingerprint
    assert "edited\n" in documents(edited, "train") + documents(edited, "val")
    open_or_prepare(data, TokenizerConfig(kind="char"), ShardsConfig())
    open_or_prepare(data, BYTE, ShardsConfig(val_fraction=0.5))
    assert len(times) == 4


def test_what_was_left_unfinished_goes_after_a_week_unless_somebody_is_at_it_or_goes_on_with_it(
    many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    source = source_from_path(many_texts)
    place = default_folder(source, BYTE, ShardsConfig())
    days_ago = {"old": 8, "recent": 6, "locked": 9, "touched": 9, place.name: 9}
    for name, days in days_ago.items():
        folder = place.with_name(hidden(UNFINISHED, name))
        folder.mkdir(parents=True)
        (folder / "train-00000.bin").write_bytes(b"0" * 100)
        when = time.time() - days * 24 * 3600
        for path in (folder / "train-00000.bin", folder):
            os.utime(path, (when, when))
    (place.with_name(hidden(UNFINISHED, "touched")) / "unfinished.json").write_text("{}")
    taken = "import sys, fcntl; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True)"
    lock = place.with_name(hidden(UNFINISHED, "locked")) / ".lock"
    monkeypatch.setattr(preparing, "finish_folder", lambda *_: pytest.fail("stopped before the end"))
    with subprocess.Popen(
        [sys.executable, "-c", f"{taken}; input()", str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for path in (lock, lock.parent):
            os.utime(path, (1, 1))
        seen: list[set[str]] = []
        with monkeypatch.context() as patched:
            look = lambda *_: seen.append({path.name for path in place.parent.iterdir()})  # noqa: E731
            patched.setattr(preparing, "empty_unfinished", look)
            with pytest.raises(pytest.fail.Exception):
                open_or_prepare(str(many_texts), BYTE, ShardsConfig())
        assert seen == [{hidden(UNFINISHED, name) for name in ("recent", "locked", "touched", place.name)}]
        other.communicate(b"\n")


def test_prepared_data_that_is_damaged_is_made_again(many_texts: Path) -> None:
    first = open_or_prepare(str(many_texts), BYTE, ShardsConfig())
    for spoil in (
        lambda: os.truncate(first.folder / "train-00000.bin", 10),
        lambda: (first.folder / "val-00000.bin").unlink(),
        lambda: turn_a_bit(first.folder / "train-00000.bin"),
        lambda: turn_a_bit(first.folder / "val-00000.bin"),
        lambda: (first.folder / "tokenizer.json").write_text("{}"),
        lambda: (first.folder / "tokenizer.json").unlink(),
        lambda: (first.folder / "manifest.json").write_text("{}"),
        lambda: (first.folder / "manifest.json").unlink(),
    ):
        spoil()
        again = open_or_prepare(str(many_texts), BYTE, ShardsConfig())
        assert (again.folder, again.fingerprint, again.damage()) == (first.folder, first.fingerprint, None)
    # The last two left nothing by which what was there could be known for ours.
    assert len(list(first.folder.parent.glob(f"{first.folder.name}.set-aside*"))) == 2


def turn_a_bit(path: Path) -> None:
    """The id that it belongs to becomes another one of the vocabulary."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4 * 2] ^= 1
    path.write_bytes(data)


def test_prepare_reads_every_byte_though_nothing_looks_touched(
    many_texts: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit tells neither size nor time; opening the shards for a run does not see it."""
    first = prepared(many_texts)
    monkeypatch.setattr("hornbook.shards.verified._facts", lambda path: [path.stat().st_size])
    turn_a_bit(first.folder / "train-00000.bin")
    first.note_written()
    open_or_prepare(str(first.folder), BYTE, ShardsConfig())
    assert prepared(many_texts).damage() is None
    turn_a_bit(first.folder / "train-00000.bin")
    assert first.damage() == "train-00000.bin has changed since it was written"
    with pytest.raises(UserError, match=r"train-00000.bin has changed since .*hornbook prepare TEXT --out FOLDER"):
        open_or_prepare(str(first.folder), BYTE, ShardsConfig())


def test_files_are_read_whole_again_only_when_they_look_touched(
    many_texts: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = prepared(many_texts, val_fraction=0.2)
    read: list[str] = []
    really = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: (read.append(path.name), really(path))[1])

    def names_read(folder: Path) -> list[str]:
        read.clear()
        open_or_prepare(str(folder), BYTE, ShardsConfig())
        return read

    assert names_read(shards.folder) == []  # hashed as they were written
    os.utime(shards.folder / "val-00000.bin")
    assert names_read(shards.folder) == ["val-00000.bin"]
    assert names_read(shards.folder) == []
    copy = shutil.copytree(shards.folder, shards.folder.with_name("copy"))
    assert names_read(copy) == ["train-00000.bin", "val-00000.bin"]
    assert names_read(copy) == names_read(shards.folder) == []
    assert Shards.open(copy).damage() is None
    assert len(read) == 2
    (files.home() / "verified.json").write_text("{")
    assert names_read(copy) == ["train-00000.bin", "val-00000.bin"]


def test_a_cache_that_cannot_be_written_is_read(many_texts: Path, prepared: Prepare, monkeypatch: Any) -> None:
    shards = prepared(many_texts)
    monkeypatch.setenv("HORNBOOK_HOME", str(many_texts / "000.txt" / "home"))
    assert open_or_prepare(str(shards.folder), BYTE, ShardsConfig()).fingerprint == shards.fingerprint


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=long)], ids=["prepared before", "new"])
def test_a_crash_at_any_step_leaves_nothing_that_passes_for_shards(
    before: bool, tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "a.txt"
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 40)
    really, left = files._step, 0

    def crash_at_last(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(17)
        return really(kind, path, act)

    contents = {"old": "an older text " * 5, "new": "a newer text " * 5}
    crashes = 0
    for number in range(100):
        out = f"shards{number}"
        old = None
        if before:
            text.write_text(contents["old"])
            old = prepared(text, out=out).fingerprint
        text.write_text(contents["new"])
        child = os.fork()
        if not child:
            try:
                left, files._step = number, crash_at_last
                prepared(text, out=out)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        folder = tmp_path / out
        if is_shards(folder):
            shards = Shards.open(folder)
            assert shards.damage() is None
            assert "".join(documents(shards, "train") + documents(shards, "val")) in contents.values()
        else:
            assert not folder.exists()
        new = prepared(text, out=out)
        assert new.damage() is None
        assert new.fingerprint != old
        files.remove_leftovers(tmp_path)
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        if status == 0:
            break
        assert status == 17
        crashes += 1
    assert 20 < crashes < 99


def test_a_full_disk_while_preparing_is_one_line_and_leaves_nothing(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text " * 20)
    really, left = files._step, 0

    def full_at_last(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(28, "No space left on device", str(path))
        return really(kind, path, act)

    monkeypatch.setattr(files, "_step", full_at_last)
    failures = 0
    for number in range(100):
        left = number
        try:
            prepared(text, out=f"shards{number}")
        except MachineError as error:
            assert len(error.mistakes) == 1  # noqa: PT017
            failures += 1
        else:
            break
        left = 1_000
        found = [path for path in tmp_path.iterdir() if path != text]
        assert all(Shards.open(path).damage() is None for path in found)
        for path in found:
            shutil.rmtree(path)
    assert failures > 10


def test_an_empty_text_and_a_binary_file_are_refused_and_leave_nothing(tmp_path: Path, prepared: Prepare) -> None:
    for data in (b"", b"\0\1"):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.txt"):
            prepared(tmp_path / "a.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_text_of_one_letter_is_prepared(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "a.txt").write_text("x")
    shards = prepared(tmp_path / "a.txt", "bpe")
    assert documents(shards, "train") + documents(shards, "val") == ["x"]


def test_a_change_of_knobs_or_text_changes_the_place_in_the_cache(many_texts: Path) -> None:
    def place(**knobs: Any) -> Path:
        return default_folder(source_from_path(many_texts), TokenizerConfig(**knobs), ShardsConfig())

    places = {place(), place(kind="byte"), place(vocab_size=500), place(train_bytes=5)}
    (many_texts / "000.txt").write_text("other")
    assert len(places | {place()}) == 5
    assert place().is_relative_to(files.home())
