"""The optimizer: parameter groups, the protocol of update rules, AdamW, and clipping.

In: a model with gradients, a learning-rate factor, and a flag on the device that says to leave everything as it is.
Out: changed weights.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.optim.adamw import adamw

from hornbook.model.gpt import GPT
from hornbook.train.optim_config import OPTIMIZERS, RULES, Group, OptimConfig

Named = dict[str, torch.nn.Parameter]
Memory = tuple[str, str, int]  # what it is, how it is reckoned, bytes


class Rule(Protocol):
    """How the parameters of one group learn."""

    def __init__(self, named: Named, group: Group, config: OptimConfig, compute: torch.dtype) -> None: ...

    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        """One update at `factor` of the learning rate; where `skip` is 1, none, and what is remembered stays."""

    def state(self) -> dict[str, torch.Tensor]:
        """What must be saved for training to go on."""

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Take what is this group's out of what was saved; KeyError or ValueError where it is of another model."""

    @staticmethod
    def remembered(shapes: Sequence[torch.Size]) -> Memory:
        """What it keeps of parameters of these shapes from step to step."""

    @staticmethod
    def workspace(shapes: Sequence[torch.Size], compute: torch.dtype) -> list[Memory]:
        """What a step needs for a moment: each of these in turn."""


class Optimizer:
    """Every parameter of a model under the rule of its group; of those that are named, where some are."""

    def __init__(
        self,
        model: GPT,
        config: OptimConfig,
        compute: torch.dtype = torch.float32,
        only: Collection[str] | None = None,
    ) -> None:
        groups = [
            (group, {name: each for name, each in named.items() if only is None or name in only})
            for group, named in grouped(model, config).items()
        ]
        self._rules = [rule_named(group.rule)(named, group, config, compute) for group, named in groups if named]
        first = next((each for _, named in groups for each in named.values()), next(model.parameters()))
        self._device = first.device

    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        """One update at `factor` of every learning rate, a number or one on the device. Where `skip` is 1, nothing
        changes; the host does not wait for it."""
        for rule in self._rules:
            rule.step(factor, skip)

    def rehearse(self) -> None:
        """A step that changes nothing: memory that is not there is missed before weights are half changed."""
        for rule in self._rules:
            rule.step(0.0, torch.ones((), device=self._device))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for rule in self._rules for name, tensor in rule.state().items()}

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        for rule in self._rules:
            rule.restore(saved)
        if saved:
            raise ValueError(f"{next(iter(saved))} belongs to no parameter")


def rule_named(name: str) -> type[Rule]:
    rule: type[Rule] = pkgutil.resolve_name(RULES[name])
    return rule


def grouped(model: GPT, config: OptimConfig) -> dict[Group, Named]:
    groups: dict[Group, Named] = {}
    for name, parameter in model.named_parameters():
        group = OPTIMIZERS[config.kind](name, parameter.ndim, config)
        groups.setdefault(replace(group, lr=group.lr * config.lr_scale), {})[name] = parameter
    return groups


def rules_of(model: GPT, config: OptimConfig) -> list[str]:
    """By which rules a model learns, as the field calls them."""
    used = {group.rule for group in grouped(model, config)}
    return [rule_named(name).__name__ for name in RULES if name in used]


class AdamW:
    """torch's, in one kernel a group. Its function rather than its class, which imports the compiler: two seconds."""

    def __init__(self, named: Named, group: Group, config: OptimConfig, compute: torch.dtype) -> None:
        self._group, self._config = group, config
        self._parameters: list[torch.Tensor] = list(named.values())
        device = self._parameters[0].device
        self._state = {
            "step": {name: torch.zeros((), dtype=torch.float32, device=device) for name in named},
            "exp_avg": {name: torch.zeros_like(each) for name, each in named.items()},
            "exp_avg_sq": {name: torch.zeros_like(each) for name, each in named.items()},
        }

    @torch.no_grad()
    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        adamw(
            self._parameters,
            [gradient_of(each) for each in self._parameters],
            list(self._state["exp_avg"].values()),
            list(self._state["exp_avg_sq"].values()),
            [],
            list(self._state["step"].values()),
            fused=True,
            capturable=skip.is_cuda and torch.cuda.is_current_stream_capturing(),
            found_inf=skip,
            amsgrad=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=self._group.lr * factor,
            weight_decay=self._group.weight_decay,
            eps=self._config.eps,
            maximize=False,
        )

    def state(self) -> dict[str, torch.Tensor]:
        return {f"adamw.{kind}.{name}": each for kind, of in self._state.items() for name, each in of.items()}

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        for name, place in self.state().items():
            fill(place, saved.pop(name))

    @staticmethod
    def remembered(shapes: Sequence[torch.Size]) -> Memory:
        numbers, tensors = sum(each.numel() for each in shapes), len(shapes)
        return "moments of AdamW, fp32", f"{numbers:,} x 2 x 4 + {tensors} x 4", 8 * numbers + 4 * tensors

    @staticmethod
    def workspace(shapes: Sequence[torch.Size], compute: torch.dtype) -> list[Memory]:
        return []


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.no_grad()
def clip_grad_norm(
    parameters: list[torch.nn.Parameter], max_norm: float | None, norm: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale all gradients so that their norm is at most `max_norm`; the norm before, on the device. Where these
    parameters are but a part, the norm of all is given."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if norm is None:
        norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None and gradients:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def fill(place: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    if place.shape != saved.shape:
        raise ValueError(f"{tuple(saved.shape)} saved for {tuple(place.shape)}")
    return place.copy_(saved)
