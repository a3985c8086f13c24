"""What a model's tensors are called, and how they lie, in the files of other programs.

In: tensors under our names, or under a program's.  Out: the same the other way round, to the bit; or a UserError that
names every tensor that is missing, misshapen or too many.
A Layout is a table: for each of our modules, theirs. From it follow Rows: some of ours, one below the other and
rearranged, are some of theirs, one below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig
from hornbook.model.init import outline

Tensors = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]
MOST_MISTAKES = 8
# Which of ModelConfig.biases a module's bias belongs to; embeddings have none.
ROLES = {
    **dict.fromkeys(("attention_norm", "mlp_norm", "norm", "attention.query_norm", "attention.key_norm"), "norm"),
    **dict.fromkeys(("attention.query", "attention.key", "attention.value"), "qkv"),
    **dict.fromkeys(("mlp.gate", "mlp.up", "mlp.down"), "mlp"),
    **{"attention.out": "out", "head": "head"},
}
QKV = ("attention.query", "attention.key", "attention.value")

READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Arrangement:
    """What is done to ours to have theirs, and back."""

    there: Callable[[torch.Tensor], torch.Tensor]
    back: Callable[[torch.Tensor], torch.Tensor]


def transposed(config: ModelConfig) -> Arrangement:
    """Matrices are stored (in, out)."""

    def turn(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mT if tensor.ndim == 2 else tensor

    return Arrangement(turn, turn)


def rotated_back(config: ModelConfig) -> Arrangement:
    """The halves of each head are exchanged: rotating by an angle becomes rotating back by it."""

    def swap(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(0, (-1, 2, config.width_of_head // 2)).flip(1).flatten(0, 2)

    return Arrangement(swap, swap)


@dataclass(frozen=True)
class Row:
    """Some of ours, one below the other and rearranged, are some of theirs, one below the other."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    arrange: Arrangement | None = None


@dataclass(frozen=True)
class Layout:
    """One program's names. In `block`, {} is the number of a layer; in `inside`, {} is that of a head."""

    outside: Mapping[str, str]
    block: str
    inside: Mapping[str | tuple[str, ...], str]
    """Where a tuple of ours is one of theirs, they lie one below the other."""
    arrange: Mapping[str, Callable[[ModelConfig], Arrangement]] = field(default_factory=dict)
    """By the (first) module of ours inside a block."""
    endings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What weight and bias are called, by role; .weight and .bias where nothing is said."""
    biased: Callable[[ModelConfig], Collection[str]] = lambda config: config.biases
    """The roles whose biases its files hold; one that ours lacks is zero there."""
    body: str = ""
    """What all names but the head's begin with, and older files leave out."""
    ignored: tuple[str, ...] = ()
    """Endings of what is no weight: masks, and numbers of places."""

    def name(self, module: str, kind: int = 0, layer: int = 0, head: int = 0) -> str:
        """Theirs, of the weight (0) or the bias (1) of one of our modules that is one of theirs."""
        ending = self.endings.get(ROLES.get(module, "embedding"), (".weight", ".bias"))[kind]
        if module in self.outside:
            return self.outside[module] + ending
        theirs = next(theirs for ours, theirs in self.inside.items() if module in _each(ours))
        return self.block.format(layer) + theirs.format(head) + ending

    def rows(self, config: ModelConfig, ours: Shapes) -> Iterator[Row]:
        """What belongs to what, of the tensors that a model has and of the biases that only their files hold."""
        biased = self.biased(config)
        places: list[tuple[str, int, str | tuple[str, ...]]] = [("", 0, module) for module in self.outside]
        places += [(f"blocks.{layer}.", layer, each) for layer in range(config.n_layer) for each in self.inside]
        for before, layer, modules in places:
            parts = _each(modules)
            if f"{before}{parts[0]}.weight" not in ours:
                continue
            heads = range(config.n_head if before and "{}" in self.inside[modules] else 1)
            arrange = self.arrange.get(parts[0]) if before else None
            for kind, ending in enumerate(("weight", "bias")[: 1 + (ROLES.get(parts[0]) in biased)]):
                yield Row(
                    tuple(f"{before}{part}.{ending}" for part in parts),
                    tuple(self.name(parts[0], kind, layer, head) for head in heads),
                    arrange(config) if arrange else None,
                )

    def learned(self, found: Mapping[str, torch.Tensor], tied: bool = False) -> Tensors:
        """A file's tensors without masks, with the beginning that older files leave out, and without a head where the
        embedding is one."""
        head = self.name("head")
        kept = {name: each for name, each in found.items() if not name.endswith(self.ignored)}
        if tied:
            kept.pop(head, None)
        if any(name.startswith(self.body) for name in kept):
            return kept
        return {name if name == head else self.body + name: each for name, each in kept.items()}

    @property
    def modules(self) -> list[str]:
        """All of ours that it has a name for."""
        return [module for each in (*self.outside, *self.inside) for module in _each(each)]


