"""A text that is prepared by many becomes the same files, byte for byte, as one that is prepared alone."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hornbook.base.errors import MachineError, UserError
from hornbook.shards import parts, splits
from hornbook.shards import prepare as preparing
from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.shards.tasks import Here, Task
from hornbook.shards.workers import Processes
from hornbook.text.cutting import cut
from hornbook.text.documents import TextConfig
from hornbook.text.readers import Part, Source, joined, source_from_path
from hornbook.text.tokenizer import TokenizerConfig

TOLD_OF_THE_WORK = ("seconds", "bytes_per_second")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "PART_BYTES", 1_500)
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 900)
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 700)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of which there are hundreds here


def facts(shards: Shards) -> dict[str, Any]:
    """All that does not depend on when it was prepared, and by whom."""
    assert shards.damage() is None
    manifest = {name: value for name, value in shards.manifest.items() if name != "sha256"}
    return manifest | {"report": {k: v for k, v in manifest["report"].items() if k not in TOLD_OF_THE_WORK}}


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


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize("number", [3, 40, 400])
def test_many_files(kind: str, number: int, tmp_path: Path) -> None:
    source = source_from_path(folder_of(texts(number, copies=number // 3), tmp_path / "texts"))
    if number == 3:
        (tmp_path / "texts" / "0001.txt").write_text("a long one " * 900)
    alone, spread = both(source, tmp_path, kind, val_fraction=0.2, test_fraction=0.1)
    assert facts(alone) == facts(spread)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "spread", "texts"}
    assert number < 400 or len(alone.split_facts("train")["shards"]) > 2


@pytest.mark.parametrize("number", [20, 500])
def test_one_file_of_many_records(number: int, tmp_path: Path) -> None:
    source = source_from_path(written(texts(number, copies=number), tmp_path / "a.jsonl"))
    assert len(cut(source, preparing.PART_BYTES)) > 1
    alone, spread = both(source, tmp_path)
    assert facts(alone) == facts(spread)
    assert alone.manifest["split_rule"].startswith("tail" if number == 20 else "hash")


def test_a_text_that_is_not_read_whole_to_choose_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "LOOK_AT_BYTES", 5_000)
    monkeypatch.setattr(splits, "KEPT_BYTES", 9_000)
    source = source_from_path(written(texts(600), tmp_path / "a.jsonl"))
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
