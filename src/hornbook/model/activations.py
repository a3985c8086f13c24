"""The function inside an MLP.

An activation is one entry here: its function, out of torch.nn.functional, and what the rest of the house needs to know
of it. No torch is imported, so that settings know the names without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    Apply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Activation:
    of: Callable[[Any], Apply]
    """Takes torch.nn.functional, gives the function."""
    kept: int
    """Of the MLP's inside, what backward needs, in widths of it."""
    gated: bool = False
    """Whether a second matrix widens as well, whose numbers the first one's open and close."""

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2


ACTIVATIONS = {
    "gelu": Activation(lambda F: F.gelu, kept=2),
    "gelu_tanh": Activation(lambda F: partial(F.gelu, approximate="tanh"), kept=2),
    "relu": Activation(lambda F: F.relu, kept=1),
    "relu2": Activation(lambda F: lambda x: F.relu(x).square(), kept=2),
    "swiglu": Activation(lambda F: F.silu, kept=4, gated=True),
}
if TYPE_CHECKING:
    ActivationName = str
else:
    ActivationName = Literal[tuple(ACTIVATIONS)]