def _each(modules: str | tuple[str, ...]) -> tuple[str, ...]:
    return (modules,) if isinstance(modules, str) else modules


def our_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of a model; of one matrix for embedding and head, the embedding."""
    shapes = {name: tuple(tensor.shape) for name, tensor in outline(config).state_dict().items()}
    if config.tied:
        del shapes["head.weight"]
    return shapes


def to_theirs(
    layout: Layout | None, config: ModelConfig, state: Mapping[str, torch.Tensor], some: bool = False
) -> Tensors:
    """Our tensors as a program has them; None stands for our own files. With `some`, those that are there, of which
    nothing is that belongs to what is not."""
    ours, rows = our_shapes(config), None
    state = {name: tensor for name, tensor in state.items() if not (config.tied and name == "head.weight")}
    if some:  # a bias that only their files have goes with its weight
        rows = [
            row
            for row in _rows(layout, config, ours)
            if any((name if name in ours else name.removesuffix("bias") + "weight") in state for name in row.ours)
        ]
        ours = {name: shape for name, shape in ours.items() if any(name in row.ours for row in rows)}
    _check(state, ours)
    return _theirs(_rows(layout, config, ours) if rows is None else rows, state, ours)


def rows_of_several(layout: Layout | None, config: ModelConfig) -> list[tuple[str, ...]]:
    """Names of ours that are one tensor there."""
    return [row.ours for row in _rows(layout, config, our_shapes(config)) if len(row.ours) > 1]


def to_ours(layout: Layout | None, config: ModelConfig, found: Mapping[str, torch.Tensor]) -> Tensors:
    """A program's tensors as ours."""
    return dict(to_ours_in_turn(layout, config, found))


def to_ours_in_turn(
    layout: Layout | None,
    config: ModelConfig,
    found: Mapping[str, torch.Tensor],
    wanted: Callable[[str], bool] = lambda name: True,
    fetch: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Iterator[tuple[str, torch.Tensor]]:
    """One after another, of those that are wanted; `fetch` gives the numbers of one that was found on the meta
    device."""
    ours = our_shapes(config)
    rows = _rows(layout, config, ours)
    theirs = dict(found) if layout is None else layout.learned(found, config.tied)
    _check(theirs, _shapes_of(_theirs(rows, _without_numbers(ours), ours)))
    for row in rows:
        if not any(map(wanted, row.ours)):
            continue
        parts = [fetch(theirs[name]) for name in row.theirs]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = row.arrange.back(whole) if row.arrange else whole
        for name, part in zip(row.ours, whole.split([_rows_of(name, ours) for name in row.ours]), strict=True):
            if name in ours:
                yield name, part.contiguous()
            elif part.any():
                raise UserError(f"tensor {row.theirs[0]} is not zero, but the model's config has no such bias")


def _theirs(rows: list[Row], state: Mapping[str, torch.Tensor], ours: Shapes) -> Tensors:
    like = next(iter(state.values()))
    theirs: Tensors = {}
    for row in rows:
        parts = [state[name] if name in state else like.new_zeros(_rows_of(name, ours)) for name in row.ours]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = row.arrange.there(whole) if row.arrange else whole
        theirs |= zip(row.theirs, (each.contiguous() for each in whole.chunk(len(row.theirs))), strict=True)
    return theirs


def _rows(layout: Layout | None, config: ModelConfig, ours: Shapes) -> list[Row]:
    return [Row((name,), (name,)) for name in ours] if layout is None else list(layout.rows(config, ours))


def _rows_of(name: str, ours: Shapes) -> int:
    """Of a bias that the model lacks, as many as its weight has."""
    return ours[name if name in ours else name.removesuffix("bias") + "weight"][0]


def _without_numbers(shapes: Shapes) -> Tensors:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _shapes_of(tensors: Tensors) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check(found: Mapping[str, torch.Tensor], wanted: Shapes) -> None:
    """The one place where tensors are missing, misshapen or too many."""
    mistakes = [f"tensor {name} is missing" for name in sorted(wanted.keys() - found.keys())]
    mistakes += [f"tensor {name[:80]} is not of this model" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(found.keys() & wanted.keys()):
        if tuple(found[name].shape) != wanted[name]:
            mistakes.append(f"tensor {name} is {tuple(found[name].shape)}, the model has {wanted[name]}")
        elif found[name].dtype not in READABLE:  # float8 comes with scales of its own
            mistakes.append(f"tensor {name} holds {found[name].dtype}, not floating-point numbers")
    if mistakes:
        raise UserError(*mistakes[:MOST_MISTAKES])
