"""Which optimizers there are, and their knobs. No torch is imported, so that settings know their names without it.

An optimizer is one entry in OPTIMIZERS: a function that tells by which rule, at which rate and with which decay a
parameter learns. Where it brings a rule of its own, that is one class (see `Rule` in optim.py), named in RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hornbook.base.settings import Settings

# Tables by token, of which a step touches few rows.
LOOKED_UP = ("embedding.", "bigrams.", "values.")


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike."""

    rule: str
    lr: float
    weight_decay: float


# Of a parameter's name and number of axes.
Grouping = Callable[[str, int, "OptimConfig"], Group]


def _muon_for_matrices(name: str, axes: int, config: OptimConfig) -> Group:
    if name.startswith("blocks.") and axes == 2:
        return Group("muon", config.matrix_lr, config.weight_decay)
    return Group("adamw", _lr(name, config), config.weight_decay if config.decay == "all" else 0.0)


def _for_all(rule: str) -> Grouping:
    """Decay by role: matrices and embeddings shrink; norms and biases, which set scales, only if asked."""

    def group(name: str, axes: int, config: OptimConfig) -> Group:
        decays = axes == 2 or config.decay == "all"
        return Group(rule, _lr(name, config), config.weight_decay if decays else 0.0)

    return group


def _lr(name: str, config: OptimConfig) -> float:
    return config.embedding_lr or config.lr if name.startswith(LOOKED_UP) else config.lr


OPTIMIZERS: dict[str, Grouping] = {
    "muon": _muon_for_matrices,
    "adamw": _for_all("adamw"),
    "lion": _for_all("lion"),
    "sgd": _for_all("sgd"),
}
RULES = {
    "muon": "hornbook.train.muon:Muon",
    "adamw": "hornbook.train.optim:AdamW",
    "lion": "hornbook.train.sgd_lion:Lion",
    "sgd": "hornbook.train.sgd_lion:SGD",
}
if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]


# Of each learning rate a parameter that learns at it: a name and a number of axes.
LEARNS_AT = {
    "lr": ("norm.weight", 1),
    "embedding_lr": ("embedding.weight", 2),
    "matrix_lr": ("blocks.0.mlp.down.weight", 2),
}


def learning_rates(config: OptimConfig, factor: float = 1.0) -> dict[str, float]:
    """The real ones, at `factor` of their height: of norms, biases and the head, of the embedding, of the matrices."""
    group = OPTIMIZERS[config.kind]
    scaled = factor * config.lr_scale
    return {name: scaled * group(*parameter, config).lr for name, parameter in LEARNS_AT.items()}


class OptimConfig(Settings):
    kind: OptimizerName = "muon"
    """Muon for the matrices of the blocks and AdamW for the rest; or one rule for all: AdamW, Lion or SGD."""
    lr: float = Field(3e-3, gt=0)
    """The learning rate of all that is not Muon's. Lion wants a third of AdamW's or less, SGD ten times as much or
    more."""
    embedding_lr: float | None = Field(None, gt=0)
    """The same for the embeddings: of tokens, of pairs of them, and of values; `lr` when not given."""
    matrix_lr: float = Field(0.02, gt=0)
    """Muon's learning rate."""
    lr_scale: float = Field(1.0, gt=0)
    """Multiplies all learning rates."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's memory of past gradients, and SGD's."""
    nesterov: bool = False
    """Let SGD look ahead along its momentum, as Muon always does."""
    weight_decay: float = Field(0.1, ge=0)
    """How fast weights shrink, times their learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """Which weights decay: matrices (under Muon those of the blocks alone, so neither embeddings nor the head), or all,
    norms and biases too, as torch's AdamW does by itself."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's memory of past gradients; of Lion, the share that it has in a step."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's memory of past squared gradients; Lion's of past gradients."""
    eps: float = Field(1e-10, gt=0)
    """Added to AdamW's root, against division by zero."""
    clip: float | None = Field(1.0, gt=0)
    """All gradients are scaled so that their norm is at most this."""
    spike: float | None = Field(20.0, gt=0)
    """Leave a step out whose loss or gradient lies so many deviations above the last 65 steps; auto: none."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.nesterov and not self.momentum:
            yield "nesterov", "looks ahead along a momentum, so give --optim.momentum one"
