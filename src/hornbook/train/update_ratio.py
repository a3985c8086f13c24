"""The update ratio: how far a step moves the weights.

In: weights, before and after a step.  Out: the norm of the change divided by the norm of the weights, over a part of
each matrix of the blocks; on the device, which the host does not wait for. About a thousandth is usual of AdamW, a
hundredth of Muon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

EVERY_STEPS = 20
# Of each matrix; on a GPU all of them would take longer to copy than is worth knowing.
LOOKED_AT = 4096


def is_measured(step: int) -> bool:
    return step % EVERY_STEPS == EVERY_STEPS // 2


class UpdateRatio:
    def __init__(self, weights: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self._parts = [
            each.detach().flatten()[:LOOKED_AT]  # the weights themselves, which change in place
            for name, each in weights.items()
            if name.startswith("blocks.") and each.ndim == 2
        ]
        self.unmeasured = torch.full((), math.nan, device=device)

    def snapshot(self) -> torch.Tensor:
        return torch.cat([*self._parts, self.unmeasured.new_empty(0)])

    def since(self, before: torch.Tensor) -> torch.Tensor:
        return (self.snapshot() - before).norm() / before.norm()
