"""What torch's AdamW remembers of a model, beside its weights in a file from elsewhere.

In: the optimizer's state in what torch.save wrote, its parameters by their numbers.  Out: the moments under our names,
and the knobs with which it learned. Which number is whose follows from the order of the weights: as they lie in the
model, or, where there are two groups, first the matrices, which decay, and then the rest, as in nanoGPT. What does not
fit is left out, and said: the weights are good without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.exchange.programs import Program
from hornbook.model.config import ModelConfig
from hornbook.model.folder import read_tensors
from hornbook.model.layouts import Tensors, to_ours
from hornbook.runs.folder import OPTIMIZER, OPTIMIZER_KNOBS

HELD_UNDER = ("optimizer_state_dict", "optimizer")
KINDS = ("exp_avg", "exp_avg_sq")


class _LeftOutError(Exception):
    """Why an optimizer is not taken over."""


@dataclass(frozen=True)
class Moments:
    updates: int
    knobs: dict[str, Any]
    """Of OptimConfig."""
    tensors: Tensors
    """exp_avg.NAME and exp_avg_sq.NAME, by our names."""

    def settings(self) -> dict[str, Any]:
        """What is written beside the tensors."""
        return {"updates": self.updates, "optim": self.knobs}

    def told(self) -> str:
        rate = f", learning rate {self.knobs['lr']:g}" if "lr" in self.knobs else ""
        return f"the optimizer, AdamW after {self.updates:,} updates{rate}: hornbook train --from goes on with it"


def moments_in(
    tree: Mapping[Any, Any], program: Program, config: ModelConfig, weights: Tensors, notes: list[str]
) -> Moments | None:
    """Those that a file holds of weights, which are as the program names and orders them."""
    held = next((tree[name] for name in HELD_UNDER if isinstance(tree.get(name), Mapping)), None)
    if held is None:
        return None
    try:
        moments = _moments(held, program, config, weights, _clip_in(tree))
    except _LeftOutError as error:
        notes.append(f"not the optimizer: {error}")
        return None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UserError, RuntimeError):
        notes.append("not the optimizer: its state is not of this model, or not AdamW's")
        return None
    notes.append(moments.told())
    return moments


def _moments(
    held: Mapping[Any, Any], program: Program, config: ModelConfig, weights: Tensors, clip: float | None
) -> Moments:
    state, groups = held["state"], held["param_groups"]
    names = _in_order(weights, [len(group["params"]) for group in groups])
    numbers = [number for group in groups for number in group["params"]]
    of = {name: state[number] for name, number in zip(names, numbers, strict=True)}
    for name, each in of.items():
        if any(each[kind].shape != weights[name].shape for kind in KINDS):
            raise _LeftOutError(f"what it remembers of {name[:60]} has another shape")
    steps = {float(each["step"]) for each in of.values()}
    if len(steps) != 1:
        raise _LeftOutError("its parameters were updated at different steps")
    tensors = {
        f"{kind}.{name}": tensor.float().contiguous()
        for kind in KINDS
        for name, tensor in to_ours(program.layout, config, {name: each[kind] for name, each in of.items()}).items()
    }
    return Moments(int(steps.pop()), _knobs_of(groups) | {"clip": clip}, tensors)


def _in_order(weights: Tensors, sizes: list[int]) -> list[str]:
    matrices = [name for name, tensor in weights.items() if tensor.ndim > 1]
    rest = [name for name, tensor in weights.items() if tensor.ndim <= 1]
    if sizes == [len(weights)]:
        return list(weights)
    if sizes == [len(matrices), len(rest)]:
        return matrices + rest
    raise _LeftOutError("its groups of parameters are not those of a program that is known")


def _knobs_of(groups: list[Mapping[str, Any]]) -> dict[str, Any]:
    first = groups[0]
    alike = ("lr", "betas", "eps", "amsgrad", "maximize")
    if any(group.get(name) != first.get(name) for group in groups[1:] for name in alike):
        raise _LeftOutError("its groups learn at different rates")
    if first.get("amsgrad") or first.get("maximize") or not first.get("decoupled_weight_decay", True):
        raise _LeftOutError("it is not AdamW as it is here")
    if len(groups) > 1 and groups[1]["weight_decay"]:
        raise _LeftOutError("norms and biases decay by a share of their own")
    beta1, beta2 = first["betas"]
    knobs = {"kind": "adamw", "beta1": float(beta1), "beta2": float(beta2), "eps": float(first["eps"])}
    knobs |= {"weight_decay": float(first["weight_decay"]), "decay": "all" if len(groups) == 1 else "matrices"}
    return knobs | ({"lr": float(first["lr"])} if first["lr"] > 0 else {})


def _clip_in(tree: Mapping[Any, Any]) -> float | None:
    """nanoGPT tells how long its gradients may be; the other programs do not shorten theirs."""
    settings = tree.get("config")
    clip = settings.get("grad_clip") if isinstance(settings, dict) else None
    return float(clip) if isinstance(clip, int | float) and clip > 0 else None


def knobs_beside(folder: Path) -> dict[str, Any] | None:
    """The knobs of the optimizer that came with a model, where one did."""
    if not (folder / OPTIMIZER).is_file() or not (folder / OPTIMIZER_KNOBS).is_file():
        return None
    knobs = files.read_json(folder / OPTIMIZER_KNOBS).get("optim")
    return dict(knobs) if isinstance(knobs, dict) else None


def updates_beside(folder: Path) -> int:
    return int(files.read_json(folder / OPTIMIZER_KNOBS)["updates"])


def remembered(folder: Path, names: Iterable[str]) -> Tensors:
    """What is beside a model, as our AdamW keeps it of parameters of these names."""
    held = read_tensors(folder / OPTIMIZER)
    updates = float(updates_beside(folder))
    tensors = {f"adamw.{name}": tensor for name, tensor in held.items()}
    return tensors | {f"adamw.step.{name}": torch.tensor(updates) for name in names}
