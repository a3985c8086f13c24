"""Documents become shards.

In: a `Source`, and knobs.  Out: a folder of shards; the one that was made before, where text and knobs are the same.
The text is read twice: once to learn the vocabulary and to count, once to encode. An end-of-text id follows every
document.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from hornbook.base import files
from hornbook.base.console import Progress, count, warn
from hornbook.base.errors import UserError
from hornbook.base.settings import Settings
from hornbook.shards.format import FORMAT_VERSION, MANIFEST, Shards, is_shards
from hornbook.text.corpora import find_source
from hornbook.text.documents import AS_IT_COMES, Document, TextConfig
from hornbook.text.readers import Source
from hornbook.text.streams import Tally
from hornbook.text.tokenizer import KINDS, LEARNED, Tokenizer, TokenizerConfig, train_tokenizer

FEW_DOCUMENTS = 64
FEW_HELD_BACK = 6
BATCH_CHARACTERS = 4_000_000
TOKENS_PER_SHARD = 100_000_000
YARDSTICK_BYTES = 8_000_000
BYTES_PER_ID = 4  # about, before the ids are decoded


class ShardsConfig(Settings):
    val_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the text held back for validation; a tenth of a small text, less of a large one, when not given."""


class PrepareConfig(Settings):
    """The knobs of a preparation by itself."""

    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    shards: ShardsConfig = ShardsConfig()


@dataclass
class _SplitWriter:
    """The files of one split as they grow."""

    name: str
    folder: Path
    dtype: np.dtype[Any]
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    _file: files.BinaryWriter | None = None

    def add(self, ids: list[int], text_bytes: int, ends: bool) -> None:
        if self._file is None:
            self._file = files.BinaryWriter(self.folder / f"{self.name}-{len(self.shards):05}.bin")
        self._file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.tokens += len(ids)
        self.documents += ends
        self.text_bytes += text_bytes
        if self._file.bytes_written >= TOKENS_PER_SHARD * self.dtype.itemsize:
            self.close_file()

    def close_file(self) -> None:
        if self._file is not None:
            digest = self._file.close()
            facts = {"name": self._file.path.name, "bytes": self._file.bytes_written, "sha256": digest}
            self.shards.append(facts)
            self._file = None

    def facts(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes_of_text": self.text_bytes,
            "shards": self.shards,
        }


def open_or_prepare(
    data: str,
    tokenizer: TokenizerConfig,
    shards: ShardsConfig,
    progress: Progress | None = None,
    text: TextConfig = AS_IT_COMES,
) -> Shards:
    """Shards of a corpus, of the text at a path, or at a folder of shards; prepared now unless they are there."""
    if is_shards(Path(data)):
        return Shards.open(Path(data))
    source = find_source(data, text, progress=progress)
    out = default_folder(source, tokenizer, shards)
    files.remove_leftovers(out.parent, shared=True)
    if is_shards(out):
        try:
            return Shards.open(out)
        except UserError:
            files.remove(out)
    return prepare(source, tokenizer, shards, out, progress)


def default_folder(source: Source, tokenizer: TokenizerConfig, shards: ShardsConfig) -> Path:
    """A place in the cache for just this text and these knobs: when one changes, so does the place."""
    parts = [FORMAT_VERSION, source.signature(), tokenizer.model_dump(), shards.model_dump()]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return files.home() / "shards" / f"{source.name}-{digest[:12]}"


def prepare(
    source: Source,
    tokenizer_config: TokenizerConfig,
    config: ShardsConfig,
    out: Path,
    progress: Progress | None = None,
) -> Shards:
    """Write the shards of a source into the folder `out`."""
    progress = progress or Progress(live=False)
    tally = Tally()
    measured = _measure(source, tally)
    if measured.ids and tokenizer_config.kind in LEARNED:
        made = ", ".join(kind for kind in KINDS if kind not in LEARNED)
        raise UserError(
            f"{measured.ids}: holds ids, which mean nothing to a {tokenizer_config.kind} vocabulary yet to be learned; "
            f"name the one that made them: --tokenizer.kind with one of {made}"
        )
    fraction = config.val_fraction or val_fraction_for(measured.text_bytes)
    rule = _SplitRule(measured, fraction)
    progress.update(
        f"learning a {tokenizer_config.kind} vocabulary from {count(measured.text_bytes)} bytes of {source.name}"
    )
    texts = _sample_for_vocabulary(source, rule, tokenizer_config.train_bytes)
    tokenizer = train_tokenizer(tokenizer_config, texts, measured.text_bytes)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    manifest: dict[str, Any] = {}
    with files.folder_with_manifest(out, MANIFEST, manifest) as staging:
        tokenizer.save(staging)
        writers = {name: _SplitWriter(name, staging, dtype) for name in ("train", "val", "test")}
        val_text: list[bytes] = []
        done = 0
        for batch in _batches(rule.split(source.documents())):
            encoded = _encoded(tokenizer, [document for _, document in batch])
            for (split, document), (ids, data) in zip(batch, encoded, strict=True):
                writers[split].add(ids, len(data), document.ends)
                done += len(data)
                if split == "val":
                    val_text.append(data)
                    val_text = val_text if writers["val"].text_bytes <= YARDSTICK_BYTES else []
            share = done / max(measured.text_bytes, 1)
            progress.update(f"preparing {source.name}: {share:.0%} of {count(measured.text_bytes)} bytes")
        for writer in writers.values():
            writer.close_file()
        splits = {name: writer.facts() for name, writer in writers.items() if name != "test" or writer.tokens}
        if val_text:
            splits["val"]["yardsticks"] = _yardsticks(b"".join(val_text))
        content = [
            tokenizer.fingerprint,
            *(each["sha256"] for facts in splits.values() for each in facts["shards"]),
        ]
        manifest |= {
            "format_version": FORMAT_VERSION,
            "name": source.name,
            "dtype": f"uint{dtype.itemsize * 8}",
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer_config.kind,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "source_signature": source.signature(),
            "split_rule": rule.description,
            "reading": {"replaced_characters": tally.replaced, "skipped_records": tally.skipped},
            "splits": splits,
            "fingerprint": hashlib.sha256("".join(content).encode()).hexdigest(),
        }
    return Shards.open(out)


