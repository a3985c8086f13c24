"""Preparation as a large text meets it: cut off, in company, within bounds of memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effort import long, tries
from hornbook.base import files
from hornbook.base.errors import MachineError
from hornbook.base.ours import UNFINISHED, Hidden, hidden
from hornbook.base.unfinished import unfinished_folder
from hornbook.shards import prepare as preparing
from hornbook.shards import writer as writing
from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.shards.telling import report
from hornbook.text import encoder as encoding
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CRASHED = 17


@pytest.fixture
def texts(tmp_path: Path, some_text: str) -> Path:
    """A folder of 400 documents of about 400 bytes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(400):
        place = number * 237 % 90_000
        (folder / f"{number:03}.txt").write_text(f"{number}\n{some_text[place : place + 400]}", newline="")
    return folder


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 5_000)
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 3_000)


def prepared(path: Path, out: Path, kind: str = "bpe", **knobs: Any) -> Shards:
    config = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 400 if kind == "bpe" else None, **knobs})
    return prepare(source_from_path(path), config, ShardsConfig(val_fraction=0.1, test_fraction=0.1), out)


def hashes(shards: Shards) -> dict[str, str]:
    assert shards.damage() is None
    facts = shards.manifest["splits"].values()
    return {shard["name"]: shard["sha256"] for split in facts for shard in split["shards"]}


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["bpe", "byte", "wordpiece"])
def test_crashed_at_random_again_and_again_it_ends_with_the_same_hashes(
    kind: str, texts: Path, tmp_path: Path, small_files: None
) -> None:
    whole = prepared(texts, tmp_path / "whole", kind)
    assert len(hashes(whole)) > 5
    really, random_ = files._step, random.Random(kind)

    def crash_after(left: int) -> None:
        def step(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(CRASHED)
            return really(*arguments)

        files._step = step
        prepared(texts, tmp_path / "cut", kind)

    crashes = 0
    while crashes < tries(3, 20):
        status = in_child(lambda: crash_after(random_.randrange(60)))
        if status == 0:  # it came to its end before a crash: once more from the beginning
            assert hashes(Shards.open(tmp_path / "cut")) == hashes(whole)
            shutil.rmtree(tmp_path / "cut")
            continue
        assert status == CRASHED
        crashes += 1
    cut = prepared(texts, tmp_path / "cut", kind)
    assert hashes(cut) == hashes(whole)
    same = ("splits", "fingerprint", "reading", "split_rule", "tokenizer_fingerprint")
    assert {name: cut.manifest[name] for name in same} == {name: whole.manifest[name] for name in same}


COMMAND = """
import sys
from hornbook.cli import main
from hornbook.shards import prepare
prepare.TOKENS_PER_SHARD, prepare.BATCH_CHARACTERS = 20_000, 10_000
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


def command(texts: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [str(texts), "--out", str(out), "--tokenizer.kind", "char", "--shards.val-fraction", "0.1", *more]
    return subprocess.Popen([sys.executable, "-u", "-c", COMMAND, *words], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def more_text(texts: Path, some_text: str) -> Path:
    for number in range(400):
        (texts / f"{number:03}.txt").write_text(f"{number}\n{some_text[number * 100 : number * 100 + 20_000]}")
    return texts


def test_a_killed_command_goes_on_and_ends_with_the_same_hashes(some_text: str, tmp_path: Path) -> None:
    """Again and again, at any moment from the start of its process to the end of its work."""
    pile = tmp_path / "pile.jsonl.zst"
    pile_shaped(pile, 3, some_text)
    began = time.monotonic()
    assert command(pile, tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began
    whole = Shards.open(tmp_path / "whole")
    assert len(hashes(whole)) > 20
    place = tmp_path / hidden(UNFINISHED, "cut") / writing.STATE
    chance, kills, reached = random.Random(1), 0, set()
    while kills < tries(1, 20):
        process = command(pile, tmp_path / "cut")
        try:
            process.communicate(timeout=chance.uniform(0.3, 1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            reached.add(json.loads(place.read_text())["items"] if place.exists() else 0)
            continue
        assert process.returncode == 0  # done before it could be killed: once more from the beginning
        assert hashes(Shards.open(tmp_path / "cut")) == hashes(whole)
        shutil.rmtree(tmp_path / "cut")
    assert len(reached) > tries(0, 5)
    process = command(pile, tmp_path / "cut")
    process.communicate()
    assert process.returncode == 0
    assert hashes(Shards.open(tmp_path / "cut")) == hashes(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"pile.jsonl.zst", "whole", "cut"}


@long
def test_two_at_once_make_it_once(more_text: Path, tmp_path: Path) -> None:
    both = [command(more_text, tmp_path / "shards") for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("waiting for it" in each for each in said) <= 1
    shards = Shards.open(tmp_path / "shards")
    assert shards.damage() is None
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "shards"}


def test_who_comes_second_waits_and_takes_what_the_first_made(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    with unfinished_folder(out, writing.STATE) as place:
        second = command(texts, out)
        assert second.stdout is not None
        assert any("waiting for it" in line for line in second.stdout)
        assert second.poll() is None
        assert not out.exists()
        assert [path.name for path in place.iterdir()] == [".lock"]
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert Shards.open(out).damage() is None


def test_a_full_disk_keeps_what_was_finished(
    texts: Path, tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(texts, tmp_path / "whole")
    really, opened = files._step, 0

    def full(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        nonlocal opened
        opened += path.name == "train-00003.bin"
        if opened:
            raise OSError(28, "No space left on device", str(path))
        return really(kind, path, act)

    monkeypatch.setattr(files, "_step", full)
    with pytest.raises(MachineError, match="full"):
        prepared(texts, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    state = files.read_json(tmp_path / hidden(UNFINISHED, "cut") / writing.STATE)
    assert 0 < state["items"] < 400
    monkeypatch.setattr(files, "_step", really)
    assert hashes(prepared(texts, tmp_path / "cut")) == hashes(whole)


def test_what_will_not_fit_on_the_disk_is_not_begun(
    texts: Path, tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in texts.iterdir())
    monkeypatch.setattr(files, "free_bytes", lambda _: 2 * size)  # of which a twentieth of the disk stays free
    with pytest.raises(MachineError, match=r"cut: .* more bytes do not fit on the disk.*larger disk"):
        prepared(texts, tmp_path / "cut", "byte")
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


@pytest.mark.parametrize("begun", [False, True], ids=["leaves nothing", "keeps what was finished"])
def test_preparation_stops_before_the_disk_is_full_and(
    begun: bool, texts: Path, tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(texts, tmp_path / "whole")
    asked = 0

    def others_fill_the_disk(_: Path) -> int:
        nonlocal asked
        asked += 1
        return 10**12 if asked < (30 if begun else 6) else 1_000

    with monkeypatch.context() as patched:
        patched.setattr(files, "free_bytes", others_fill_the_disk)
        where = r"\.unfinished-\w+-cut: .* or delete this folder" if begun else r"cut: .* choose a larger disk"
        with pytest.raises(MachineError, match=where):
            prepared(texts, tmp_path / "cut")
    left = {path.name for path in tmp_path.iterdir()} - {"texts", "whole"}
    assert left == ({hidden(UNFINISHED, "cut")} if begun else set())
    assert hashes(prepared(texts, tmp_path / "cut")) == hashes(whole)


@pytest.fixture
def nearly_done(texts: Path, tmp_path: Path, small_files: None) -> Path:
    """What a preparation leaves that crashed before its last step."""

    def crash() -> None:
        preparing.finish_folder = lambda *arguments: os._exit(CRASHED)
        prepared(texts, tmp_path / "cut")

    assert in_child(crash) == CRASHED
    return tmp_path / hidden(UNFINISHED, "cut")


HARMS: list[Callable[[Path], object]] = [
    lambda place: os.truncate(place / "train-00000.bin", 3),
    lambda place: (place / "train-00001.bin").unlink(),
    lambda place: (place / "tokenizer.json").write_text("{}"),
    lambda place: (place / writing.STATE).write_text('{"key"'),
    lambda place: (place / writing.STATE).write_text("{}"),
    lambda place: (place / str(Hidden("staged", writing.STATE, 1))).write_text("{}"),
]


def test_work_that_was_damaged_while_it_lay_there_is_done_again(nearly_done: Path, texts: Path, tmp_path: Path) -> None:
    whole = prepared(texts, tmp_path / "whole")
    kept = shutil.copytree(nearly_done, tmp_path / "kept")
    for harm in HARMS:
        harm(nearly_done)
        assert hashes(prepared(texts, tmp_path / "cut")) == hashes(whole)
        shutil.rmtree(tmp_path / "cut")
        shutil.copytree(kept, nearly_done)


def test_text_that_changed_since_is_not_gone_on_with(nearly_done: Path, texts: Path, tmp_path: Path) -> None:
    (texts / "000.txt").write_text("other\n" * 50)
    assert hashes(prepared(texts, tmp_path / "cut")) == hashes(prepared(texts, tmp_path / "whole"))


def test_the_same_text_is_not_prepared_again(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(texts, tmp_path / "shards")
    monkeypatch.setattr("hornbook.text.learning.train_tokenizer", None)
    assert prepared(texts, tmp_path / "shards").fingerprint == first.fingerprint
    (texts / "000.txt").write_text("other")
    with pytest.raises(TypeError):
        prepared(texts, tmp_path / "shards")
    assert Shards.open(tmp_path / "shards").fingerprint == first.fingerprint


@pytest.mark.parametrize("after", [0, 3])
def test_where_the_fast_encoder_fails_tokenizers_does_it_over(
    after: int, texts: Path, tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    fast = prepared(texts, tmp_path / "fast")
    assert fast.manifest["report"]["encoder"] == "gigatoken"
    really, left = encoding._Gigatoken._encode, after

    def differs(self: Any, documents: Any) -> Any:
        nonlocal left
        left -= 1
        ids, places = really(self, documents)
        return (ids if left >= 0 else ids[::-1].copy()), places

    monkeypatch.setattr(encoding._Gigatoken, "_encode", differs)
    said: list[str] = []
    progress = preparing.Progress(live=False)
    monkeypatch.setattr(progress, "note", said.append)
    config = TokenizerConfig(kind="bpe", vocab_size=400)
    shards = ShardsConfig(val_fraction=0.1, test_fraction=0.1)
    slow = prepare(source_from_path(texts), config, shards, tmp_path / "slow", progress)
    assert slow.manifest["report"]["encoder"] == "tokenizers"
    assert hashes(slow) == hashes(fast)
    assert [line for line in said if "differs" in line and "going on with tokenizers" in line]
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    without = prepare(source_from_path(texts), config, shards, tmp_path / "without", progress)
    assert hashes(without) == hashes(fast)
    assert "gigatoken is not installed; going on with tokenizers, which is slower" in said


def test_the_report_adds_up(texts: Path, tmp_path: Path) -> None:
    (texts / "more.txt").write_bytes(b"half \xff of it \xfe")
    from hornbook.text.documents import TextConfig

    config = TokenizerConfig(kind="byte")
    source = source_from_path(texts, TextConfig(errors="replace", max_documents=500))
    shards = prepare(source, config, ShardsConfig(val_fraction=0.3), tmp_path / "shards")
    facts, reading = shards.manifest["report"], shards.manifest["reading"]
    sizes = [len(path.read_bytes().decode(errors="replace").encode()) for path in texts.iterdir()]
    assert (facts["documents"], facts["bytes_of_text"]) == (401, sum(sizes))
    assert facts["tokens"] == sum(sizes) + 401
    assert facts["bytes_per_token"] == pytest.approx(sum(sizes) / (sum(sizes) + 401))
    assert (facts["duplicates"], reading["replaced_characters"]) == (0, 2)
    assert facts["bytes_per_second"] == pytest.approx(facts["bytes_of_text"] / facts["seconds"])
    lines = "\n".join(report(shards.manifest))
    for part in ("train", "val", "bytes per token", "a second", "2 characters replaced"):
        assert part in lines


MEASURE = """
import sys
from pathlib import Path
from hornbook.shards import prepare
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig
def peak():
    # Not what getrusage tells: there a child begins with its parent's peak.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before = peak()
source = source_from_path(Path(sys.argv[1]))
config = TokenizerConfig(kind="bpe", vocab_size=2000, train_bytes=2_000_000)
prepare.prepare(source, config, prepare.ShardsConfig(), Path(sys.argv[2]))
print(before, peak())
"""


def pile_shaped(path: Path, megabytes: int, text: str) -> None:
    """Documents of many lengths, most short, as .jsonl.zst."""
    lengths = random.Random(1)
    number = written = 0
    with zstd.open(path, "wb", level=1) as file:
        while written < megabytes * 1_000_000:
            length = min(int(lengths.lognormvariate(7.5, 1.5)), 400_000)
            place = lengths.randrange(len(text))
            body = f"{number} " + (text[place:] + text * (length // len(text) + 1))[:length]
            file.write(json.dumps({"text": body, "meta": {"pile_set_name": "Made"}}).encode() + b"\n")
            written += len(body.encode())
            number += 1


@long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from Linux's /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path, some_text: str) -> None:
    sizes = [int(each) for each in os.environ.get("HORNBOOK_PILE_MEGABYTES", "200,400").split(",")]
    peaks = []
    for megabytes in sizes:
        path = tmp_path / f"{megabytes}.jsonl.zst"
        pile_shaped(path, megabytes, some_text)
        words = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / str(megabytes))]
        ended = subprocess.run(words, capture_output=True, text=True, check=True)
        before, peak = map(float, ended.stdout.split("\n")[-2].split())
        print(f"{megabytes} MB of text: {before:.0f} MiB before, {peak:.0f} at most")
        peaks.append(peak - before)
        path.unlink()
        shards = Shards.open(tmp_path / str(megabytes))
        assert shards.manifest["report"]["bytes_of_text"] > megabytes * 1e6
    assert min(peaks) > 0
    assert max(peaks) < 1_000
    assert peaks[1] < peaks[0] + 60  # of it twice as much
