"""The generation loop.

In: a model, the prompt's ids, rules.  Out: new ids, one by one.

The window rule: a model sees at most `context` tokens. When a text outgrows it, the window jumps forward by half a
context and the text goes on; tokens before the window are forgotten. The start depends on the length alone
(`window_start`), so generation with the cache equals generation without it, and a prompt longer than the context is
cut where the same text, had it been generated, would have been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hornbook.infer.config import SamplerConfig
from hornbook.infer.sampler import next_tokens
from hornbook.model.attention import KVCache
from hornbook.model.gpt import GPT


def window_start(length: int, context: int) -> int:
    """Where the window starts that predicts the token after `length` tokens."""
    if length <= context:
        return 0
    stride = context - context // 2
    return -(-(length - context) // stride) * stride


def generate(
    model: GPT,
    prompt: Sequence[int],
    rules: SamplerConfig,
    *,
    seed: int = 0,
    max_tokens: int = 256,
    end_of_text: int | None = None,
    known_ids: int | None = None,
    cached: bool = True,
) -> Iterator[int]:
    """Continue a prompt until `max_tokens`, or the end-of-text id, which is not handed out. Ids from `known_ids` on, of
    a vocabulary that was widened, stand for no text and are never taken."""
    device, dtype = model.head.weight.device, model.head.weight.dtype
    context = model.config.context
    tokens = list(prompt)
    cache = KVCache(model.config, 1, device, dtype) if cached else None
    start = 0
    for _ in range(max_tokens):
        moved = window_start(len(tokens), context)
        if cache is not None and moved != start:
            cache.reset()
        start = moved
        unseen = tokens[start + (cache.length if cache is not None else 0) :]
        with torch.inference_mode():
            logits = last_logits(model, torch.tensor([unseen], device=device), cache)[:, :known_ids]
            token = int(next_tokens(logits, rules, [seed], len(tokens))[0])
        if token == end_of_text:
            return
        tokens.append(token)
        yield token


def last_logits(model: GPT, ids: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
    """(B, T) to the logits after the last token, (B, V): the head is not computed for the others."""
    return model.read_off(model(ids, cache)[:, -1])
