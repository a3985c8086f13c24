"""Heads that begin by doing what a model otherwise has to find.

In: a model that knows which token follows which (head_start.py), and what is where in its stream.  Out: heads of its
first two blocks whose weights are set.

- Those of the first block look at the token before, the one before that, and so on. With rotary positions a query that
  is the same for every token, but turned by so many positions, finds among keys that are all the same the one that
  stands there.
- The first of them hands on the name of the token before, in a part of the stream where nothing is yet. So the first
  head of the second block can look for the place whose token before is the present one, which is where the text once
  went on from here, and raise the token there: an induction head (Olsson and others, "In-context Learning and Induction
  Heads"). What came once is likely to come again.

By gradients a small model finds this late or never, and much of what there is to learn in little time is behind it. How
sharp heads look, how much is left of what they would have looked for, and by how much they raise what they find were
tried: records/2026-11-28-zen3-2-cores-first-heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from hornbook.base.world import World
from hornbook.model.attention import Attention
from hornbook.model.gpt import GPT

# A position is found by the pairs of a head, the quickest counting most: each next one exp(-1 / WAVES) times as much.
WAVES = 3.0
# Of a head's random queries and keys, what is left beside those that are set.
LEFT = 0.25
# Names are compared where no more than so much of a turn, in radians, lies between the ends of the context.
SLOW = 2.0
FEWEST = 8  # numbers in a name, or too many tokens have about the same
# The length of what is handed on, beside the name's.
HANDED = 0.3
# By how many nats a head that is sure raises the token that it has found.
RAISED = 1.0
LEAST = 0.01  # that a head raises by itself, before it is made louder: of a text in which nothing differs it is nothing
# Of a head's weight, about what is on the token that it looks for.
SURE = 0.6
RIDGE = 1e-3  # of the mean diagonal, lest what is to be inverted is singular


@dataclass(frozen=True)
class StreamParts:
    """What a stream tells of a token, and in which directions, (..., C), orthogonal to one another."""

    embedding: torch.Tensor  # (V, C)
    head: torch.Tensor  # (V, C)
    follows: torch.Tensor  # (V, C): of the head, what tells followers apart
    one: torch.Tensor  # (C,): gives 1 with each embedding
    names: torch.Tensor  # (N, C): tell tokens apart, whatever follows them
    spare: torch.Tensor  # (N or one less, C): of no embedding
    frequency: torch.Tensor  # (V,)


def let_heads_look_back(model: GPT, rates: torch.Tensor, parts: StreamParts, world: World) -> None:
    first, *others = (module for module in model.modules() if isinstance(module, Attention))
    look_back(first, rates, parts.one, 1)
    if not others:
        return
    second = others[0]
    slow = int((rates * model.config.context <= SLOW).sum())
    numbers = min(2 * slow, len(parts.spare))
    inducts = numbers >= FEWEST and model.config.out_projection
    look_back(second, rates, parts.one, 1 + first.n_head, all_but=int(inducts))
    if inducts:
        hand_on_names(first, parts, numbers)
        match_names(second, parts, numbers)
        raise_what_followed(second, parts, world)


def look_back(attention: Attention, rates: torch.Tensor, one: torch.Tensor, back: int, all_but: int = 0) -> None:
    """Head by head one more token back; all but those that share so many first keys."""
    width, sharing = attention.head_width, attention.n_head // attention.n_kv_head
    lengths = (width * torch.softmax(-torch.arange(width // 2) / WAVES, dim=0)).sqrt()

    def turned(places: int) -> torch.Tensor:
        return torch.cat((lengths * (places * rates).cos(), -lengths * (places * rates).sin()))

    for head in range(all_but * sharing, attention.n_head):
        _looks_for(attention.query, head, torch.outer(turned(back + head), one))
    for head in range(all_but, attention.n_kv_head):
        _looks_for(attention.key, head, torch.outer(turned(0), one))


def _looks_for(matrix: nn.Linear, head: int, wanted: torch.Tensor) -> None:
    rows = matrix.weight[head * len(wanted) : (head + 1) * len(wanted)]
    rows.mul_(LEFT).add_(wanted.to(rows.device))


def hand_on_names(attention: Attention, parts: StreamParts, numbers: int) -> None:
    """The first, a previous-token head, copies so many numbers of the name that it sees into the spare part."""
    assert attention.out is not None
    attention.value.weight[:numbers].copy_(parts.names[:numbers])
    attention.out.weight[:, :numbers].copy_(HANDED * parts.spare[:numbers].T)


def match_names(attention: Attention, parts: StreamParts, numbers: int) -> None:
    """The induction head's queries and keys: it asks with a token's name for the one that was handed on. Both stand in
    the pairs that turn slowest, so that it does not count how far apart they are."""
    width = attention.head_width
    pairs = torch.arange(width).view(2, width // 2).T.flip(0)  # (i, i + D/2), the slowest first
    places = pairs.flatten()[:numbers]
    length = (parts.embedding @ parts.names[:numbers].T).norm(dim=1).mean()
    for matrix, directions, is_long in (
        (attention.query, parts.names, length),
        (attention.key, parts.spare, HANDED * SURE * length),
    ):
        wanted = torch.zeros(width, matrix.in_features)
        wanted[places] = math.sqrt(width) / is_long * directions[:numbers]
        _looks_for(matrix, 0, wanted)


def raise_what_followed(attention: Attention, parts: StreamParts, world: World) -> None:
    """The induction head's values and output: what it sees, it raises. Their product comes as near as its width lets it
    to the matrix that turns a token's embedding into what the model's head reads as that token."""
    assert attention.out is not None
    weight = parts.frequency.sqrt()[:, None]
    left = _inverse(parts.follows.T @ (weight * parts.follows))
    right = _inverse(parts.embedding.T @ (weight * parts.embedding))
    u, lengths, v = torch.linalg.svd(left @ (parts.follows.T @ (weight.square() * parts.embedding)) @ right)
    world.fill_from_first(u, lengths, v)
    width = min(attention.head_width, len(lengths))
    writes, reads = u[:, :width] * lengths[:width].sqrt(), lengths[:width].sqrt()[:, None] * v[:width]
    raised = ((parts.follows @ writes) * (parts.embedding @ reads.T)).sum(dim=1)
    writes *= RAISED / max(float((parts.frequency * raised).sum()), LEAST)
    usual = (weight * (parts.embedding @ reads.T)).square().sum().div(width).sqrt()
    attention.value.weight[:width].copy_(reads / usual)
    attention.out.weight[:, :width].copy_(writes * usual)


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv(matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix)))
