"""A text that is prepared by many becomes the same files, byte for byte, as one that is prepared alone."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effort import long, tries
from hornbook.base import files
from hornbook.base.console import Progress
from hornbook.base.errors import MachineError, UserError
from hornbook.base.ours import UNFINISHED, hidden
from hornbook.shards import parts, splits
from hornbook.shards import prepare as preparing
from hornbook.shards import spread as spreading
from hornbook.shards.array import place_in_array, prepare_part
from hornbook.shards.format import Shards
from hornbook.shards.over_ray import OverRay
from hornbook.shards.prepare import Preparation, ShardsConfig, prepare
from hornbook.shards.tasks import Here, Task
from hornbook.shards.workers import Processes, workers_from
from hornbook.text.cutting import cut
from hornbook.text.documents import TextConfig
from hornbook.text.readers import Part, Source, joined, source_from_path
from hornbook.text.tokenizer import TokenizerConfig

CRASHED = 17
TOLD_OF_THE_WORK = ("seconds", "bytes_per_second")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "PART_BYTES", 3_000)
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 1_000)
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 700)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of which there are hundreds here


def facts(shards: Shards) -> dict[str, Any]:
    """All that does not depend on when it was prepared, and by whom."""
    assert shards.damage() is None
    manifest = {name: value for name, value in shards.manifest.items() if name != "sha256"}
    return manifest | {"report": {k: v for k, v in manifest["report"].items() if k not in TOLD_OF_THE_WORK}}


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def both(source: Source, folder: Path, kind: str = "byte", **shares: float) -> tuple[Shards, Shards]:
    """Prepared alone, and by parts."""
    knobs = TokenizerConfig.model_validate({"kind": kind}), ShardsConfig.model_validate(shares)
    alone = prepare(source, *knobs, folder / "alone")
    return alone, prepare(source, *knobs, folder / "spread", workers=Here())


def texts(number: int, seed: int = 1, copies: int = 0) -> list[str]:
    """So many different ones, and copies of some."""
    chance = random.Random(seed)
    made = [f"{each} " + "zwölf Türme " * chance.randrange(12) + "end" for each in range(number)]
    made += [chance.choice(made) for _ in range(copies)]
    chance.shuffle(made)
    return made


def written(texts: list[str], path: Path) -> Path:
    path.write_text("".join(json.dumps({"meta": "x", "text": text}) + "\n" for text in texts))
    return path


def folder_of(texts: list[str], folder: Path) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(("kind", "number"), [("byte", 3), ("char", 40), ("bpe", 250)])
def test_many_files(kind: str, number: int, tmp_path: Path) -> None:
    source = source_from_path(folder_of(texts(number, copies=number // 3), tmp_path / "texts"))
    if number == 3:
        (tmp_path / "texts" / "0001.txt").write_text("a long one " * 900)
    alone, spread = both(source, tmp_path, kind, val_fraction=0.2, test_fraction=0.1)
    assert facts(alone) == facts(spread)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "spread", "texts"}
    assert len(alone.split_facts("train")["shards"]) > 1 or number < 250


@pytest.mark.parametrize("number", [20, 250])
def test_one_file_of_many_records(number: int, tmp_path: Path) -> None:
    source = source_from_path(written(texts(number, copies=number), tmp_path / "a.jsonl"))
    assert len(cut(source, preparing.PART_BYTES)) > 1
    alone, spread = both(source, tmp_path)
    assert facts(alone) == facts(spread)
    assert alone.manifest["split_rule"].startswith("tail" if number == 20 else "hash")


def test_a_text_that_is_not_read_whole_to_choose_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "LOOK_AT_BYTES", 5_000)
    monkeypatch.setattr(splits, "KEPT_BYTES", 9_000)
    source = source_from_path(written(texts(300), tmp_path / "a.jsonl"))
    assert not splits.measure(source, 0.2).whole
    alone, spread = both(source, tmp_path, "bpe", val_fraction=0.2)
    assert facts(alone) == facts(spread)


def test_what_a_corpus_holds_back_and_other_texts_beside_it(tmp_path: Path) -> None:
    def part(name: str, split: str) -> Part:
        path = written(texts(80, seed=len(name), copies=9), tmp_path / f"{name}.jsonl")
        return replace(source_from_path(path).parts[0], split=split)

    own = Source("own", (part("train", "train"), part("val", "val"), part("test", "test")))
    others = source_from_path(folder_of(texts(90, copies=9), tmp_path / "others"))
    for name, source in {"own": own, "beside": joined([own, others])}.items():
        alone, spread = both(source, tmp_path / name)
        assert facts(alone) == facts(spread)
        assert alone.manifest["report"]["duplicates"] > 0


def test_what_is_passed_over_or_replaced_is_told_alike(tmp_path: Path) -> None:
    path = written(texts(300), tmp_path / "a.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[70], lines[200], lines[250] = b"{", b'{"text": 1}', b'{"text": "half \xff of it"}'
    path.write_bytes(b"\n".join(lines))
    lenient = TextConfig(errors="replace", bad_records="skip")
    first: list[str] = []
    for shards in both(source_from_path(path, lenient), tmp_path):
        assert shards.manifest["reading"]["skipped_records"] == 2
        assert shards.manifest["reading"]["replaced_characters"] == 1
        first.append(shards.fingerprint)
    assert first[0] == first[1]
    lines = []
    for way in (None, Here()):
        knobs = TokenizerConfig(kind="byte"), ShardsConfig()
        with pytest.raises(UserError) as caught:
            prepare(source_from_path(path), *knobs, tmp_path / str(way), workers=way)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "line 71" in lines[0]


def test_processes_make_the_same_as_one_and_one_goes_on_where_they_were_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_from_path(folder_of(texts(300), tmp_path / "texts"))
    knobs = TokenizerConfig(kind="byte"), ShardsConfig(val_fraction=0.2)
    alone = prepare(source, *knobs, tmp_path / "alone")
    with monkeypatch.context() as patched:
        patched.setattr(preparing.Spread, "put_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, *knobs, tmp_path / "spread", workers=Processes(2))
    made: list[Any] = []
    monkeypatch.setattr(parts, "_encoded", lambda *arguments: made.append(arguments))
    spread = prepare(source, *knobs, tmp_path / "spread")
    assert made == []
    assert facts(alone) == facts(spread)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


# What a worker is told to do: the second time somebody does it, it is done.
DIES_ONCE = """
import os, pathlib
mark = pathlib.Path({!r})
if not mark.exists():
    mark.touch()
    os.kill(os.getpid(), 9)
