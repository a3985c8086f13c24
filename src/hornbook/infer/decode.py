"""The generation loop, and what attention remembers between its steps.

In: a model, and texts to go on with, each with rules of its own.  Out: new ids, one for each text at a time.

The window rule: a model sees at most `context` tokens. When a text outgrows it, the window jumps forward by half a
context and the text goes on; tokens before the window are forgotten. The start depends on the length alone
(`window_start`), so generation with the cache equals generation without it, and a prompt longer than the context is
cut where the same text, had it been generated, would have been.

Texts of any length share one cache, a row each; they come and go while others go on. What a text becomes depends on its
own prompt, rules and seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from hornbook.infer.config import SamplerConfig
from hornbook.infer.sampler import next_tokens, penalized
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT
from hornbook.model.layers import id_before

ROWS = 8
CHUNK = 256  # tokens of prompts at a time: while they are computed, running texts wait


@dataclass(frozen=True)
class Chosen:
    """A token, and where it was asked for, what the model thought of it and of the likeliest, before any rule."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Growing:
    """A text that is being continued."""

    tokens: list[int]
    rules: SamplerConfig
    seed: int = 0
    max_tokens: int = 256
    alternatives: int | None = None
    """Of each token, so many likeliest with their log-probabilities; None: not even its own."""
    ended: str | None = None
    """`end_of_text`, `length`, or what else whoever listens sets to end it."""
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.tokens)
        self.prompt_length = len(self.tokens)

    def take(self, chosen: Chosen, end_of_text: int | None) -> Chosen | None:
        """Put a token to the text, or end it; the end-of-text token is not of the text."""
        if chosen.id == end_of_text:
            self.ended = "end_of_text"
            return None
        self.tokens.append(chosen.id)
        if len(self.tokens) - self.prompt_length >= self.max_tokens:
            self.ended = "length"
        return chosen


