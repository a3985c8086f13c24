"""A run's model, counted: what of it lies in blocks, and by which rules it learns.

In: a run's settings.  Out: a `Counted`: its parameters by shape and by rule, what the optimizer remembers of them, what
it needs for a moment, and the products of Muon. Only two or three layers are built, on the meta device, so that
hundreds of billions of parameters are counted at once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch

from hornbook.model.init import outline
from hornbook.train.config import RunConfig
from hornbook.train.memory import FP32, Share
from hornbook.train.muon import QUINTICS, Muon
from hornbook.train.optim import grouped, rule_named

PER_LAYER = ("blocks", "values")


@dataclass(frozen=True)
class Counted:
    run: RunConfig
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        return self.run.model.n_params()

    @property
    def layers(self) -> int:
        return self.run.model.n_layer

    @cached_property
    def shapes(self) -> dict[str, Counter[torch.Size]]:
        """How many parameters of a shape each rule has. Layers are alike, or every second one is: two are built."""
        config = self.run.model
        built = outline(config.with_(n_layer=min(self.layers, 2 + self.layers % 2)))
        first = built.config.n_layer - 2  # of those that stand for all others
        counted: dict[str, Counter[torch.Size]] = defaultdict(Counter)
        for group, named in grouped(built, self.run.optim).items():
            for name, parameter in named.items():
                kind, layer = name.split(".")[:2]
                again = kind in PER_LAYER and int(layer) >= first
                times = 1 + (self.layers - built.config.n_layer) // 2 * again
                counted[group.rule][parameter.shape] += times
        return dict(counted)

    @cached_property
    def block(self) -> int:
        """Parameters of a block."""
        config = self.run.model
        one, two = (config.with_(n_layer=layers).n_params(embeddings=False) for layers in (1, 2))
        return two - one

    @property
    def root(self) -> int:
        """What is in no block: embedding, head, the last norm."""
        return self.parameters - self.layers * self.block

    @property
    def matrices(self) -> Counter[torch.Size]:
        """Muon's."""
        return self.shapes.get("muon", Counter())

    @cached_property
    def in_matrices(self) -> int:
        return sum(shape.numel() * times for shape, times in self.matrices.items())

    @cached_property
    def muon_flops(self) -> tuple[float, float]:
        """To make all matrices orthogonal, and the costliest of them."""
        each = {shape: newton_schulz_flops(*sorted(shape)) for shape in self.matrices}
        return sum(each[shape] * times for shape, times in self.matrices.items()), max(each.values(), default=0.0)

    @cached_property
    def remembered(self) -> list[Share]:
        """By the optimizer."""
        return [Share(*rule_named(rule).remembered(list(each.elements()))) for rule, each in self.shapes.items()]

    @property
    def saved_bytes(self) -> int:
        return FP32 * self.parameters + sum(share.bytes for share in self.remembered)

    def workspace(self, owners: int) -> list[Share]:
        """Of a step of the optimizer: Muon's matrices are whole at their owners, all else is cut."""
        parts = []
        for rule, counted in self.shapes.items():
            if rule_named(rule) is Muon:
                owned = [shape for shape, times in counted.items() for _ in range(-(-times // owners))]
                parts += [Share(*part) for part in Muon.workspace(owned, self.dtype)]
            else:
                whole = (Share(*part) for part in rule_named(rule).workspace(list(counted.elements()), self.dtype))
                parts += [cut(part, owners) for part in whole]
        return [max(parts, key=lambda part: part.bytes)] if parts else []


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Of a matrix of no more rows than columns: in each step its square, the square's, and their product with it."""
    return len(QUINTICS) * (4.0 * rows**2 * columns + 2.0 * rows**3)


def share(what: str, *factors: int) -> Share:
    return Share(what, " x ".join(f"{factor:,}" for factor in factors), math.prod(factors))


def cut(part: Share, among: int) -> Share:
    if among == 1:
        return part
    return Share(part.what, f"({part.arithmetic}) / {among}", -(-part.bytes // among))
