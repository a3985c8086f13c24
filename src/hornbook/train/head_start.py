"""What a run knows before its first step: which token follows which.

In: a model whose blocks begin as the identity, and the tokens that it is to learn from.  Out: its embedding and its
head, set so that it predicts each next token about as a table of all counted pairs would.
Counting takes a second; to learn as much by gradients takes hundreds of steps. Such a table is too large to hold, but
its best approximation of a model's width is just what a head after an embedding is:

    head[next] . embedding[token]  =  log P(next | token)

And its first heads look back, and find what followed last time (induction.py). The weights stay what they always are,
and learn on from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from hornbook.base.machine import mix_seed
from hornbook.base.world import World
from hornbook.model.gpt import GPT
from hornbook.model.rotary import Rotary
from hornbook.shards.format import TokenArray
from hornbook.train.induction import StreamParts, let_heads_look_back

# Of a longer text, a beginning; its pairs are known well enough.
MOST_TOKENS = 20_000_000
# A token's followers are mixed with so many drawn from the whole text, for what chance has kept apart.
BELIEVED = 10.0
# Of the width: what tells followers apart, and how much of an embedding's length it has at the mean. The rest tells
# tokens apart, whatever follows them.
SHARE_OF_WIDTH, SHARE_OF_LENGTH = 0.6, 0.5
LONGEST = 0.9
# The same in each embedding, from which the head reads how frequent a token is by itself.
CONSTANT_SHARE = 0.04
ROUNDS = 3
MOST_BINS_A_KEY = 8


@torch.no_grad()
def give_head_start(model: GPT, tokens: TokenArray, seed: int, world: World | None = None) -> None:
    """Of several processes each sets what it has of the model, and all by the factors that the first has found: on
    another processor they may come out turned."""
    world = world or World()
    table = counted(tokens, model.config.known_vocab_size)
    parts = stream_parts(table, model.config.n_embd, mix_seed(seed, "head start", 0))
    world.fill_from_first(*vars(parts).values())
    model.embedding.weight.copy_(parts.embedding)
    model.head.weight.copy_(parts.head)
    if isinstance(model.rotation, Rotary):
        let_heads_look_back(model, model.rotation.rates, parts, world)


@dataclass(frozen=True)
class Seen:
    """Which pairs were seen, those of one token after those of another."""

    begins: torch.Tensor  # where each token's begin, (V,)
    other: torch.Tensor  # of each pair, the other token
    above: torch.Tensor  # what it has more than pairs that were not seen

    @staticmethod
    def of(token: torch.Tensor, other: torch.Tensor, above: torch.Tensor, vocab_size: int) -> Seen:
        order = token.argsort(stable=True)
        begins = torch.searchsorted(token[order].contiguous(), torch.arange(vocab_size))
        return Seen(begins, other[order], above[order])


@dataclass(frozen=True)
class Pairs:
    """The table log P(second | first) / P(second): sparse, as all pairs that were not seen have the same in a row."""

    by_first: Seen
    by_second: Seen
    unseen: torch.Tensor  # what those not seen have, (V,)
    frequency: torch.Tensor  # (V,), which sums to 1

    def times(self, matrix: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """Rows and columns weighed by the roots of their tokens' frequencies, as their errors are felt."""
        seen, weight = self.by_second if transposed else self.by_first, self.frequency.sqrt()[:, None]
        matrix = (weight * matrix).contiguous()
        product = F.embedding_bag(seen.other, matrix, seen.begins, mode="sum", per_sample_weights=seen.above)
        ones = torch.ones_like(self.unseen)
        left, right = (ones, self.unseen) if transposed else (self.unseen, ones)
        return weight * (product + torch.outer(left, right @ matrix))


def counted(tokens: TokenArray, vocab_size: int) -> Pairs:
    ids = tokens.read(0, min(len(tokens), MOST_TOKENS)).astype(np.int64)
    keys, counts = _each_once(ids[:-1] * vocab_size + ids[1:], vocab_size**2)
    first, second, times = (torch.from_numpy(each) for each in (keys // vocab_size, keys % vocab_size, counts))
    of_each = torch.bincount(torch.from_numpy(ids), minlength=vocab_size) + 0.1
    frequency = (of_each / of_each.sum()).float()
    above = torch.log1p(times / (BELIEVED * frequency[second])).float()
    of_first = torch.bincount(torch.from_numpy(ids[:-1]), minlength=vocab_size)
    by_first, by_second = (Seen.of(*each, above, vocab_size) for each in ((first, second), (second, first)))
    return Pairs(by_first, by_second, -torch.log1p(of_first / BELIEVED), frequency)


def _each_once(keys: NDArray[np.int64], kinds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys below `kinds`, ascending, and how often each is there. Many are sooner counted than sorted."""
    if kinds > MOST_BINS_A_KEY * len(keys):
        return np.unique(keys, return_counts=True)
    counts = np.bincount(keys)
    found = counts.nonzero()[0]
    return found, counts[found]


def stream_parts(pairs: Pairs, width: int, seed: int) -> StreamParts:
    random = torch.Generator().manual_seed(seed)
    frequency, vocab_size = pairs.frequency, len(pairs.frequency)
    rank = min(int(width * SHARE_OF_WIDTH), vocab_size - 1)
    left, lengths, right = _leading(pairs, rank, random)
    weight = frequency.sqrt()[:, None]
    followed, follows = left * lengths.sqrt() / weight, right * lengths.sqrt() / weight
    scale = math.sqrt(SHARE_OF_LENGTH * width / max(float((frequency[:, None] * followed.square()).sum()), 1e-30))
    followed, follows = followed * scale, follows / scale
    followed *= (math.sqrt(LONGEST * width) / followed.norm(dim=1, keepdim=True)).clamp(max=1)
    constant = math.sqrt(CONSTANT_SHARE * width)
    spare = (width - rank - 1) // 2
    name = torch.randn(vocab_size, width - rank - 1 - spare, generator=random)
    left_over = (width - followed.square().sum(dim=1) - constant**2).clamp(min=0.01 * width)
    name *= (left_over.sqrt() / name.norm(dim=1))[:, None]
    # Turned, so that every channel has its part of everything.
    turn = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    table, one, names, nothing = turn.split((rank, 1, name.shape[1], spare))
    embedding = followed @ table + constant * one + name @ names
    by_itself = torch.outer(frequency.log() / constant, one[0])
    return StreamParts(
        embedding, follows @ table + by_itself, follows @ table, one[0] / constant, names, nothing, frequency
    )


def _leading(pairs: Pairs, rank: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading singular vectors, as columns, and values: a random subspace, turned into the leading one."""
    extra = min(rank + 16, len(pairs.frequency))
    basis = torch.randn(len(pairs.frequency), extra, generator=random)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(pairs.times(basis))[0]
        basis = torch.linalg.qr(pairs.times(basis, transposed=True))[0]
    small, lengths, turn = torch.linalg.svd(pairs.times(basis), full_matrices=False)
    return small[:, :rank], lengths[:rank], (basis @ turn.T)[:, :rank]
