"""A model against a text, for `hornbook eval`.

In: paths.  Out: the score, with what was scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.errors import UserError
from hornbook.infer.speaker import load_speaker
from hornbook.model.folder import RUN, data_of_run
from hornbook.shards.format import Shards, TokenArray, is_shards
from hornbook.text.corpora import find_source


def evaluate(path: Path, data: str | None, at: str = "best", device: str | None = None) -> dict[str, Any]:
    """Score the text `data`, or the validation split of shards; a run's own where none is named."""
    speaker = load_speaker(path, at, device)
    if data is None:
        if not (path / RUN).is_file():
            raise UserError(f"{path}: a model, not a run, so name the text: --data PATH")
        data = str(data_of_run(path))
    if is_shards(Path(data)):
        shards = Shards.open(Path(data))
        if shards.manifest["tokenizer_fingerprint"] != speaker.tokenizer.fingerprint:
            raise UserError(
                f"{data}: prepared with another tokenizer than the model's; name the text itself: --data PATH"
            )
        tokens, text_bytes = shards.split("val"), shards.split_facts("val")["bytes_of_text"]
        text = f"validation part of {shards.manifest['name']}"
    else:
        # A document begins after the end of the one before; the first one too.
        end = speaker.tokenizer.end_of_text
        ids, text_bytes = [end], 0
        for document in find_source(data).documents():
            if document.ids is None:
                ids += speaker.encode(document.text) + [end] * document.ends
                text_bytes += len(document.text.encode())
            else:
                given = speaker.tokenizer.checked(document.ids, document.name)
                ids += given
                text_bytes += len(speaker.tokenizer.decode_bytes(given))
        tokens, text = TokenArray([np.asarray(ids, dtype=np.uint32)]), data
    return {"text": text, "model": str(speaker.folder), **speaker.score_tokens(tokens, text_bytes).as_dict()}