def val_fraction_for(text_bytes: int) -> float:
    """A tenth of a text up to 5 MB, half a megabyte up to 1 GB, and then a two-thousandth."""
    return max(min(0.1, 500_000 / max(text_bytes, 1)), 0.0005)


@dataclass(frozen=True)
class _Measured:
    text_bytes: int
    documents: int
    """These, and their characters, are of what brings no split of its own."""
    characters: int
    """Ids, where the source holds these."""
    ids: str
    """What holds ids, where something does."""


class _SplitRule:
    """Which split a document belongs to: by the hash of its text, so that it stays there when others are added; with
    few documents, where hashing would be a lottery, the text's tail."""

    def __init__(self, measured: _Measured, fraction: float) -> None:
        self._threshold = int(fraction * 2**64)
        few = measured.documents < FEW_DOCUMENTS or measured.documents * fraction < FEW_HELD_BACK
        self._tail_from = int(measured.characters * (1 - fraction)) if few else None
        rule = "hash of the document's text" if self._tail_from is None else "tail of the text"
        self.description = f"{rule}, {fraction:.4g} for validation"
        if not measured.characters:
            self.description = "the corpus's own"

    def split(self, documents: Iterator[Document]) -> Iterator[tuple[str, Document]]:
        characters, begins, home = 0, True, "train"
        for document in documents:
            if document.split:
                yield document.split, document
                continue
            if self._tail_from is None:
                if begins:  # the pieces of a long document stay together
                    content = document.text.encode() if document.ids is None else document.ids.tobytes()
                    digest = hashlib.sha256(content).digest()
                    home = "val" if int.from_bytes(digest[:8], "big") < self._threshold else "train"
                begins = document.ends
                yield home, document
                continue
            head, tail = document.cut(self._tail_from - characters)
            characters += document.size
            for split, part in (("train", head), ("val", tail)):
                if part is not None:
                    yield split, part


def _measure(source: Source, tally: Tally) -> _Measured:
    documents = text_bytes = characters = 0
    ids = ""
    for document in source.documents(tally):
        text_bytes += len(document.text.encode()) if document.ids is None else BYTES_PER_ID * document.size
        if not document.split:
            documents += document.ends
            characters += document.size
        ids = ids or ("" if document.ids is None else document.name)
    if tally.skipped:
        warn(f"{tally.skipped:,} records were passed over, the first: {tally.first_skipped}")
    return _Measured(text_bytes, documents, characters, ids)


def _encoded(tokenizer: Tokenizer, documents: list[Document]) -> list[tuple[list[int], bytes]]:
    """The ids of each, and the bytes that they stand for. Ids from elsewhere hold their ends of text already."""
    fresh = iter(tokenizer.encode_batch([document.text for document in documents if document.ids is None]))
    pairs = []
    for document in documents:
        if document.ids is None:
            pairs.append((next(fresh) + [tokenizer.end_of_text] * document.ends, document.text.encode()))
        else:
            ids = tokenizer.checked(document.ids, document.name)
            pairs.append((ids, tokenizer.decode_bytes(ids)))
    return pairs


def _sample_for_vocabulary(source: Source, rule: _SplitRule, limit: int) -> Iterator[str]:
    read = 0
    for split, document in rule.split(source.documents()):
        if split == "train" and document.ids is None:
            yield document.text
            read += len(document.text.encode())
            if read >= limit:
                return


def _batches(pairs: Iterator[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    characters = 0
    for pair in pairs:
        batch.append(pair)
        characters += pair[1].size
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _yardsticks(text: bytes) -> dict[str, float]:
    """Bits per byte that general compressors need for the same text."""
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}
