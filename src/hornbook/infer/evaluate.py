"""A model against a text, for `hornbook eval`.

In: paths.  Out: the score, with what was scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base import files
from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.infer.looks import Looks, now
from hornbook.infer.score import Score
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards, TokenArray, is_shards
from hornbook.text.corpora import find_source, held_out, is_corpus
from hornbook.text.tokenizer import Tokenizer

PARTS = {"val": "validation", "test": "test"}


def evaluate(
    path: Path,
    data: str | None,
    at: str = "best",
    device: str | None = None,
    dtype: str | None = None,
    split: str = "val",
) -> dict[str, Any]:
    """Score the text `data`, or a split of shards, or the validation split of a corpus that brings one; a run's own
    shards where none is named. The test split of a run is scored once for a model, and each look at it kept."""
    speaker = load_speaker(path, at, device, dtype)
    looks = None
    if data is None:
        run = RunFolder(path)
        if not run.has_record():
            raise UserError(f"{path}: a model, not a run, so name the text: --data PATH")
        data = str(run.record().shards)
        looks = Looks.of(run) if split == "test" else None
    if is_shards(Path(data)):
        tokens, text_bytes, name = _part(Path(data), split, speaker.tokenizer)
        text = f"{PARTS[split]} part of {name}"
    else:
        if split != "val":
            raise UserError(
                f"--split {split}: goes with a run or with shards; a text or a corpus's part is named: --data"
            )
        chosen = held_out(data) if is_corpus(data) else data
        tokens, text_bytes = _framed(speaker.tokenizer, chosen)
        text = data if chosen == data else f"validation split of {data}"
    facts = {"text": text, "model": str(speaker.folder), "keeps_text": speaker.tokenizer.keeps_text}
    if looks is None:
        return facts | speaker.score_tokens(tokens, text_bytes).as_dict()
    return facts | _looked(looks, speaker, dtype or "float32", tokens, text_bytes)


def _looked(looks: Looks, speaker: Speaker, dtype: str, tokens: TokenArray, text_bytes: int) -> dict[str, Any]:
    """What is known of this model, or found out now; and the looks before it."""
    checkpoint = files.sha256(speaker.folder / files.MANIFEST)
    if looks.so_far:
        warn(f"the test part was looked at before, {looks.told()}; the more is chosen by it, the less it tells")
    if (known := looks.find(checkpoint, dtype)) is None:
        score = speaker.score_tokens(tokens, text_bytes)
        known = {
            "when": now(),
            "model": str(speaker.folder),
            "checkpoint": checkpoint,
            "dtype": dtype,
        } | score.as_dict()
        looks.keep(known)
    scored = {name: known[name] for name in Score.__dataclass_fields__}
    return scored | {"scored_at": known["when"], "looked_before": list(looks.so_far)}


def _part(folder: Path, split: str, tokenizer: Tokenizer) -> tuple[TokenArray, int, str]:
    """A split of shards, its bytes of text, and what the text is called."""
    shards = Shards.open(folder)
    if shards.manifest["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"{folder}: prepared with another tokenizer than the model's; name the text itself: --data PATH"
        )
    if not shards.manifest["splits"].get(split, {}).get("tokens"):
        raise UserError(f"{folder}: holds no {split} part; train anew with --shards.{split}-fraction 0.05")
    return shards.split(split), shards.bytes_of_text(split), shards.manifest["name"]


def _framed(tokenizer: Tokenizer, name: str) -> tuple[TokenArray, int]:
    """The documents of a text as preparation frames them, and their bytes. A document begins with the tokenizer's
    opening, where it has one, else after the end of the one before; the first one too."""
    opening, end = tokenizer.opening, [tokenizer.end_of_text]
    parts, text_bytes, begins = [np.array([] if opening else end, np.uint32)], 0, True
    for document in find_source(name).documents():
        if document.ids is None:
            ids = [*(opening if begins else []), *tokenizer.encode(document.text), *(end if document.ends else [])]
            text_bytes += len(document.text.encode())
        else:
            ids = tokenizer.checked(document.ids, document.name)
            text_bytes += len(tokenizer.decode_bytes(ids))
        parts.append(np.array(ids, np.uint32))
        begins = document.ends
    return TokenArray([part for part in parts if len(part)]), text_bytes
