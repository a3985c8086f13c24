"""How a token knows its position.

A position scheme is one entry here: what it adds to the embedding, or does to queries and keys, and what the rest of
the house needs to know of it. No torch is imported, so that settings know the names without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Positions:
    added: Callable[[Any], nn.Module] | None = None
    """Of a config, the module that has for positions (T,) or (B, T) the rows that are added to the embedding. Its
    matrices begin as the embedding's do."""
    rotation: Callable[[Any], nn.Module] | None = None
    """Of a config, the module that has for positions and the stream a function, which turns queries and keys
    (B, H, T, D)."""
    params: Callable[[Any], int] = lambda config: 0
    """Of a config, how many parameters these have."""
    pairs: bool = False
    """Whether the numbers of a head are turned in pairs, so that its width must be even."""


def _learned(config: Any) -> nn.Module:
    from torch import nn

    return nn.Embedding(config.context, config.n_embd)


def _rotary(config: Any) -> nn.Module:
    from hornbook.model.rotary import Rotary

    return Rotary(config.context, config.width_of_head, config.rope_theta)


POSITIONS = {
    "learned": Positions(added=_learned, params=lambda config: config.context * config.n_embd),
    "rotary": Positions(rotation=_rotary, pairs=True),
    "none": Positions(),
}
if TYPE_CHECKING:
    PositionsName = str
else:
    PositionsName = Literal[tuple(POSITIONS)]
