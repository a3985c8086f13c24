"""The mean of a run's weights, the newest counting most.

In: the weights after each step.  Out: their average, which what looks at the model may have in their place.
It reaches back over a share of the steps so far, so that it forgets how the run began and needs to know nothing of how
long it will be: after step t the average moves towards the weights by 1 - (1 - 1/t)^(1/share - 1), whereby they are
weighed by a power of their step (Karras and others, "Analyzing and Improving the Training Dynamics of Diffusion
Models"), and are on average `share` of the way back; of 0.5 each step counts alike. Kept in fp32 and changed in place,
on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from hornbook.train.optim import fill

WEIGHTS, STEPS = "average.weights.", "average.steps"


class Average:
    def __init__(self, weights: Mapping[str, torch.nn.Parameter], share: float, device: torch.device) -> None:
        self._weights = weights
        self._means = {name: each.detach().clone() for name, each in self._weights.items()}
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._power = 1 / share - 1

    @torch.no_grad()
    def begin(self) -> None:
        """Before the first step it is what the model begins with."""
        untrained = (self._steps == 0).float()
        for name, mean in self._means.items():
            mean.lerp_(self._weights[name], untrained)

    @torch.no_grad()
    def update(self, skip: torch.Tensor) -> None:
        """After a step; where `skip` is 1 there was none."""
        self._steps.add_((1 - skip).to(torch.int64))
        # 1 - (1 - 1/t)^power, without losing what is small.
        towards = -torch.expm1(self._power * torch.log1p(-1 / self._steps.clamp(min=1).float())) * (1 - skip)
        for name, mean in self._means.items():
            mean.lerp_(self._weights[name], towards)

    def of(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A model's state with the average in the place of the weights, under all of their names."""
        means = {each.data_ptr(): self._means[name] for name, each in self._weights.items()}
        return {name: means.get(each.data_ptr(), each) for name, each in state.items()}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights, and the average is where they were."""
        largest = max((mean.numel() for mean in self._means.values()), default=0)
        room = torch.empty(largest, device=self._steps.device)  # or there is none, and nothing was begun
        self._swap(room)
        try:
            yield
        finally:
            self._swap(room)

    @torch.no_grad()
    def _swap(self, room: torch.Tensor) -> None:
        for name, mean in self._means.items():
            kept = room[: mean.numel()].view_as(mean).copy_(mean)
            mean.copy_(self._weights[name])
            self._weights[name].copy_(kept)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What must be saved beside the average, which is the model of a checkpoint: the weights that learn."""
        return {WEIGHTS + name: each.detach() for name, each in self._weights.items()} | {STEPS: self._steps}

    def is_its(self, saved: str) -> bool:
        """Whether a tensor that was saved under this name is of a weight that is averaged here."""
        return saved.startswith(WEIGHTS) and saved.removeprefix(WEIGHTS) in self._means

    @torch.no_grad()
    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Take what is its own out of what was saved; the model has the average, as its checkpoint has it."""
        fill(self._steps, saved.pop(STEPS))
        for name, mean in self._means.items():
            mean.copy_(self._weights[name])
            fill(self._weights[name], saved.pop(WEIGHTS + name))
