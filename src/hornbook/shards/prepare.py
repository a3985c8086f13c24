"""Documents become shards.

In: a `Source`, and knobs.  Out: a folder of shards; the one that was made before, where text and knobs are the same.
As much of the text is read as it takes to choose how to split it, and from there on it is read, split and written here,
while one thread encodes ahead. Only where a vocabulary is to be learned of more text than is kept in memory, the walk
goes on to learn it, and a second one writes. An end-of-text id follows every document. A preparation that is cut off
goes on where its last full file ended.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from hornbook.base import files
from hornbook.base.background import Background, ended_by_signals
from hornbook.base.console import Progress, count, duration, warn
from hornbook.base.errors import UserError
from hornbook.base.machine import cores_to_use
from hornbook.base.process import garbage_sought_among_new_objects, keep_freed_memory
from hornbook.base.settings import Settings
from hornbook.base.unfinished import empty_unfinished, finish_folder, remove_abandoned, unfinished_folder
from hornbook.shards.format import FORMAT_VERSION, MANIFEST, Shards, is_shards, listed
from hornbook.shards.splits import Piece, SplitRule
from hornbook.shards.twins import Twins, find_twins
from hornbook.shards.writer import STATE, Encoded, PieceEncoder, ShardWriter, read_state, write_state
from hornbook.text.corpora import find_source
from hornbook.text.documents import AS_IT_COMES, TextConfig
from hornbook.text.encoder import EncoderFailed, SlowEncoder, fastest_encoder, has_gigatoken
from hornbook.text.learning import learn
from hornbook.text.readers import Source
from hornbook.text.tokenizer import LEARNED, Tokenizer, TokenizerConfig, refuse_ids, train_tokenizer

BATCH_CHARACTERS = 8_000_000
BATCHES_WAITING = 4
TOKENS_PER_SHARD = 100_000_000
YARDSTICK_BYTES = 8_000_000
LEAST_YARDSTICK_BYTES = 1000  # of less text, a compressor's own heads and tables are most of what it writes
LONG_LEARNING_SECONDS = 10.0
SHARE_OF_TWINS_TO_WARN_OF = 0.01
SPLIT_RULE = 2  # counted up where the same text with the same knobs is split in another way than before
LEAST_TO_LEARN_FROM = 10_000


class ShardsConfig(Settings):
    val_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the text held back for validation; a tenth of a small text, less of a large one, when not given."""
    test_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the text held back for a test at the very end."""


class PrepareConfig(Settings):
    """The knobs of a preparation by itself."""

    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
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
) -> Shards:
    """Write the shards of a source into the folder `out`, or find them there, every byte as it was written."""
    progress = progress or Progress(live=False)
    in_cache = out.parent == _cache()
    if not out.name or not (in_cache or is_shards(out)):  # before the text is read
        files.refuse_to_replace(out, listed)
    keep_freed_memory(one_heap=cores_to_use() <= 2)
    signature = source.signature()
    key = _key(signature, tokenizer_config, config)
    rule = SplitRule(source, config.val_fraction, config.test_fraction)  # what is no text leaves no folder behind
    if rule.measured.ids:
        refuse_ids(tokenizer_config.kind, rule.measured.ids)
    if in_cache:
        remove_abandoned(out.parent, out)
    other = f"{out}: another process is preparing this text; waiting for it"
    with ended_by_signals(), unfinished_folder(out, STATE, lambda: progress.note(other)) as place:
        if (there := _there(out, key, progress, whole=True)) is not None:
            return there
        if in_cache:  # where only we give names
            files.set_aside_strangers(out, listed)
        files.refuse_to_replace(out, listed)
        work = _Preparation(source, signature, rule, tokenizer_config, place, key, progress)
        try:
            manifest = work.run(fast=True)
        except EncoderFailed as failure:
            progress.note(f"{failure}; going on with tokenizers, which is slower")
            files.remove(place / STATE)
            manifest = work.run(fast=False)
        finish_folder(place, out, STATE, MANIFEST, manifest, listed)
    shards = Shards.open(out)
    shards.note_written()
    return shards


def report(manifest: dict[str, Any]) -> Iterator[str]:
    """What was prepared, a line each."""
    for name, facts in manifest["splits"].items():
        size = count(float(facts["bytes_of_text"]))
        yield f"{name:6} {facts['documents']:,} documents, {size} bytes, {facts['tokens']:,} tokens"
    facts = manifest["report"]
    yield (
        f"{facts['bytes_per_token']:.2f} bytes per token; {count(facts['bytes_per_second'])} bytes a second, "
        f"{duration(facts['seconds'])} in all, encoded by {facts['encoder']}"
    )
    yield from changed_in_reading(manifest)
    if (twins := Twins(**facts.get("twins", {}))).documents:
        yield told_of(twins)


def changed_in_reading(manifest: dict[str, Any]) -> Iterator[str]:
    """Where the tokens are not all of the text as it stood there: one line."""
    reading = manifest.get("reading", {})
    counts = {
        "characters replaced": reading.get("replaced_characters", 0),
        "records passed over": reading.get("skipped_records", 0),
        "attachments passed over": reading.get("attachments", 0),
        "documents dropped whose text is held back": manifest.get("report", {}).get("duplicates", 0),
    }
    if any(counts.values()):
        yield ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def told_of(twins: Twins) -> str:
    return (
        f"of {twins.compared:,} validation documents compared, {twins.documents:,} ({twins.share:.0%}) are in the "
        "training text too, but for small changes"
    )


def too_little(shards: Shards) -> str | None:
    """A word on a text from which nothing can be learned but itself."""
    text_bytes = sum(facts["bytes_of_text"] for facts in shards.manifest["splits"].values())
    if text_bytes >= LEAST_TO_LEARN_FROM:
        return None
    return (
        f"{shards.manifest['name']}: only {text_bytes:,} bytes of text, far too little to learn from: 100 kB teach a "
        "model words, and 1 MB, a long novel, is a sensible beginning"
    )


@dataclass
class _Preparation:
    """One text on its way into a folder."""

    source: Source
    signature: str
    rule: SplitRule
    config: TokenizerConfig
    place: Path
    key: str
    progress: Progress
    _held_back: list[bytes] = field(default_factory=list)

    def run(self, fast: bool) -> dict[str, Any]:
        """Everything but the manifest, which it returns."""
        state = read_state(self.place, self.key)
        if state is None:
            empty_unfinished(self.place)
            state = {"key": self.key}
            tokenizer = self._learn(state)
        else:
            tokenizer = Tokenizer.load(self.place)
            self.progress.note(f"going on with the preparation of {self.source.name} that was cut off")
        if fast and tokenizer.has_gpt2_pieces and not has_gigatoken():
            self.progress.note("gigatoken is not installed; going on with tokenizers, which is slower")
        encoder = PieceEncoder(tokenizer, fastest_encoder if fast else SlowEncoder)
        measured = self.rule.measured
        known = measured.text_bytes if measured.whole and not measured.ids else None
        writer = ShardWriter(self.place, tokenizer, TOKENS_PER_SHARD, state, known)
        try:
            with Background() as ahead:
                with garbage_sought_among_new_objects():
                    self._write(writer, encoder, ahead)
                scale = ahead.submit(yardsticks, self._held_back if tokenizer.keeps_text else [])
                writer.finish()
                twins = self._twins(tokenizer, writer)
            return self._manifest(tokenizer, encoder, writer, twins, scale.result())
        finally:
            writer.abandon()

    def _twins(self, tokenizer: Tokenizer, writer: ShardWriter) -> Twins:
        twins = find_twins(writer.ids_of("val"), writer.ids_of("train"), tokenizer.end_of_text)
        if twins.share >= SHARE_OF_TWINS_TO_WARN_OF:
            warn(f"{told_of(twins)}: validation will look better than it is; leave such copies out of the text")
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

    def _write(self, writer: ShardWriter, encoder: PieceEncoder, ahead: Background) -> None:
        waiting: deque[tuple[Future[list[Encoded]], int]] = deque()
        measured, done = self.rule.measured, 0
        ahead.submit(lambda: encoder.inner)  # which takes a while to be loaded
        for batch, items, size in self._batches(writer.items):
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
        if (tally := self.rule.tally).skipped:
            warn(f"{tally.skipped:,} records were passed over, the first: {tally.first_skipped}")

    def _batches(self, have: int) -> Iterator[tuple[list[Piece], int, int]]:
        """Pieces, how many things of the source are read with them, and their bytes; without the first `have`."""
        self._held_back = []
        batch: list[Piece] = []
        size = items = held = 0
        for items, pieces in enumerate(self.rule.split(), start=1):
            for piece in pieces:
                if piece.split == "val" and piece.ids is None and held <= YARDSTICK_BYTES:
                    self._held_back.append(piece.data)
                    held += len(piece.data)
            if items <= have:
                continue
            batch += pieces
            size += sum(len(piece.data) for piece in pieces)
            if size >= BATCH_CHARACTERS:
                yield batch, items, size
                batch, size = [], 0
        yield batch, items, size

    def _manifest(
        self,
        tokenizer: Tokenizer,
        encoder: PieceEncoder,
        writer: ShardWriter,
        twins: Twins,
        bits_per_byte: dict[str, float],
    ) -> dict[str, Any]:
        splits: dict[str, Any] = {
            name: {key: value for key, value in asdict(split).items() if key != "open_bytes"}
            for name, split in writer.splits.items()
            if name != "test" or split.shards
        }
        if bits_per_byte:
            splits["val"]["yardsticks"] = bits_per_byte
        totals = {
            name: sum(facts[name] for facts in splits.values()) for name in ("documents", "bytes_of_text", "tokens")
        }
        seconds = writer.seconds
        content = [tokenizer.fingerprint, *(each["sha256"] for facts in splits.values() for each in facts["shards"])]
        return {
            "format_version": FORMAT_VERSION,
            "name": self.source.name.encode(errors="backslashreplace").decode(),
            "key": self.key,
            "dtype": f"uint{writer.dtype.itemsize * 8}",
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": self.config.kind,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "source_signature": self.signature,
            **({"origins": origins} if (origins := self.source.origins) else {}),
            "split_rule": self.rule.description,
            "reading": {
                "replaced_characters": self.rule.tally.replaced,
                "skipped_records": self.rule.tally.skipped,
                "attachments": self.rule.tally.attachments,
                "left_out_files": self.source.left_out,
            },
            "report": totals
            | {
                "bytes_per_token": totals["bytes_of_text"] / max(totals["tokens"], 1),
                "duplicates": self.rule.duplicates,
                "twins": asdict(twins),
                "encoder": encoder.inner.name if totals["tokens"] else None,
                "seconds": seconds,
                "bytes_per_second": totals["bytes_of_text"] / max(seconds, 1e-9),
            },
            "splits": splits,
            "fingerprint": hashlib.sha256("".join(content).encode()).hexdigest(),
        }


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


def yardsticks(text: Sequence[bytes]) -> dict[str, float]:
    """Bits per byte that general compressors need for a text, for scale; of a long one not told."""
    whole = b"".join(text)
    if not LEAST_YARDSTICK_BYTES <= len(whole) <= YARDSTICK_BYTES:
        return {}
    # Preset 9 of xz, without clearing memory for eight times as much as there may be to remember.
    xz = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": YARDSTICK_BYTES}
    sizes = {"gzip -9": len(gzip.compress(whole, 9)), "xz -9": len(lzma.compress(whole, filters=[xz]))}
    return {name: 8 * size / len(whole) for name, size in sizes.items()}
