"""Rotary positions: how much a query finds in a key depends on how far apart they stand.

In: positions (T,) or (B, T).  Out: a function that turns queries or keys (B, H, T, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Rotary(nn.Module):
    """Turns each pair (i, i + D/2) of a head by an angle that grows with the token's position."""

    cos: torch.Tensor  # (context, D/2); of an outline None, until it is first used
    sin: torch.Tensor

    def __init__(self, context: int, width: int, base: float) -> None:
        super().__init__()
        self.context, self.width, self.base = context, width, base
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        if torch.get_default_device().type != "meta":
            self._fill(torch.device("cpu"), torch.float32)

    @property
    def rates(self) -> torch.Tensor:
        """By which angle each pair is turned from one position to the next, (D/2,)."""
        halves = torch.arange(0, self.width, 2, dtype=torch.float32, device="cpu")
        return self.base ** (-halves / self.width)

    @torch.inference_mode(False)
    def _fill(self, device: torch.device, dtype: torch.dtype) -> None:
        positions = torch.arange(self.context, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, self.rates)
        self.cos, self.sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def forward(self, positions: torch.Tensor, stream: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.cos is None:
            self._fill(stream.device, stream.dtype)
        cos, sin = self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # (1 or B, 1, T, D/2)

        def rotate(x: torch.Tensor) -> torch.Tensor:
            left, right = x.chunk(2, dim=-1)
            return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

        return rotate
