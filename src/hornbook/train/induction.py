"""Heads that begin by doing what a model otherwise has to find.

In: a model that knows which token follows which (head_start.py), and where in its stream what is told.  Out: heads of
its first two blocks whose weights are set.

- Those of the first block look at the token before, the one before that, and so on. With rotary positions a query that
  is the same for every token, but turned by so many places, finds among keys that are all the same the one that stands
  there.
- The first of them hands on the name of the token before, in a part of the stream where nothing is yet. So the first
  head of the second block can look for the place whose token before is the present one, which is where the text once
  went on from here, and tell the token there: an induction head. What came once is likely to come again.

By gradients a small model finds this late or never, and much of what there is to learn in little time is behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from hornbook.model.attention import Attention
from hornbook.model.gpt import GPT

# By how fast shares fall from one wave by which a place is found to the next slower one; and how much is left of what a
# head would have looked for.
WAVES, LEFT = 3.0, 0.25
# Names are compared where no more than so much of a turn, in radians, lies between the ends of the context.
SLOW = 2.0
FEWEST = 8  # numbers in a name, or too many tokens have about the same
# How long what is handed on is beside the name, and by how many nats a head that is sure raises the token it has found.
HANDED, RAISED = 0.3, 1.0
LEAST = 0.01  # that a head raises by itself, before it is made louder: of a text in which nothing differs it is nothing
# How much of what the head before is sure to see is at its place, about.
SURE = 0.6
RIDGE = 1e-3


@dataclass(frozen=True)
class Told:
    """What a stream tells of a token, and in which directions, (..., C), orthogonal to one another."""

    embedding: torch.Tensor  # (V, C)
    head: torch.Tensor  # (V, C)
    follows: torch.Tensor  # (V, C): of the head, what tells followers apart
    one: torch.Tensor  # (C,): gives 1 with each embedding
    names: torch.Tensor  # (N, C): tell tokens apart, whatever follows them
    spare: torch.Tensor  # (N or one less, C): of no embedding
    frequency: torch.Tensor  # (V,)


def let_heads_look_back(model: GPT, rates: torch.Tensor, told: Told) -> None:
    first, *others = (module for module in model.modules() if isinstance(module, Attention))
    look_back(first, rates, told.one, 1)
    if not others:
        return
    second = others[0]
    slow = int((rates * model.config.context <= SLOW).sum())
    numbers = min(2 * slow, len(told.spare))
    inducts = numbers >= FEWEST and model.config.out_projection
    look_back(second, rates, told.one, 1 + first.n_head, all_but=int(inducts))
    if inducts:
        hand_on(first, told, numbers)
        find_again(second, told, numbers)
        tell(second, told)


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


def hand_on(attention: Attention, told: Told, numbers: int) -> None:
    """By the first head, so many numbers of the name that it sees."""
    assert attention.out is not None
    attention.value.weight[:numbers].copy_(told.names[:numbers])
    attention.out.weight[:, :numbers].copy_(HANDED * told.spare[:numbers].T)


def find_again(attention: Attention, told: Told, numbers: int) -> None:
    """The first head asks with the name for what was handed on. Both stand where a head turns slowest, so that it does
    not count how far apart they are."""
    width = attention.head_width
    pairs = torch.arange(width).view(2, width // 2).T.flip(0)  # (i, i + D/2), the slowest first
    places = pairs.flatten()[:numbers]
    length = (told.embedding @ told.names[:numbers].T).norm(dim=1).mean()
    for matrix, directions, is_long in (
        (attention.query, told.names, length),
        (attention.key, told.spare, HANDED * SURE * length),
    ):
        wanted = torch.zeros(width, matrix.in_features)
        wanted[places] = math.sqrt(width) / is_long * directions[:numbers]
        _looks_for(matrix, 0, wanted)


def tell(attention: Attention, told: Told) -> None:
    """What the first head sees, it raises: the product of what it reads and what it writes comes as near as its width
    lets it to the matrix that turns an embedding into what the head, of all tokens, takes for that one."""
    assert attention.out is not None
    weight = told.frequency.sqrt()[:, None]
    left = _inverse(told.follows.T @ (weight * told.follows))
    right = _inverse(told.embedding.T @ (weight * told.embedding))
    u, lengths, v = torch.linalg.svd(left @ (told.follows.T @ (weight.square() * told.embedding)) @ right)
    width = min(attention.head_width, len(lengths))
    writes, reads = u[:, :width] * lengths[:width].sqrt(), lengths[:width].sqrt()[:, None] * v[:width]
    raised = ((told.follows @ writes) * (told.embedding @ reads.T)).sum(dim=1)
    writes *= RAISED / max(float((told.frequency * raised).sum()), LEAST)
    usual = (weight * (told.embedding @ reads.T)).square().sum().div(width).sqrt()
    attention.value.weight[:width].copy_(reads / usual)
    attention.out.weight[:, :width].copy_(writes * usual)


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv(matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix)))