"""


def test_a_worker_that_dies_takes_only_its_task_with_it_and_that_is_done_over(tmp_path: Path) -> None:
    with Processes(2) as workers:
        tasks = [Task(name, exec, (DIES_ONCE.format(str(tmp_path / name)),)) for name in "ab"]
        assert sorted(workers.do(tasks)) == ["a", "b"]
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
        with pytest.raises(MachineError, match=r"4 workers died of the same part \(signal 9\); is there memory enough"):
            list(workers.do([Task("it", signal.raise_signal, (9,))]))
        mistake = "from hornbook.base.errors import UserError; raise UserError('a mistake of the user')"
        with pytest.raises(UserError, match="a mistake of the user"):
            list(workers.do([Task("it", exec, (mistake,))]))


def array(source: Source, out: Path, number: int, of: int) -> Shards | int:
    knobs = TokenizerConfig(kind="byte"), ShardsConfig(val_fraction=0.2)
    return prepare_part(Preparation(source, *knobs, out, Progress(live=False)), number, of, Here())


def test_the_last_of_an_array_puts_the_shards_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.shards.array.ASK_AGAIN_SECONDS", 0.01)
    source = source_from_path(written(texts(300), tmp_path / "a.jsonl"))
    number = len(cut(source, preparing.PART_BYTES))
    alone = prepare(source, TokenizerConfig(kind="byte"), ShardsConfig(val_fraction=0.2), tmp_path / "alone")
    for order in ([2, 1, 3], [3, 2, 1]):
        out = tmp_path / f"begun by {order[0]}"
        found = [array(source, out, each, 3) for each in order]
        assert [each for each in found if isinstance(each, int)] == [
            number - number // 3,
            len(range(number)[order[2] - 1 :: 3]),
        ]
        assert isinstance(found[-1], Shards)
        assert facts(found[-1]) == facts(alone)
        again = array(source, out, 2, 3)
        assert isinstance(again, Shards)
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(lambda each: array(source, tmp_path / "at once", each, 4), range(1, 5)))
    assert next(facts(each) for each in at_once if isinstance(each, Shards)) == facts(alone)
    array(source, tmp_path / "not all", 2, 3)
    rest = prepare(source, TokenizerConfig(kind="byte"), ShardsConfig(val_fraction=0.2), tmp_path / "not all")
    assert facts(rest) == facts(alone)


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/0"])
def test_a_place_in_an_array_is_a_number_of_so_many(text: str) -> None:
    with pytest.raises(UserError, match=r"--part .*: --part 3/64"):
        place_in_array(text)


@pytest.mark.parametrize("seed", range(tries(2, 10)))
def test_crashed_at_any_step_again_and_again_it_ends_with_the_same_shards(seed: int, tmp_path: Path) -> None:
    source = source_from_path(folder_of(texts(300), tmp_path / "texts"))
    knobs = TokenizerConfig(kind="char"), ShardsConfig(val_fraction=0.2)
    alone = prepare(source, *knobs, tmp_path / "alone")
    really, chance = files._step, random.Random(seed)

    def crash_after(left: int) -> None:
        def step(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(CRASHED)
            return really(*arguments)

        files._step = step
        prepare(source, *knobs, tmp_path / "cut", workers=Here())

    crashes = 0
    while (status := in_child(functools.partial(crash_after, chance.randrange(20, 200)))) == CRASHED:
        crashes += 1
        assert crashes < 100
    assert status == 0
    assert crashes > 1
    assert facts(Shards.open(tmp_path / "cut")) == facts(alone)
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "alone", "cut"}


def test_what_was_spoilt_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_from_path(folder_of(texts(300), tmp_path / "texts"))
    knobs = TokenizerConfig(kind="byte"), ShardsConfig(val_fraction=0.2)
    alone = prepare(source, *knobs, tmp_path / "alone")
    place = tmp_path / hidden(UNFINISHED, "cut")

    def stopped(name: str, after: int) -> None:
        """At the moment when so many calls of a function were done."""
        really, left = getattr(spreading, name), after

        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return really(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(spreading, name, call)
            with pytest.raises(KeyboardInterrupt):
                prepare(source, *knobs, tmp_path / "cut", workers=Here())

    def harm(pattern: str) -> None:
        found = sorted(path for path in place.rglob(pattern) if path.stat().st_size)
        assert found
        os.truncate(found[0], 1)

    for after, pattern in ((2, "part.json"), (2, "train.ends"), (2, "train.ids")):
        stopped("write_part", after)
        harm(pattern)
    for pattern in ("train-00000.bin", "train-00000.bin.json", "train.ids"):
        stopped("write_shard", 3)
        harm(pattern)
    assert facts(prepare(source, *knobs, tmp_path / "cut", workers=Here())) == facts(alone)
    (tmp_path / "texts" / "0003.txt").write_text("another text")
    stopped("write_part", 4)
    (tmp_path / "texts" / "0003.txt").write_text("and another")
    source = source_from_path(tmp_path / "texts")
    again = prepare(source, *knobs, tmp_path / "cut", workers=Here())
    assert facts(again) == facts(prepare(source, *knobs, tmp_path / "new"))


COMMAND = """
import sys
from hornbook.cli import main
from hornbook.shards import prepare
prepare.TOKENS_PER_SHARD, prepare.BATCH_CHARACTERS, prepare.PART_BYTES = 20_000, 10_000, 60_000
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@long
def test_with_workers_and_commands_killed_twenty_times_it_ends_with_the_same_shards(tmp_path: Path) -> None:
    path = written(texts(30_000), tmp_path / "a.jsonl")
    words = [sys.executable, "-u", "-c", COMMAND, str(path), "--tokenizer.kind", "bpe", "--out"]
    began = time.monotonic()
    subprocess.run([*words, str(tmp_path / "alone")], check=True)
    seconds, chance, kills = time.monotonic() - began, random.Random(1), 0
    alone = Shards.open(tmp_path / "alone")
    while kills < 20:
        with subprocess.Popen([*words, str(tmp_path / "cut"), "--workers", "2"]) as process:
            while kills < 20 and process.poll() is None:
                time.sleep(chance.uniform(0.1, 0.5) * seconds)
                workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                victim = int(chance.choice(workers)) if workers and chance.random() < 0.6 else process.pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    kills += process.poll() is None or victim == process.pid
        if process.returncode == 0 and kills < 20:
            assert facts(Shards.open(tmp_path / "cut")) == facts(alone)
            shutil.rmtree(tmp_path / "cut")
    subprocess.run([*words, str(tmp_path / "cut"), "--workers", "2"], check=True)
    assert facts(Shards.open(tmp_path / "cut")) == facts(alone)


