"""A text is prepared by many.

In: shares of a text, a plan for all of them, and workers.  Out: the same shards as one process writes. Each share
becomes a part; what of it comes before and after a place is known from sums over the parts before it, so that shards
are put together by many, too. Parts and shards that are whole are never made again: what is cut off goes on with the
rest, whoever does it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hornbook.base import files
from hornbook.base.console import Progress, count, duration
from hornbook.base.errors import MachineError, UserError
from hornbook.base.unfinished import AGAIN
from hornbook.shards.parts import (
    HELD_BACK,
    PartFacts,
    Parts,
    Plan,
    Stretch,
    shard_facts,
    stretches,
    write_part,
    write_shard,
)
from hornbook.shards.splits import SPLITS
from hornbook.shards.tasks import Task, Workers
from hornbook.shards.writer import SplitFiles, dtype_of
from hornbook.shards.written import HeldBack, Written
from hornbook.text.cutting import Share
from hornbook.text.readers import Source
from hornbook.text.streams import Tally
from hornbook.text.tokenizer import Tokenizer

VERSION = 1  # counted up where a text is cut, or a part written, in another way than before


def digest_of(shares: Sequence[Share]) -> str:
    """What stands for how a text is cut."""
    each = [(share.of, len(share.part.files), share.part.span) for share in shares]
    return hashlib.sha256(json.dumps([VERSION, each]).encode()).hexdigest()


def planned(place: Path, key: str, shares: Sequence[Share]) -> Plan | None:
    """The plan by which others have begun, where it is one for this text and these knobs."""
    try:
        plan = Plan.read(place)
        same = (plan.key, plan.shares) == (key, digest_of(shares))
        return plan if same and Tokenizer.load(place).fingerprint == plan.tokenizer else None
    except (UserError, TypeError, KeyError, AttributeError, ValueError):
        return None


@dataclass
class Spread:
    place: Path
    plan: Plan
    source: Source
    shares: Sequence[Share]
    tokenizer: Tokenizer
    progress: Progress

    def __post_init__(self) -> None:
        self.parts = Parts(self.place, self.plan.digest())
        self._dtype = dtype_of(self.tokenizer)
        self._facts: dict[int, PartFacts] = {}
        self._began, self._before = time.monotonic(), 0.0
        self._names: list[str] = []

    def missing(self, among: Sequence[int] | None = None) -> list[int]:
        """The numbers of parts that are not there."""
        looked_for = range(len(self.shares)) if among is None else among
        for number in looked_for:
            if number not in self._facts and (facts := self.parts.facts(number)) is not None:
                self._facts[number] = facts
        return [number for number in looked_for if number not in self._facts]

    def make(self, numbers: Sequence[int], workers: Workers, among: Sequence[int] | None = None) -> None:
        """Those parts, of so many that are to be made in all."""
        of_all = range(len(self.shares)) if among is None else among
        tasks = [Task(number, write_part, (self.parts, number, self.shares[number].part)) for number in numbers]
        sizes = {number: self.shares[number].text_bytes for number in of_all}
        whole, began, made = sum(sizes.values()), time.monotonic(), 0.0
        left = sum(sizes[number] for number in numbers)
        done = len(sizes) - len(numbers)
        for number in workers.do(tasks):
            made += sizes[number]
            left -= sizes[number]
            done += 1
            rate = made / max(time.monotonic() - began, 1e-9)
            self.progress.update(
                f"preparing {self.source.name}: {done:,} of {len(sizes):,} parts, "
                f"{1 - left / max(whole, 1):.0%} of about {count(whole)} bytes, {count(rate)} a second, "
                f"{duration(left / max(rate, 1e-9))} left"
            )

    def make_all(self, workers: Workers) -> None:
        missing = self.missing()
        self._before = sum(facts.seconds for facts in self._facts.values()) / workers.number
        self.make(missing, workers)
        if self.missing():
            raise MachineError(f"{self.place}: parts of it are gone; {AGAIN}")
        self._refuse_nothing()

    def put_together(self, workers: Workers, tokens_per_shard: int) -> None:
        """All shards, from all parts."""
        shards = {
            f"{split}-{number:05}.bin": each
            for split in SPLITS
            for number, each in enumerate(stretches(self.parts, self._all_facts(), split, tokens_per_shard))
        }
        unwritten = {name: each for name, each in shards.items() if shard_facts(self.parts, name) is None}
        needed = {stretch.part for each in unwritten.values() for stretch in each}
        width = self._dtype.itemsize
        self.make([n for n in sorted(needed) if not self.parts.has_ids(n, self._facts[n], width)], workers)
        self._write(shards, unwritten, workers)
        self._names = list(shards)

    def _write(self, shards: dict[str, list[Stretch]], unwritten: dict[str, list[Stretch]], workers: Workers) -> None:
        users: dict[int, set[str]] = {number: set() for number in range(len(self.shares))}
        for name, each in unwritten.items():
            for stretch in each:
                users[stretch.part].add(name)
        tasks = [
            Task(name, write_shard, (self.parts, name, each, self._dtype.itemsize)) for name, each in unwritten.items()
        ]
        done = len(shards) - len(unwritten)
        for name in workers.do(tasks):
            for number in {stretch.part for stretch in unwritten[name]}:
                users[number].discard(name)
                if not users[number]:  # the disk need not hold all of it twice
                    self.parts.forget_ids(number)
            done += 1
            self.progress.update(f"preparing {self.source.name}: {done:,} of {len(shards):,} files")

    def _all_facts(self) -> list[PartFacts]:
        return [self._facts[number] for number in range(len(self.shares))]

    def _refuse_nothing(self) -> None:
        """Of each part of the source there must be some text."""
        for place, part in enumerate(self.source.parts):
            facts = [self._facts[number] for number, share in enumerate(self.shares) if share.of == place]
            if not any(each.documents for each in facts):
                raise part.nothing_found(_sum(facts))

    def held_back(self) -> list[bytes]:
        held = HeldBack()
        for number in range(len(self.shares)):
            text = files.read_if_small(self.parts.folder(number) / HELD_BACK, 2**63)
            held.add_text(text or b"")
        return held.texts

    def written(self) -> Written:
        splits = {name: SplitFiles() for name in SPLITS}
        facts = self._all_facts()
        for name, split in splits.items():
            split.tokens = sum(each.splits[name].tokens for each in facts)
            split.documents = sum(each.splits[name].documents for each in facts)
            split.bytes_of_text = sum(each.splits[name].bytes_of_text for each in facts)
            shards = (shard_facts(self.parts, each) for each in self._names if each.startswith(f"{name}-"))
            split.shards = [each for each in shards if each is not None]
        return Written(
            self.place,
            self.tokenizer,
            self._dtype,
            splits,
            _sum(facts),
            sum(each.duplicates for each in facts),
            ", ".join(sorted({each.encoder for each in facts})),
            self._before + time.monotonic() - self._began,
        )


def _sum(facts: Sequence[PartFacts]) -> Tally:
    whole = Tally()
    for each in facts:
        whole.add(each.tally)
    return whole
