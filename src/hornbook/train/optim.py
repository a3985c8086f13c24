"""Gradients change weights.

In: a model with gradients, a learning-rate factor, and a flag on the device that says to leave everything as it is.
Out: changed weights. An optimizer is one entry in GROUPINGS: which parameter goes to which part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from hornbook.model.gpt import GPT
from hornbook.train.config import OptimConfig
from hornbook.train.muon import Muon

# Tables by token, of which a step touches few rows.
LOOKED_UP = ("embedding.", "bigrams.", "values.")


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike."""

    part: str  # "muon" or "adamw"
    lr: float
    weight_decay: float


def _group_for_muon(name: str, parameter: torch.Tensor, config: OptimConfig) -> Group:
    if name.startswith("blocks.") and parameter.ndim == 2:
        return Group("muon", config.matrix_lr, config.weight_decay)
    return Group("adamw", _adamw_lr(name, config), config.weight_decay if config.decay == "all" else 0.0)


def _group_for_adamw(name: str, parameter: torch.Tensor, config: OptimConfig) -> Group:
    """Decay by role: matrices and embeddings shrink; norms and biases, which set scales, only if asked."""
    decays = parameter.ndim == 2 or config.decay == "all"
    return Group("adamw", _adamw_lr(name, config), config.weight_decay if decays else 0.0)


def _adamw_lr(name: str, config: OptimConfig) -> float:
    return config.embedding_lr or config.lr if name.startswith(LOOKED_UP) else config.lr


GROUPINGS: dict[str, Callable[[str, torch.Tensor, OptimConfig], Group]] = {
    "muon": _group_for_muon,
    "adamw": _group_for_adamw,
}


class Optimizer:
    """Every parameter of a model under AdamW or Muon, at its group's learning rate."""

    def __init__(self, model: GPT, config: OptimConfig, compute: torch.dtype = torch.float32) -> None:
        groups: dict[Group, dict[str, torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            groups.setdefault(GROUPINGS[config.kind](name, parameter, config), {})[name] = parameter
        self._muons = [
            (Muon(named, config.momentum, group.weight_decay, compute), group.lr)
            for group, named in groups.items()
            if group.part == "muon"
        ]
        plain = [(group, named) for group, named in groups.items() if group.part == "adamw"]
        self._adamw_lrs = [group.lr for group, _ in plain]
        self._adamw_names = [name for _, named in plain for name in named]
        self._adamw = torch.optim.AdamW(
            [
                {"params": list(named.values()), "lr": group.lr, "weight_decay": group.weight_decay}
                for group, named in plain
            ],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        """One update at `factor` of every learning rate, a number or one on the device. Where `skip` is 1, nothing
        changes; nobody waits to know."""
        recording = skip.is_cuda and torch.cuda.is_current_stream_capturing()
        for muon, lr in self._muons:
            muon.step(lr * factor, skip)
        for group, lr in zip(self._adamw.param_groups, self._adamw_lrs, strict=True):
            group["lr"], group["capturable"] = lr * factor, recording
        self._adamw.found_inf = skip  # type: ignore[attr-defined]
        self._adamw.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What must be saved for training to go on."""
        state = {f"muon.{name}": buffer for muon, _ in self._muons for name, buffer in muon.buffers.items()}
        for name, parameter in zip(self._adamw_names, self._adamw_parameters(), strict=True):
            for kind, tensor in self._adamw.state[parameter].items():
                state[f"adamw.{kind}.{name}"] = tensor
        return state

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Take up a state that `tensors` gave; KeyError or ValueError where it is of another model."""
        for muon, _ in self._muons:
            for name, buffer in muon.buffers.items():
                _fill(buffer, saved.pop(f"muon.{name}"))
        for name, parameter in zip(self._adamw_names, self._adamw_parameters(), strict=True):
            state = {kind: saved.pop(f"adamw.{kind}.{name}") for kind in ("step", "exp_avg", "exp_avg_sq")}
            for kind in ("exp_avg", "exp_avg_sq"):
                state[kind] = _fill(torch.empty_like(parameter), state[kind])
            self._adamw.state[parameter] = {**state, "step": state["step"].to(parameter.device)}
        if saved:
            raise ValueError(f"{next(iter(saved))} belongs to no parameter")

    def _adamw_parameters(self) -> Iterable[torch.nn.Parameter]:
        return (parameter for group in self._adamw.param_groups for parameter in group["params"])


@torch.no_grad()
def clip_gradients(parameters: list[torch.nn.Parameter], longest: float | None) -> torch.Tensor:
    """Shorten the gradients, all together, to at most `longest`; their length before, on the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = torch.nn.utils.get_total_norm(gradients)
    if longest is not None:
        torch._foreach_mul_(gradients, (longest / (length + 1e-6)).clamp(max=1.0))
    return length


def _fill(place: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    if place.shape != saved.shape:
        raise ValueError(f"{tuple(saved.shape)} saved for {tuple(place.shape)}")
    with torch.no_grad():
        return place.copy_(saved)
