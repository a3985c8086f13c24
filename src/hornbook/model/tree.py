"""A model's parts, as a tree to look at.

In: a GPT, also one on the meta device, which takes no memory.  Out: `Branch`s with the shapes and the number of their
parameters; parts of a list that are equal, such as blocks, as one that is there several times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from hornbook.model.gpt import GPT


@dataclass(frozen=True)
class Branch:
    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    own: int  # parameters of its own, each counted once in the whole tree
    times: int
    inside: tuple[Branch, ...]

    @property
    def parameters(self) -> int:
        """Of all that are alike together."""
        return self.times * (self.own + sum(part.parameters for part in self.inside))

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "shapes": [list(shape) for shape in self.shapes],
            "parameters": self.parameters,
            "times": self.times,
            "inside": [part.as_dict() for part in self.inside],
        }

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Branch]]:
        """This part and all inside it, each with its depth."""
        yield depth, self
        for part in self.inside:
            yield from part.walk(depth + 1)


def tree_of(model: GPT) -> Branch:
    return _part("model", model, set())


def _part(name: str, module: nn.Module, seen: set[int]) -> Branch:
    shapes, own = [], 0
    for parameter in module.parameters(recurse=False):
        shapes.append(tuple(parameter.shape))
        own += 0 if id(parameter) in seen else parameter.numel()
        seen.add(id(parameter))
    inside: list[Branch] = []
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            numbered = [(number, _part("", each, seen)) for number, each in child.named_children()]
            inside += _folded(child_name, numbered)
        elif not isinstance(child, nn.Identity | nn.Dropout):
            inside.append(_part(child_name, child, seen))
    return Branch(name, type(module).__name__, tuple(shapes), own, 1, tuple(inside))


def _folded(name: str, parts: list[tuple[str, Branch]]) -> Iterator[Branch]:
    """Equal parts of a list as one, under all their numbers."""
    alike: dict[Branch, list[str]] = {}
    for number, part in parts:
        alike.setdefault(part, []).append(number)
    for part, numbers in alike.items():
        yield Branch(f"{name}.{_numbers(numbers)}", part.kind, part.shapes, part.own, len(numbers), part.inside)


def _numbers(numbers: list[str]) -> str:
    """`0-11` where none is left out, `1,3,...,11` where they are evenly apart, otherwise each."""
    places = [int(number) for number in numbers]
    steps = {later - earlier for earlier, later in itertools.pairwise(places)}
    if steps == {1}:
        return f"{places[0]}-{places[-1]}"
    if len(places) > 4 and len(steps) == 1:
        return f"{places[0]},{places[1]},...,{places[-1]}"
    return ",".join(numbers)
