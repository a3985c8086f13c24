"""Documents become shards.

In: a `Source`, and knobs.  Out: a folder of shards; the one that was made before, where text and knobs are the same.
As much of the text is read as it takes to choose how to split it, and from there on it is read, split and written here,
while one thread encodes ahead. Only where a vocabulary is to be learned of more text than is kept in memory, the walk
goes on to learn it, and a second one writes. An end-of-text id follows every document. A preparation that is cut off
goes on where its last full file ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from hornbook.base import files, ours
from hornbook.base.background import Background, ended_by_signals
from hornbook.base.console import Progress, count, warn
from hornbook.base.errors import UserError
from hornbook.base.machine import cores_to_use
from hornbook.base.process import garbage_sought_among_new_objects, keep_freed_memory
from hornbook.base.settings import Settings
from hornbook.base.unfinished import empty_unfinished, finish_folder, remove_abandoned, unfinished_folder
from hornbook.shards.format import FORMAT_VERSION, MANIFEST, Shards, is_shards, listed
from hornbook.shards.parts import FOLDER, Plan, is_planned
from hornbook.shards.splits import SplitRule
from hornbook.shards.spread import Spread, digest_of, planned
from hornbook.shards.tasks import Here, Workers
from hornbook.shards.telling import changed_in_reading as changed_in_reading
from hornbook.shards.telling import told_of
from hornbook.shards.telling import too_little as too_little
from hornbook.shards.twins import Twins
from hornbook.shards.writer import STATE, Encoded, PieceEncoder, ShardWriter, read_state, write_state
from hornbook.shards.written import HeldBack, Written, batches, yardsticks
from hornbook.text.corpora import find_source, is_corpus
from hornbook.text.cutting import Share, cut
from hornbook.text.documents import AS_IT_COMES, TextConfig
from hornbook.text.encoder import EncoderFailed, SlowEncoder, fastest_encoder, has_gigatoken
from hornbook.text.learning import TokensConfig, learn
from hornbook.text.readers import Source
from hornbook.text.streams import Tally
from hornbook.text.tokenizer import LEARNED, Tokenizer, TokenizerConfig, refuse_ids, train_tokenizer

BATCH_CHARACTERS = 8_000_000
BATCHES_WAITING = 4
TOKENS_PER_SHARD = 100_000_000
PART_BYTES = 64_000_000  # of text, where it is prepared by many
LONG_LEARNING_SECONDS = 10.0
SHARE_OF_TWINS_TO_WARN_OF = 0.01
SPLIT_RULE = 2  # counted up where the same text with the same knobs is split in another way than before


class ShardsConfig(Settings):
    val_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the text held back for validation; a tenth of a small text, less of a large one, when not given."""
    test_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the text held back for a test at the very end."""


class PrepareConfig(TokensConfig):
    """The knobs of a preparation by itself."""

    shards: ShardsConfig = ShardsConfig()


def open_or_prepare(
    data: str,
    tokenizer: TokenizerConfig,
    shards: ShardsConfig,
    progress: Progress | None = None,
    text: TextConfig = AS_IT_COMES,
) -> Shards:
    """Shards of a corpus, of the text at a path, or at a folder of shards; prepared now unless they are there, as they
    were written."""
    progress = progress or Progress(live=False)
    if is_shards(Path(data)):
        return Shards.open(Path(data)).checked(say=progress.note)
    source = find_source(data, text, progress=progress)
    out = default_folder(source, tokenizer, shards)
    files.remove_leftovers(out.parent, shared=True)
    return _there(out, None, progress) or prepare(source, tokenizer, shards, out, progress)


def default_folder(source: Source, tokenizer: TokenizerConfig, shards: ShardsConfig) -> Path:
    """A place in the cache for just this text and these knobs: when one changes, so does the place."""
    return _cache() / f"{source.name}-{_key(source.signature(), tokenizer, shards)[:12]}"


def _cache() -> Path:
    return files.home() / "shards"


def prepare(
    source: Source,
    tokenizer_config: TokenizerConfig,
    config: ShardsConfig,
    out: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Shards:
    """Write the shards of a source into the folder `out`, or find them there, every byte as it was written. This
    process does it, or workers do: the files are the same."""
    progress = progress or Progress(live=False)
    work = Preparation(source, tokenizer_config, config, out, progress)
    if workers is not None and len(work.shares) == 1:
        workers = None
    if workers is None:
        work.measure()  # what is no text leaves no folder behind
    with ended_by_signals(), work.turn():
        return work.there() or work.finish(workers)


class Preparation:
    """One text on its way into a folder."""

    def __init__(
        self, source: Source, config: TokenizerConfig, shards: ShardsConfig, out: Path, progress: Progress
    ) -> None:
        self.source, self.config, self.progress = source, config, progress
        self._shards, self.out = shards, out
        self.in_cache = out.parent == _cache()
        if not out.name or not (self.in_cache or is_shards(out)):  # before the text is read
            files.refuse_to_replace(out, listed)
        keep_freed_memory(one_heap=cores_to_use() <= 2)
        self.signature = source.signature()
        self.key = _key(self.signature, config, shards)
        self.place = out.with_name(ours.hidden(ours.UNFINISHED, out.name))

    @cached_property
    def shares(self) -> list[Share]:
        return cut(self.source, PART_BYTES)

    @contextlib.contextmanager
    def turn(self, wait: Callable[[], object] | None = None) -> Iterator[None]:
        """The folder in which it grows, for this process alone; where another has it, `wait` is called."""
        if self.in_cache:
            remove_abandoned(self.out.parent, self.out)
        with unfinished_folder(self.out, STATE, wait or self.tell_of_another) as self.place:
            yield

    def tell_of_another(self) -> None:
        self.progress.note(f"{self.out}: another process is preparing this text; waiting for it")

    def there(self) -> Shards | None:
        """The shards that are there already; otherwise their name is free."""
        if (there := _there(self.out, self.key, self.progress, whole=True)) is None:
            if self.in_cache:  # where only we give names
                files.set_aside_strangers(self.out, listed)
            files.refuse_to_replace(self.out, listed)
        return there

    def finish(self, workers: Workers | None) -> Shards:
        """In this process's turn."""
        finish_folder(self.place, self.out, STATE, MANIFEST, self._do(workers), listed)
        shards = Shards.open(self.out)
        shards.note_written()
        return shards

    def measure(self, shares: Sequence[Share] | None = None) -> None:
        parts = [share.part for share in shares] if shares else None
        self.rule = SplitRule(self.source, self._shards.val_fraction, self._shards.test_fraction, parts)
        if self.rule.measured.ids:
            refuse_ids(self.config.kind, self.rule.measured.ids)

    def _do(self, workers: Workers | None) -> dict[str, Any]:
        """Everything but the manifest, which it returns."""
        state = read_state(self.place, self.key)
        if state is not None and "manifest" in state:
            manifest: dict[str, Any] = state["manifest"]
        elif workers is not None or (is_planned(self.place) and planned(self.place, self.key, self.shares)):
            manifest = self._by_parts(workers or Here())
        else:
            try:
                return self._alone(state, fast=True)
            except EncoderFailed as failure:
                self.progress.note(f"{failure}; going on with tokenizers, which is slower")
                return self._alone(None, fast=False)
        files.remove(self.place / FOLDER)
        return manifest

    def _alone(self, state: dict[str, Any] | None, fast: bool) -> dict[str, Any]:
        if state is None:
            tokenizer, state = self._begun()
        else:
            tokenizer = Tokenizer.load(self.place)
            self._tell_of_going_on()
        if fast:
            self._tell_of_the_encoder(tokenizer)
        encoder = PieceEncoder(tokenizer, fastest_encoder if fast else SlowEncoder)
        measured = self.rule.measured
        known = measured.text_bytes if measured.whole and not measured.ids else None
        writer = ShardWriter(self.place, tokenizer, TOKENS_PER_SHARD, state, known)
        try:
            with Background() as ahead:
                with garbage_sought_among_new_objects():
                    held_back = self._write(writer, encoder, ahead)
                scale = ahead.submit(yardsticks, held_back.texts if tokenizer.keeps_text else [])
                writer.finish()
                tally, duplicates = self.rule.tally, self.rule.duplicates
                name = encoder.inner.name
                written = Written(
                    self.place, tokenizer, writer.dtype, writer.splits, tally, duplicates, name, writer.seconds
                )
                twins = self._twins(written)
            return self._manifest(written, self.rule.description, twins, scale.result())
        finally:
            writer.abandon()

    def plan(self) -> Spread:
        """How the text is prepared by parts, in this process's turn: as others have begun it, where they have."""
        plan = planned(self.place, self.key, self.shares)
        files.remove_leftovers(self.place / FOLDER)
        if plan is not None:
            tokenizer = Tokenizer.load(self.place)
            self._tell_of_going_on()
        else:
            self.measure(self.shares)
            tokenizer, state = self._begun()
            homes = self.rule.homes.anew()
            shares = digest_of(self.shares)
            rule, starts = self.rule.description, self.rule.starts
            plan = Plan(self.key, tokenizer.fingerprint, shares, homes, starts, rule, BATCH_CHARACTERS)
            plan.write(self.place)
            write_state(self.place, state | {"tokenizer": tokenizer.fingerprint, "splits": {}})
            del self.rule  # and what is kept of the text with it
        self._tell_of_the_encoder(tokenizer)
        return self._spread(plan, tokenizer)

    def begun_by_others(self) -> Spread | None:
        """The same beside others, where they have begun."""
        plan = planned(self.place, self.key, self.shares)
        return None if plan is None else self._spread(plan, Tokenizer.load(self.place))

    def _spread(self, plan: Plan, tokenizer: Tokenizer) -> Spread:
        return Spread(self.place, plan, self.source, self.shares, tokenizer, self.progress)

    def _by_parts(self, workers: Workers) -> dict[str, Any]:
        spread = self.plan()
        with Background() as ahead, workers:
            spread.make_all(workers)
            scale = ahead.submit(yardsticks, spread.held_back() if spread.tokenizer.keeps_text else [])
            spread.put_together(workers, TOKENS_PER_SHARD)
            written = spread.written()
            twins = self._twins(written)
            _tell_of_skipped(written.tally)
        manifest = self._manifest(written, spread.plan.rule, twins, scale.result())
        state = {"key": self.key, "tokenizer": spread.tokenizer.fingerprint, "manifest": manifest}
        write_state(self.place, state | {"splits": {name: asdict(each) for name, each in written.splits.items()}})
        return manifest

    def _begun(self) -> tuple[Tokenizer, dict[str, Any]]:
        empty_unfinished(self.place)
        state = {"key": self.key}
        return self._learn(state), state

    def _tell_of_going_on(self) -> None:
        self.progress.note(f"going on with the preparation of {self.source.name} that was cut off")

    def _tell_of_the_encoder(self, tokenizer: Tokenizer) -> None:
        if tokenizer.has_gpt2_pieces and not has_gigatoken():
            self.progress.note("gigatoken is not installed; going on with tokenizers, which is slower")

    def _manifest(self, written: Written, rule: str, twins: Twins, scale: dict[str, float]) -> dict[str, Any]:
        return written.manifest(self.source, self.signature, self.key, self.config.kind, rule, twins, scale)

    def _twins(self, written: Written) -> Twins:
        twins = written.twins()
        if twins.share >= SHARE_OF_TWINS_TO_WARN_OF:
            remedy = "" if is_corpus(self.source.name) else "; leave such copies out of the text"
            warn(f"{told_of(twins)}: validation will look better than it is{remedy}")
        return twins

    def _learn(self, state: dict[str, Any]) -> Tokenizer:
        began = time.monotonic()
        learned = self.config.kind in LEARNED
        tokenizer = self._learned() if learned else train_tokenizer(self.config, [], self.rule.measured.text_bytes)
        tokenizer.save(self.place)
        if time.monotonic() - began > LONG_LEARNING_SECONDS:
            write_state(self.place, state | {"tokenizer": tokenizer.fingerprint, "splits": {}})
        return tokenizer

    def _learned(self) -> Tokenizer:
        """From what of the text is to be trained on."""
        pieces = (piece for found in self.rule.split() for piece in found)
        training = (piece.data for piece in pieces if piece.split == "train" and piece.ids is None)
        return learn(self.config, training, self.rule.measured.text_bytes, self.source.name, self.progress)

    def _write(self, writer: ShardWriter, encoder: PieceEncoder, ahead: Background) -> HeldBack:
        held_back = HeldBack()
        waiting: deque[tuple[Future[list[Encoded]], int]] = deque()
        measured, done = self.rule.measured, 0
        ahead.submit(lambda: encoder.inner)  # which takes a while to be loaded
        for batch, items, size in batches(self.rule.split(), BATCH_CHARACTERS, held_back, writer.items):
            waiting.append((ahead.submit(encoder.encode, batch), items))
            while waiting and (len(waiting) > BATCHES_WAITING or waiting[0][0].done()):
                encoded, read = waiting.popleft()
                writer.add(encoded.result(), read)
            done += size
            share = min(done / max(measured.text_bytes, 1), 1)
            self.progress.update(
                f"preparing {self.source.name}: {share:.0%} of {'about ' * (not measured.whole)}"
                f"{count(float(measured.text_bytes))} bytes, {count(done / writer.seconds)} a second"
            )
        for encoded, read in waiting:
            writer.add(encoded.result(), read)
        _tell_of_skipped(self.rule.tally)
        return held_back


def _tell_of_skipped(tally: Tally) -> None:
    if tally.skipped:
        warn(f"{tally.skipped:,} records were passed over, the first: {tally.first_skipped}")


def _key(signature: str, tokenizer: TokenizerConfig, shards: ShardsConfig) -> str:
    """The same for the same text and knobs."""
    knobs = tokenizer.model_dump()
    if tokenizer.kind == "file":  # what is in it counts, not where it lies
        knobs["file"] = train_tokenizer(tokenizer, [], 0).fingerprint
    parts = [FORMAT_VERSION, SPLIT_RULE, signature, knobs, shards.model_dump()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _there(out: Path, key: str | None, progress: Progress, whole: bool = False) -> Shards | None:
    """Shards that were made before, of the same text by the same knobs where a key tells these; None if damaged."""
    if not is_shards(out):
        return None
    try:
        shards = Shards.open(out)
        return shards.checked(whole, progress.note) if key in (None, shards.manifest.get("key")) else None
    except UserError as error:
        progress.note(f"{error.mistakes[0].partition('; prepare')[0]}; to be prepared again")
        return None
