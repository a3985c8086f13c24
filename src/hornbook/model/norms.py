"""How the stream is normalised.

A norm is one entry here: its function, and what the rest of the house needs to know of it. No torch is imported, so
that settings know the names without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    Normalise = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None, float], torch.Tensor]


@dataclass(frozen=True)
class Normalisation:
    of: Callable[[Any], Normalise]
    """Takes torch.nn.functional, gives the function of x (..., width), weight (width,) or None, bias and eps."""
    biased: bool = False
    """Whether it can have a bias."""
    kept: int = 1
    """Of what it read, what backward needs, in widths of it."""


def _layernorm(F: Any) -> Normalise:
    return lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rmsnorm(F: Any) -> Normalise:
    from hornbook.model.rms_norm import rms_norm

    return lambda x, weight, bias, eps: rms_norm(x, weight, eps)


NORMS = {
    "layernorm": Normalisation(_layernorm, biased=True),
    "rmsnorm": Normalisation(_rmsnorm),
}
if TYPE_CHECKING:
    NormName = str
else:
    NormName = Literal[tuple(NORMS)]
