"""A model against a text, for `hornbook eval`.

In: paths.  Out: the score, with what was scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.errors import UserError
from hornbook.infer.speaker import load_speaker
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards, TokenArray, is_shards
from hornbook.text.corpora import find_source, held_out, is_corpus
from hornbook.text.tokenizer import Tokenizer


def evaluate(
    path: Path, data: str | None, at: str = "best", device: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """Score the text `data`, or the validation split of shards or of a corpus that brings one; a run's own shards
    where none is named."""
    speaker = load_speaker(path, at, device, dtype)
    if data is None:
        if not RunFolder(path).has_record():
            raise UserError(f"{path}: a model, not a run, so name the text: --data PATH")
        data = str(RunFolder(path).record().shards)
    if is_shards(Path(data)):
        shards = Shards.open(Path(data))
        if shards.manifest["tokenizer_fingerprint"] != speaker.tokenizer.fingerprint:
            raise UserError(
                f"{data}: prepared with another tokenizer than the model's; name the text itself: --data PATH"
            )
        tokens, text_bytes = shards.split("val"), shards.split_facts("val")["bytes_of_text"]
        text = f"validation part of {shards.manifest['name']}"
    else:
        chosen = held_out(data) if is_corpus(data) else data
        tokens, text_bytes = _framed(speaker.tokenizer, chosen)
        text = data if chosen == data else f"validation split of {data}"
    facts = {"text": text, "model": str(speaker.folder), "keeps_text": speaker.tokenizer.keeps_text}
    return facts | speaker.score_tokens(tokens, text_bytes).as_dict()


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
