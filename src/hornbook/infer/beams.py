"""Beam search: the likeliest text, as far as one looks.

In: a model, a prompt's ids, how many beams.  Out: the best finished texts, the best first, with their scores.
A score is the sum of log-probabilities, divided by the number of new tokens (the end-of-text token among them) to the
power of the length penalty. The search ends when as many texts as there are beams have finished and the best of those
that still run, were it to end now, would not come among them: what transformers does with `early_stopping=False`.
Penalties on tokens apply to the log-probabilities; windows jump as in `decode`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import Chosen, KVCache, told, window_start
from hornbook.infer.sampler import penalized
from hornbook.model.gpt import GPT


@dataclass(frozen=True)
class Beam:
    tokens: tuple[Chosen, ...]
    total: float
    """The sum of log-probabilities."""
    score: float = 0.0
    ended: str | None = None

    @property
    def ids(self) -> list[int]:
        return [each.id for each in self.tokens]


def beam_search(
    model: GPT,
    prompt: Sequence[int],
    rules: SamplerConfig,
    *,
    beams: int,
    length_penalty: float = 1.0,
    max_tokens: int = 256,
    alternatives: int | None = None,
    end_of_text: int | None = None,
    known_ids: int | None = None,
    cache_dtype: torch.dtype | None = None,
    is_stopped: Callable[[list[int]], bool] = lambda _: False,
) -> list[Beam]:
    """`is_stopped` ends a text by its new ids. The end-of-text token is not among the tokens handed out."""
    device = model.embedding.weight.device
    cache = KVCache(model.config, beams, device, cache_dtype or model.embedding.weight.dtype)
    running, finished, start = [Beam((), 0.0)], list[Beam](), 0
    for length in range(1, max_tokens + 1):
        moved = window_start(len(prompt) + length - 1, model.config.context)
        for row in range(len(running) if moved != start else 0):
            cache.forget(row)
        start = moved
        logprobs = _logprobs(model, prompt, running, start, cache, known_ids)
        candidates, rows = [], []
        for row, token, total in _likeliest(logprobs, prompt, running, rules, 2 * beams):
            chosen = Chosen(token) if alternatives is None else told(token, logprobs[row], alternatives)
            beam = Beam((*running[row].tokens, chosen), total, total / length**length_penalty)
            candidates.append(_judged(beam, length >= max_tokens, end_of_text, is_stopped))
            rows.append(row)
        ends = [each for each in candidates[:beams] if each.ended]
        finished = sorted(finished + ends, key=lambda each: -each.score)[:beams]
        go_on = [(beam, row) for beam, row in zip(candidates, rows, strict=True) if not beam.ended][:beams]
        if not go_on or (len(finished) == beams and go_on[0][0].score <= finished[-1].score):
            break
        running = [beam for beam, _ in go_on]
        cache.copy_rows([row for _, row in go_on])
    return [replace(each, tokens=each.tokens[:-1]) if each.ended == "end_of_text" else each for each in finished]


def _logprobs(
    model: GPT, prompt: Sequence[int], running: list[Beam], start: int, cache: KVCache, known_ids: int | None
) -> torch.Tensor:
    """Of the next token of each beam, (beams, V), in fp32."""
    held = start + int(cache.lengths[0])
    unseen = [[*prompt[held:], *beam.ids[max(held - len(prompt), 0) :]] for beam in running]
    with torch.inference_mode():
        ids = torch.tensor(unseen, device=cache.keys.device)
        last = model.hidden(ids, cache.part(0, len(running)))[:, -1]
        return model.logits_of(last)[:, :known_ids].float().log_softmax(-1)


def _likeliest(
    logprobs: torch.Tensor, prompt: Sequence[int], running: list[Beam], rules: SamplerConfig, count: int
) -> list[tuple[int, int, float]]:
    """The best continuations by one token: (beam, token, sum of log-probabilities), the best first."""
    scores = torch.stack(
        [
            penalized(row, rules, [*prompt, *beam.ids], len(prompt)) + beam.total
            for row, beam in zip(logprobs, running, strict=True)
        ]
    )
    best = scores.flatten().topk(min(count, scores.numel()))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(*divmod(place, scores.shape[1]), total) for place, total in pairs]


def _judged(beam: Beam, is_longest: bool, end_of_text: int | None, is_stopped: Callable[[list[int]], bool]) -> Beam:
    if beam.tokens[-1].id == end_of_text:
        return replace(beam, ended="end_of_text")
    if is_stopped(beam.ids):
        return replace(beam, ended="stop")
    return replace(beam, ended="length") if is_longest else beam
