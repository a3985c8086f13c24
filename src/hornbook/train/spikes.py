"""Steps that stand out from all before them, found on the device.

In: the loss of each step and the length of its gradients.  Out: 1 where either is a spike, 0 elsewhere; nobody waits to
know. What it looks back on are the last WINDOW steps, by their median and the median distance from it, which a few wild
ones among them do not move. It is kept in tensors that change in place, so that a step can be launched as one, and is
saved with the optimizer's.
Of twenty runs at hand (40,000 steps, batches of 512 to 16,384 tokens) no step stood out by twenty deviations; by 18 one
of a run that knew its text by heart.
"""

from __future__ import annotations

import math

import torch

from hornbook.train.optim import fill

# Odd, so that there is one in the middle.
WINDOW = 65
# From the median distance of normally distributed numbers to their standard deviation.
NORMAL = 1.4826
# A deviation is at least so many nats of the loss, and such a part of the usual length: calm runs are not to be
# disturbed by what would be nothing elsewhere.
LEAST_NATS, LEAST_PART = 0.1, 0.5
# So many in a row are no spike but another state of things, which has to be learned from.
MOST_IN_A_ROW = 3


class Spikes:
    def __init__(self, deviations: float | None, device: torch.device) -> None:
        self._deviations = math.inf if deviations is None else deviations
        self._window = torch.zeros(2, WINDOW, device=device)  # losses, gradient norms
        self._steps = torch.zeros((), dtype=torch.int64, device=device)  # finite ones, so far
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(WINDOW, device=device)
        self._least = torch.tensor([LEAST_NATS, 0.0], device=device)
        self._part = torch.tensor([0.0, LEAST_PART], device=device)

    @torch.no_grad()
    def check(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """Whether this step is one, as 1 or 0."""
        now = torch.stack([loss.float(), grad_norm.float()])
        finite = now.isfinite().all()
        usual = _median(self._window)
        deviation = NORMAL * _median((self._window - usual[:, None]).abs())
        deviation = torch.maximum(deviation, self._least + self._part * usual)
        stands_out = (now > usual + self._deviations * deviation).any() & finite & (self._steps >= WINDOW)
        spike = stands_out & (self._in_a_row < MOST_IN_A_ROW)
        self._in_a_row.copy_((self._in_a_row + 1) * spike)
        here = (self._places == self._steps % WINDOW) & finite
        self._window.copy_(torch.where(here, now[:, None], self._window))
        self._steps.add_(finite)
        return spike.float()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"spikes.{name}": each for name, each in self._kept().items()}

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Take what is its own out of what was saved; runs of earlier versions have nothing."""
        for name, place in self.tensors().items():
            if name in saved:
                fill(place, saved.pop(name))

    def _kept(self) -> dict[str, torch.Tensor]:
        return {"window": self._window, "steps": self._steps, "in_a_row": self._in_a_row}


def _median(rows: torch.Tensor) -> torch.Tensor:
    """Of each row."""
    return rows.sort(dim=1).values[:, WINDOW // 2]
