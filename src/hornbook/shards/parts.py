"""A share of a text becomes a part, and parts become shards.

In: a share, and the plan that all who work on a text have in common.  Out: a folder of ids by splits, of where their
pieces end, and of what is to be known of them, which gets its name when it is whole. Whoever makes the same part makes
the same bytes, so any of them may be made again, at any time and by several at once. A shard is put together of
stretches of parts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from hornbook.base import files, ours
from hornbook.base.errors import MachineError, UserError
from hornbook.base.process import garbage_sought_among_new_objects
from hornbook.base.room import Room
from hornbook.base.unfinished import AGAIN, BinaryWriter
from hornbook.shards.splits import SPLITS, Homes
from hornbook.shards.writer import Encoded, PieceEncoder, dtype_of
from hornbook.shards.written import HeldBack, batches
from hornbook.text.encoder import EncoderFailed, SlowEncoder, fastest_encoder
from hornbook.text.readers import Part
from hornbook.text.records import Document
from hornbook.text.streams import Tally
from hornbook.text.tokenizer import Tokenizer

FOLDER = ours.hidden(ours.PART, "parts")
PLAN, FACTS, HELD_BACK = "plan.json", "part.json", "val.text"
END_BYTES = 8
COPIED_AT_ONCE = 1 << 22


def is_planned(place: Path) -> bool:
    return (place / FOLDER / PLAN).exists()


@dataclass(frozen=True)
class Plan:
    """What every part of a text depends on, beside its share."""

    key: str
    tokenizer: str
    """Its fingerprint."""
    shares: str
    """What stands for how the text is cut."""
    homes: Homes
    starts: list[tuple[int, int]]
    """Documents and characters before each share."""
    rule: str
    """How the text is split, in words."""
    batch_characters: int

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def write(self, place: Path) -> None:
        files.make_folder(place / FOLDER)
        files.write_json(place / FOLDER / PLAN, asdict(self))

    @classmethod
    def read(cls, place: Path) -> Plan:
        value = files.read_json(place / FOLDER / PLAN)
        homes = Homes(**value.pop("homes"))
        homes.held = {int(digest): split for digest, split in homes.held.items()}
        homes.copies = {int(number): split for number, split in homes.copies.items()}
        return cls(homes=homes, starts=[(first, last) for first, last in value.pop("starts")], **value)


class PartSplit(NamedTuple):
    """What a part holds of one split."""

    tokens: int = 0
    documents: int = 0
    bytes_of_text: int = 0
    pieces: int = 0


@dataclass(frozen=True)
class PartFacts:
    plan: str
    """The digest of the plan by which it was made."""
    splits: dict[str, PartSplit]
    documents: int
    """That its share holds, whether they are in a split or not."""
    tally: Tally
    duplicates: int
    encoder: str
    seconds: float


class Stretch(NamedTuple):
    """Ids of a part, from the first to before the last."""

    part: int
    first: int
    last: int


@dataclass(frozen=True)
class Parts:
    """The parts of a text, in its unfinished folder."""

    place: Path
    plan: str

    def folder(self, number: int) -> Path:
        return self.place / FOLDER / ours.hidden(ours.PART, f"{number:06}")

    def path(self, number: int, split: str, kind: str) -> Path:
        return self.folder(number) / f"{split}.{kind}"

    def facts(self, number: int) -> PartFacts | None:
        """Of a part that is there, made by this plan."""
        folder = self.folder(number)
        try:
            value = files.read_json(folder / FACTS)
            splits = {name: PartSplit(*each) for name, each in value.pop("splits").items()}
            facts = PartFacts(splits=splits, tally=Tally(**value.pop("tally")), **value)
            if facts.plan != self.plan:
                return None
            whole = all(self._size(number, name, "ends") == each.pieces * END_BYTES for name, each in splits.items())
        except (UserError, OSError, KeyError, TypeError, AttributeError):
            return None
        return facts if whole else None

    def has_ids(self, number: int, facts: PartFacts, width: int) -> bool:
        """Whether its ids are there, which go when the shards that hold them are written."""
        try:
            return all(self._size(number, name, "ids") == split.tokens * width for name, split in facts.splits.items())
        except OSError:
            return False

    def _size(self, number: int, split: str, kind: str) -> int:
        return self.path(number, split, kind).stat().st_size

    def ends(self, number: int, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.fromfile(self.path(number, split, "ends"), "<i8")

    def forget_ids(self, number: int) -> None:
        for split in SPLITS:
            files.remove(self.path(number, split, "ids"))


def write_part(parts: Parts, number: int, share: Part) -> None:
    """Unless it is there."""
    common = _common_to(parts.place, parts.plan)
    if (there := parts.facts(number)) is not None and parts.has_ids(number, there, common.width):
        return
    final = parts.folder(number)
    with files.disk_trouble_named(final, AGAIN), _staged(final) as staging:
        files.make_folder(staging)
        try:
            facts = _encoded(parts, number, share, staging, common, common.fast)
        except EncoderFailed:
            facts = _encoded(parts, number, share, staging, common, common.slow)
        files.write_json(staging / FACTS, asdict(facts))
        files.sync_folder(staging)
        try:
            files.remove(final)
            files.rename(staging, final)
        except OSError:
            if parts.facts(number) is None:  # or somebody else has just made it
                raise
    files.sync_folder(final.parent)


class _Common(NamedTuple):
    plan: Plan
    fast: PieceEncoder
    slow: PieceEncoder
    width: int


@functools.lru_cache(maxsize=1)
def _common_to(place: Path, digest: str) -> _Common:
    """What a worker needs for all parts of a text."""
    try:
        plan, tokenizer = Plan.read(place), Tokenizer.load(place)
    except UserError:
        raise MachineError(f"{place}: not to be seen from here; all workers must see the same folders") from None
    if plan.digest() != digest or tokenizer.fingerprint != plan.tokenizer:
        raise MachineError(f"{place}: has changed meanwhile; {AGAIN}")
    fast, slow = PieceEncoder(tokenizer, fastest_encoder), PieceEncoder(tokenizer, SlowEncoder)
    return _Common(plan, fast, slow, dtype_of(tokenizer).itemsize)


@contextlib.contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """A name for it to be made under, which nobody else uses on any machine; nothing is left there."""
    staging = final.with_name(ours.hidden(ours.STAGED, f"{uuid.uuid4().hex[:12]}-{final.name}", by_this_process=True))
    try:
        yield staging
    finally:
        with contextlib.suppress(OSError):
            files.remove(staging)


def _encoded(parts: Parts, number: int, share: Part, folder: Path, common: _Common, encoder: PieceEncoder) -> PartFacts:
    began, tally, homes = time.monotonic(), Tally(), common.plan.homes.anew()
    documents, held_back = 0, HeldBack()

    def counted() -> Iterator[Document]:
        nonlocal documents
        for document in share.documents(tally):
            documents += document.ends
            yield document

    with contextlib.ExitStack() as stack, garbage_sought_among_new_objects():
        writers = {name: _SplitWriter(folder, name, stack) for name in SPLITS}
        found = homes.split(counted(), *common.plan.starts[number])
        for batch, *_ in batches(found, common.plan.batch_characters, held_back):
            for encoded in encoder.encode(batch):
                Room(parts.place).ask(encoded.ids.nbytes, str(parts.place), f"make room and {AGAIN}")
                writers[encoded.split].add(encoded)
    with files.opened(folder / HELD_BACK, "wb") as file:
        files.append(file, folder / HELD_BACK, b"".join(held_back.texts))
    return PartFacts(
        plan=parts.plan,
        splits={name: PartSplit(*writer.facts) for name, writer in writers.items()},
        documents=documents,
        tally=tally,
        duplicates=homes.duplicates,
        encoder=encoder.inner.name,
        seconds=time.monotonic() - began,
    )


class _SplitWriter:
    """Ids, and where pieces end among them."""

    def __init__(self, folder: Path, name: str, stack: contextlib.ExitStack) -> None:
        self.facts = [0, 0, 0, 0]
        self._files: list[tuple[Path, IO[bytes]]] = [
            (path, stack.enter_context(files.opened(path, "wb")))
            for path in (folder / f"{name}.ids", folder / f"{name}.ends")
        ]

    def add(self, encoded: Encoded) -> None:
        ends = (encoded.ends + self.facts[0]).astype("<i8")
        for (path, file), values in zip(self._files, (encoded.ids, ends), strict=True):
            if len(values):
                files.append(file, path, values.data.cast("B"))
        added = (len(encoded.ids), encoded.documents, encoded.bytes_of_text, len(ends))
        self.facts = [have + more for have, more in zip(self.facts, added, strict=True)]


def stretches(parts: Parts, facts: Sequence[PartFacts], split: str, capacity: int) -> Iterator[list[Stretch]]:
    """Those of each shard: it ends with the piece that fills it, as if one process had written them all."""
    waiting, filled = list[Stretch](), 0
    for number, part in enumerate(facts):
        total, first = part.splits[split].tokens, 0
        ends = parts.ends(number, split)
        while first < total:
            place = int(np.searchsorted(ends, first + capacity - filled))
            last = int(ends[place]) if place < len(ends) else total
            waiting.append(Stretch(number, first, last))
            filled += last - first
            if place < len(ends):
                yield waiting
                waiting, filled = [], 0
            first = last
    if waiting:
        yield waiting


def shard_facts(parts: Parts, name: str) -> dict[str, Any] | None:
    """Of a shard that is there."""
    try:
        facts = files.read_json(parts.place / FOLDER / f"{name}.json")
        same = facts["plan"] == parts.plan and (parts.place / name).stat().st_size == facts["bytes"]
        return {each: facts[each] for each in ("name", "bytes", "sha256")} if same else None
    except (UserError, OSError, KeyError):
        return None


def write_shard(parts: Parts, name: str, of: Sequence[Stretch], width: int) -> None:
    """Unless it is there."""
    if shard_facts(parts, name) is not None:
        return
    final = parts.place / name
    with files.disk_trouble_named(final, AGAIN), _staged(parts.place / FOLDER / name) as staging:
        Room(parts.place).ask(
            sum(each.last - each.first for each in of) * width, str(parts.place), f"make room and {AGAIN}"
        )
        writer = BinaryWriter(staging)
        try:
            for stretch in of:
                with open(parts.path(stretch.part, name.partition("-")[0], "ids"), "rb") as file:
                    file.seek(stretch.first * width)
                    left = (stretch.last - stretch.first) * width
                    while left:
                        data = file.read(min(left, COPIED_AT_ONCE))
                        if not data:
                            raise MachineError(f"{file.name}: ends too early; {AGAIN}")
                        writer.write(data)
                        left -= len(data)
            digest = writer.close()
        finally:
            writer.abandon()
        files.rename(staging, final)
        files.sync_folder(final.parent)
        facts = {"plan": parts.plan, "name": name, "bytes": writer.bytes_written, "sha256": digest}
        files.write_json(parts.place / FOLDER / f"{name}.json", facts)