def window_start(length: int, context: int) -> int:
    """Where the window starts that predicts the token after `length` tokens."""
    if length <= context:
        return 0
    stride = context - context // 2
    return -(-(length - context) // stride) * stride


class KVCache:
    """Keys and values of the tokens seen so far, for every layer: (B, K, context, D) each. A row is one sequence, and
    each has a length of its own; every row of a part gets the same number of new tokens at a time."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.kv_heads, config.context, config.width_of_head)
        # Zeros: what a longer neighbour makes visible of a row gets no weight, but no weight times a NaN is a NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long, device="cpu")
        self.last_ids = torch.full((batch, 1), -1, device=device)  # where pairs of neighbours matter
        self.end = 0  # how many tokens the longest row holds with its newest
        self.mask: torch.Tensor | None = None  # (B, 1, T, S), where rows differ in length
        self.positions: torch.Tensor  # of the newest: (T,), or (B, T) where rows differ
        self.rows: torch.Tensor  # (B, 1)

    def part(self, first: int, last: int) -> KVCache:
        """The rows from `first` up to `last`: the same memory, so that what is done to them is done to the whole."""
        part = KVCache.__new__(KVCache)
        part.keys, part.values = self.keys[:, first:last], self.values[:, first:last]
        part.lengths, part.last_ids = self.lengths[first:last], self.last_ids[first:last]
        part.end, part.mask = 0, None
        return part

    def begin(self, ids: torch.Tensor) -> None:
        """Before the first layer: where the newest (B, T) will stand, and what they may look at."""
        shortest, longest, device = int(self.lengths.min()), int(self.lengths.max()), self.keys.device
        self.mask, self.end = None, longest + ids.shape[1]
        self.positions = torch.arange(shortest, shortest + ids.shape[1], device=device)
        if shortest != longest:
            self.positions = self.positions + (self.lengths - shortest).to(device)[:, None]
            self.rows = torch.arange(len(self.positions), device=device)[:, None]
            later = torch.arange(self.end, device=device) > self.positions[:, None, :, None]
            # Added to scores: torch would make this of a mask of booleans in every layer anew.
            self.mask = torch.zeros(later.shape, device=device, dtype=self.keys.dtype).masked_fill_(later, -torch.inf)

    def previous(self, ids: torch.Tensor) -> torch.Tensor:
        """The id before each of the newest, (B, T)."""
        return id_before(ids, self.last_ids)

    def extend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Put the newest in place, and hand back all, with their queries, in the cache's number type."""
        keys, values = keys.to(self.keys.dtype), values.to(self.values.dtype)
        if self.mask is None:
            start = self.end - keys.shape[2]
            self.keys[layer, :, :, start : self.end], self.values[layer, :, :, start : self.end] = keys, values
        else:
            self.keys[layer].transpose(1, 2)[self.rows, self.positions] = keys.transpose(1, 2)
            self.values[layer].transpose(1, 2)[self.rows, self.positions] = values.transpose(1, 2)
        known = self.keys[layer, :, :, : self.end], self.values[layer, :, :, : self.end]
        return queries.to(self.keys.dtype), *known

    def advance(self, ids: torch.Tensor) -> None:
        """After the last layer: ids (B, T) were seen."""
        self.lengths += ids.shape[1]
        self.last_ids[:] = ids[:, -1:]

    def shorten(self, row: int, by: int, last_id: int) -> None:
        """Take back the newest tokens of a row; `last_id` is the newest that stays."""
        self.lengths[row] -= by
        self.last_ids[row] = last_id

    def forget(self, row: int) -> None:
        self.lengths[row] = 0
        self.last_ids[row] = -1

    def copy_rows(self, sources: list[int], first: int = 0) -> None:
        """Rows from `first` on become copies of `sources`."""
        last, length = first + len(sources), int(self.lengths[sources].max())
        self.keys[:, first:last, :, :length] = self.keys[:, sources, :, :length]
        self.values[:, first:last, :, :length] = self.values[:, sources, :, :length]
        self.lengths[first:last] = self.lengths[sources]
        self.last_ids[first:last] = self.last_ids[sources]


class Batch:
    """Texts that are computed together, each in a row of one cache; they may come and go between steps."""

    def __init__(
        self, model: GPT, rows: int, known_ids: int | None = None, cache_dtype: torch.dtype | None = None
    ) -> None:
        """Ids from `known_ids` on, of a vocabulary that was widened, stand for no text and are never taken. Keys and
        values are kept in `cache_dtype`, or in the model's own."""
        self.model, self.rows, self.known_ids = model, rows, known_ids
        self.device = model.embedding.weight.device
        self.cache = KVCache(model.config, rows, self.device, cache_dtype or model.embedding.weight.dtype)
        self.texts: list[Growing] = []
        self._starts: list[int] = []  # of the windows that the rows hold

    @property
    def has_room(self) -> bool:
        return len(self.texts) < self.rows

    def add(self, text: Growing) -> None:
        self.cache.forget(len(self.texts))
        self.texts.append(text)
        self._starts.append(0)

    def remove(self, text: Growing) -> None:
        """The last row takes its place, so that those in use stand together."""
        row, last = self.texts.index(text), len(self.texts) - 1
        if row != last:
            self.cache.copy_rows([last], row)
            self.texts[row], self._starts[row] = self.texts[last], self._starts[last]
        self.texts.pop()
        self._starts.pop()

    @torch.inference_mode()
    def step(self) -> list[tuple[Growing, Chosen]]:
        """The next token of every text that holds its window; whoever calls puts it to the text, or removes the text.
        Long prompts take several steps, in each of which the others get their token."""
        self._catch_up()
        ends = self._starts_of_unseen()
        # A row that still catches up goes on by one token like the others, only that nothing is read off.
        newest = [[text.tokens[end]] for text, end in zip(self.texts, ends, strict=True)]
        hidden = self.model.hidden(torch.tensor(newest, device=self.device), self.cache.part(0, len(self.texts)))
        ready = [row for row, text in enumerate(self.texts) if ends[row] == len(text.tokens) - 1]
        texts = [self.texts[row] for row in ready]
        if not ready:
            return []
        logits = self.model.logits_of(hidden[ready, -1])[:, : self.known_ids]
        return list(zip(texts, choose(texts, logits.float()), strict=True))

    def _starts_of_unseen(self) -> list[int]:
        """Of each text, its first token that the cache does not hold; the windows moved to where they should be."""
        for row, text in enumerate(self.texts):
            start = window_start(len(text.tokens), self.model.config.context)
            if start != self._starts[row]:
                self.cache.forget(row)
                self._starts[row] = start
        return [start + held for start, held in zip(self._starts, self.cache.lengths.tolist(), strict=False)]

    def _catch_up(self) -> None:
        """Bring rows nearer to holding their windows but for the last token, by CHUNK tokens at most. Rows side by side
        that hold equally much, above all those that begin together, are computed at once, the shorter ones padded."""
        room = CHUNK
        while room > 0:
            ends = self._starts_of_unseen()
            behind = [
                row
                for row, text in enumerate(self.texts)
                if ends[row] < len(text.tokens) - 1 and not self._is_copied(row, ends)
            ]
            if not behind:
                return
            first = last = behind[0]
            while last + 1 in behind and self.cache.lengths[last + 1] == self.cache.lengths[first]:
                last += 1
            rows = range(first, last + 1)
            unseen = [self.texts[row].tokens[ends[row] : -1] for row in rows]
            width = min(max(map(len, unseen)), max(room // len(rows), 1))
            unseen = [ids[:width] for ids in unseen]
            padded = [ids + [0] * (width - len(ids)) for ids in unseen]
            self.model.hidden(torch.tensor(padded, device=self.device), self.cache.part(first, last + 1))
            for row, ids in zip(rows, unseen, strict=True):
                self.cache.shorten(row, width - len(ids), ids[-1])
            room -= width * len(rows)

    def _is_copied(self, row: int, ends: list[int]) -> bool:
        """Whether another row holds the same window, or will; where it does, it is copied."""
        start, text = self._starts[row], self.texts[row]
        window = text.tokens[start:-1]
        for other, its in enumerate(self.texts):
            if other == row or self._starts[other] != start or its.tokens[start : start + len(window)] != window:
                continue
            if ends[other] - start >= len(window):
                surplus = int(self.cache.lengths[other]) - len(window)
                self.cache.copy_rows([other], row)
                self.cache.shorten(row, surplus, window[-1])
                return True
            if other < row and len(its.tokens) == len(text.tokens):
                return True
        return False


def choose(texts: Sequence[Growing], logits: torch.Tensor) -> list[Chosen]:
    """From logits (B, V), in fp32, a row for each text."""
    punished = logits
    if any(text.rules.repetition_penalty != 1 or text.rules.presence_penalty for text in texts):
        rows = zip(logits, texts, strict=True)
        punished = torch.stack([penalized(row, each.rules, each.tokens, each.prompt_length) for row, each in rows])
    lengths = [len(text.tokens) for text in texts]
    tokens = next_tokens(punished, [text.rules for text in texts], [text.seed for text in texts], lengths)
    return [
        Chosen(token) if text.alternatives is None else told(token, row.log_softmax(-1), text.alternatives)
        for token, text, row in zip(tokens, texts, logits, strict=True)
    ]


def told(token: int, logprobs: torch.Tensor, alternatives: int) -> Chosen:
    likeliest = logprobs.topk(min(alternatives, len(logprobs)))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return Chosen(token, logprobs[token].item(), tuple(pairs))


def grow(
    model: GPT,
    texts: Sequence[Growing],
    *,
    rows: int = ROWS,
    end_of_text: int | None = None,
    known_ids: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> Iterator[tuple[Growing, Chosen | None]]:
    """Every text with each of its new tokens, until all have ended, and what ended it set with the last; the
    end-of-text id is not handed out, but None. At most `rows` are computed at once; the others begin where one has
    ended. To end a text, set what ended it."""
    waiting = deque(texts)
    batch = Batch(model, min(rows, len(texts)), known_ids, cache_dtype)
    while waiting or batch.texts:
        while waiting and batch.has_room:
            batch.add(waiting.popleft())
        for text, chosen in batch.step():
            yield text, text.take(chosen, end_of_text)
            if text.ended:
                batch.remove(text)


def generate(
    model: GPT,
    prompt: Sequence[int],
    rules: SamplerConfig,
    *,
    seed: int = 0,
    max_tokens: int = 256,
    end_of_text: int | None = None,
    known_ids: int | None = None,
) -> Iterator[int]:
    """One text alone: the new ids."""
    text = Growing(list(prompt), rules, seed, max_tokens)
    for _, chosen in grow(model, [text], end_of_text=end_of_text, known_ids=known_ids):
        if chosen is not None:
            yield chosen.id
