"""SGD and Lion: rules that remember one number of each parameter, its momentum.

In: gradients.  Out: updates. They want other learning rates than AdamW: Lion's steps have one length whatever the
gradient, SGD's have the gradient's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.sgd import sgd

from hornbook.train.optim import Memory, Named, fill, gradient_of
from hornbook.train.optim_config import Group, OptimConfig


class _WithMomentum:
    """What both remember, and where it comes from."""

    def __init__(self, named: Named, group: Group, config: OptimConfig, compute: torch.dtype) -> None:
        self._group, self._config = group, config
        self._parameters: list[torch.Tensor] = list(named.values())
        self._momenta = {name: torch.zeros_like(each) for name, each in named.items()}

    def state(self) -> dict[str, torch.Tensor]:
        return {f"{self._group.rule}.{name}": each for name, each in self._momenta.items()}

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        for name, place in self.state().items():
            fill(place, saved.pop(name))

    @classmethod
    def remembered(cls, shapes: Sequence[torch.Size]) -> Memory:
        numbers = sum(each.numel() for each in shapes)
        return f"momentum of {cls.__name__}, fp32", f"{numbers:,} x 4", 4 * numbers


class SGD(_WithMomentum):
    """torch's, in one kernel a group, its decay a part of the gradient."""

    @torch.no_grad()
    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        sgd(
            self._parameters,
            [gradient_of(parameter) for parameter in self._parameters],
            list(self._momenta.values()),
            fused=True,
            found_inf=skip,
            weight_decay=self._group.weight_decay,
            momentum=self._config.momentum,
            lr=self._group.lr * factor,  # type: ignore[arg-type]  # a number on the device is as good
            dampening=0.0,
            nesterov=self._config.nesterov,
            maximize=False,
        )

    @staticmethod
    def workspace(shapes: Sequence[torch.Size], compute: torch.dtype) -> list[Memory]:
        return []


class Lion(_WithMomentum):
    """Steps of one length, in the direction on which the gradient and its momentum agree (Chen and others, "Symbolic
    Discovery of Optimization Algorithms")."""

    @torch.no_grad()
    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        lr, keep = self._group.lr * factor, 1 - skip
        momenta = list(self._momenta.values())
        gradients = [gradient_of(parameter) for parameter in self._parameters]
        for gradient in gradients:
            gradient.nan_to_num_(0.0, 0.0, 0.0)  # is skipped, but zero times what is not finite would not be zero
        updates = torch._foreach_lerp(momenta, gradients, 1 - self._config.beta1)
        torch._foreach_sign_(updates)
        torch._foreach_mul_(updates, -lr * keep)
        torch._foreach_mul_(self._parameters, 1 - lr * self._group.weight_decay * keep)
        torch._foreach_add_(self._parameters, updates)
        del updates
        # The momentum moves towards the gradient, which nobody needs any more.
        torch._foreach_sub_(gradients, momenta)
        torch._foreach_mul_(gradients, (1 - self._config.beta2) * keep)
        torch._foreach_add_(momenta, gradients)

    @staticmethod
    def workspace(shapes: Sequence[torch.Size], compute: torch.dtype) -> list[Memory]:
        numbers = sum(each.numel() for each in shapes)
        return [("Lion's updates, fp32", f"{numbers:,} x 4", 4 * numbers)]
