"""What a model looked at when it chose a token.

In: a prompt, and the ids that stand between it and the token.  Out: the tokens before it that the model saw, with the
weights that the heads of one layer gave them, or on average those of all. Computed when it is asked for, one at a time,
so that texts that are being written need not wait long.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from hornbook.infer.attended import attended_by
from hornbook.infer.decode import window_start
from hornbook.infer.speaker import Speaker
from hornbook.serve.answers import AttentionAnswer
from hornbook.serve.completions import MAX_TOKENS, PROMPT_TOKENS, MistakeError, check_ids, ids_and_text, name_of
from hornbook.serve.engine import RefusedError
from hornbook.serve.models import Models


class AttentionRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str = ""
    ids: list[int] = Field([], max_length=MAX_TOKENS, fail_fast=True)
    """What was written since, up to the token in question: `token_ids` of a completion."""
    layer: int | None = Field(None, ge=0)
    """Counted from 0; the mean of all layers when not given."""


def add_attention(app: FastAPI, models: Models) -> None:
    turn = asyncio.Lock()
    waiting = 0

    @app.post("/api/attention")
    async def look_at_attention(asked: AttentionRequest) -> AttentionAnswer:
        """What the model looked at when it chose the token that follows."""
        nonlocal waiting
        if models.closing or waiting > models.config.queue:  # beside the one that is answered
            raise RefusedError("closing" if models.closing else "full")
        waiting += 1
        try:
            async with turn, models.engine(asked.model) as engine:
                return await asyncio.to_thread(_answer, asked, engine.speaker)
        finally:
            waiting -= 1


def _answer(asked: AttentionRequest, speaker: Speaker) -> AttentionAnswer:
    config = speaker.model.config
    if asked.layer is not None and asked.layer >= config.n_layer:
        raise MistakeError("layer", f"this model has {config.n_layer}, from 0 to {config.n_layer - 1}")
    check_ids("ids", asked.ids, speaker)
    text = [*ids_and_text(asked.prompt, speaker)[0], *asked.ids]
    if len(text) > PROMPT_TOKENS + MAX_TOKENS:
        raise MistakeError("prompt", f"more than {PROMPT_TOKENS:,} tokens, which this server takes at most")
    start = window_start(len(text), config.context)
    weights = attended_by(speaker.model, text[start:], last=1).weights[:, :, 0]  # (L, H, S)
    of_heads = weights.mean(axis=0) if asked.layer is None else weights[asked.layer]
    return {
        "forgotten": start,
        "layers": config.n_layer,
        "tokens": [name_of(token, speaker.tokenizer) for token in text[start:]],
        "weights": of_heads.astype(float).round(6).tolist(),
    }