@pytest.fixture
def two_machines() -> Iterator[Any]:
    """A Ray cluster of two, on this one, each with one processor."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


WAITS = """
import os, pathlib, time
folder = pathlib.Path({!r})
(folder / f"begun-{{os.getpid()}}").touch()
while not (folder / "go").exists():
    time.sleep(0.1)
"""


@long
def test_ray_makes_the_same_on_two_machines_of_which_one_is_lost(two_machines: Any, tmp_path: Path) -> None:
    source = source_from_path(folder_of(texts(300), tmp_path / "texts"))
    knobs = TokenizerConfig(kind="bpe"), ShardsConfig(val_fraction=0.2)
    alone = prepare(source, *knobs, tmp_path / "alone")
    by_ray = OverRay(f"ray:{two_machines.address}")
    assert facts(prepare(source, *knobs, tmp_path / "spread", workers=by_ray)) == facts(alone)

    def lose_one() -> None:
        while len(list(tmp_path.glob("begun-*"))) < 2:
            time.sleep(0.1)
        two_machines.remove_node(two_machines.list_all_nodes()[-1], allow_graceful=False)
        (tmp_path / "go").touch()

    with OverRay(f"ray:{two_machines.address}") as workers, ThreadPoolExecutor(1) as thread:
        lost = thread.submit(lose_one)
        waits = [Task(number, exec, (WAITS.format(str(tmp_path)),)) for number in range(4)]
        dies = Task("dies", exec, (DIES_ONCE.format(str(tmp_path / "died")),))
        assert set(workers.do([*waits, dies])) == {0, 1, 2, 3, "dies"}
        lost.result()
    with pytest.raises(MachineError, match=r"--workers ray:127.0.0.1:1: no such cluster"), OverRay("ray:127.0.0.1:1"):
        pass


def test_what_is_to_work_is_said_in_one_of_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_from("8").number == 8
    for text in ("0", "many", "-1", "http://host"):
        with pytest.raises(UserError, match=r"--workers .*: should be a number of processes, such as 8; ray, "):
            workers_from(text)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray: pip install 'hornbook\[ray\]'"):
        workers_from("ray://host:10001").__enter__()
