"""How much memory a run needs.

In: a run's config, its model (also one on the meta device), how many sequences are computed at once, and in which
numbers.  Out: `TrainingMemory`: every part with the arithmetic that it comes from. What is held throughout is exact;
activations are those of the eager model, of which compiling keeps less. Saving copies into main memory what of it is
free, or nothing (saving.py), and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch

from hornbook.infer.score import TOKENS_AT_ONCE
from hornbook.model.activations import ACTIVATIONS
from hornbook.model.attention import SHORT
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT
from hornbook.model.loss import VOCAB_MULTIPLE, rows_at_once
from hornbook.model.norms import NORMS
from hornbook.train.config import RunConfig
from hornbook.train.optim import grouped, rule_named

FP32 = 4
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Share:
    """Some of the memory, and how it is reckoned."""

    what: str
    arithmetic: str
    bytes: int
    in_slices: bool = False
    """Whether of processes that have the model together each holds a slice of it."""


@dataclass(frozen=True)
class Moment:
    """A moment at which memory may be fullest, and what it needs beside what is held throughout."""

    when: str
    parts: tuple[Share, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class TrainingMemory:
    held: tuple[Share, ...]
    moments: tuple[Moment, ...]

    @property
    def held_bytes(self) -> int:
        return sum(part.bytes for part in self.held)

    @cached_property
    def fullest(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def bytes(self) -> int:
        return self.held_bytes + self.fullest.bytes


def training_memory(
    config: RunConfig,
    model: GPT,
    at_once: int,
    dtype: torch.dtype,
    device: str,
    checkpoints_activations: bool | None = None,
) -> TrainingMemory:
    """What training needs at its fullest, with `at_once` sequences at a time in numbers of `dtype` on a kind of
    device; with activation checkpointing or without, as the config says when not given."""
    count = sum(parameter.numel() for parameter in model.parameters())
    working = dtype != torch.float32
    held = [Share("weights, fp32", f"{count:,} x {FP32}", FP32 * count)]
    if working:
        name = NAMES[dtype]
        copy = f"{count:,} x {dtype.itemsize}"
        held.append(Share(f"working copy, {name}", copy, dtype.itemsize * count, in_slices=True))
    held += optimizer_parts(config, model)
    if config.train.average:
        held.append(Share("averaged weights, fp32", f"{count:,} x {FP32}", FP32 * count))
    gradients = Share("gradients, fp32", f"{count:,} x {FP32}", FP32 * count, in_slices=True)
    several = at_once < config.sequences
    before = [gradients] if several else []
    tokens = at_once * config.window
    head = loss_pieces(config.model, tokens, dtype, device)
    if checkpoints_activations is None:
        checkpoints_activations = config.train.activation_checkpointing is True
    if checkpoints_activations:
        read = what_blocks_read(config.model, tokens, dtype)
        one = activations(config.model.with_(n_layer=1), tokens, config.window, dtype, device)
        moments = [Moment("loss", (*before, read, head)), Moment("backwards", (gradients, read, one))]
    else:
        kept = activations(config.model, tokens, config.window, dtype, device)
        moments = [Moment("forwards and backwards", (*before, kept, head))]
    if working and several:
        fresh = Share(f"the working copy's, {name}", copy, dtype.itemsize * count, in_slices=True)
        moments.append(Moment("gradients added up", (gradients, fresh)))
    moments.append(Moment("weights changed", (gradients, *workspace(config, model, dtype))))
    moments.append(Moment("evaluation", (evaluation_logits(config, dtype, device),)))
    return TrainingMemory(tuple(held), tuple(moments))


def bytes_in_slices(whole: TrainingMemory, model: GPT, dtype: torch.dtype, slices: int, ranks: int) -> int:
    """The same, where so many processes have the model together, and of all of them each owns its share: the rows that
    compute, their gradients, and a micro-batch's; whole there are two blocks at a time, and what is in none."""
    count = sum(parameter.numel() for parameter in model.parameters())
    of_blocks = sum(parameter.numel() for parameter in model.blocks.parameters())
    at_a_time = count - of_blocks + 2 * of_blocks // len(model.blocks)
    owned = sum(part.bytes for part in whole.held if not part.in_slices) // ranks
    beside = max(sum(part.bytes for part in moment.parts if not part.in_slices) for moment in whole.moments)
    return owned + 3 * FP32 * count // slices + (dtype.itemsize + FP32) * at_a_time + beside


def optimizer_parts(config: RunConfig, model: GPT) -> list[Share]:
    """What the optimizer remembers from step to step."""
    return [Share(*rule_named(rule).remembered(shapes)) for rule, shapes in _shapes_by_rule(config, model).items()]


def workspace(config: RunConfig, model: GPT, dtype: torch.dtype) -> list[Share]:
    """What a step of the optimizer needs at its fullest."""
    parts = [
        Share(*memory)
        for rule, shapes in _shapes_by_rule(config, model).items()
        for memory in rule_named(rule).workspace(shapes, dtype)
    ]
    return [max(parts, key=lambda part: part.bytes)] if parts else []


def _shapes_by_rule(config: RunConfig, model: GPT) -> dict[str, list[torch.Size]]:
    shapes: dict[str, list[torch.Size]] = defaultdict(list)
    for group, named in grouped(model, config.optim).items():
        shapes[group.rule] += [parameter.shape for parameter in named.values()]
    return shapes


def activations(config: ModelConfig, tokens: int, window: int, dtype: torch.dtype, device: str) -> Share:
    """What backward needs of each token."""
    size = dtype.itemsize
    block = _kept_in_block(config, window, dtype, device)
    inner = " + ".join(f"{times:g} x {width:,}" for times, width in block)
    # The embedding, the last norm, and the gradient that the loss hands back.
    ends = 4 * config.n_embd
    numbers = round(config.n_layer * sum(times * width for times, width in block)) + ends
    arithmetic = f"{tokens:,} tokens x {size} x ({config.n_layer} x ({inner}) + 4 x {config.n_embd:,})"
    return Share(f"activations, {NAMES[dtype]}", arithmetic, tokens * size * numbers)


def what_blocks_read(config: ModelConfig, tokens: int, dtype: torch.dtype) -> Share:
    """With activation checkpointing: the stream before each block and after the last."""
    layers, size = config.n_layer + 1, dtype.itemsize
    arithmetic = f"{tokens:,} tokens x {size} x {layers} x {config.n_embd:,}"
    return Share(f"what blocks read, {NAMES[dtype]}", arithmetic, tokens * size * layers * config.n_embd)


def _kept_in_block(config: ModelConfig, window: int, dtype: torch.dtype, device: str) -> list[tuple[float, int]]:
    """(how many, of which width) of the numbers that a block keeps of each token."""
    width, queries, keys = config.n_embd, config.n_head * config.width_of_head, config.kv_heads * config.width_of_head
    cuda = device == "cuda"
    mask = 1 / dtype.itemsize if cuda else 1.0  # what was dropped: a byte each on CUDA, a number elsewhere
    norm = NORMS[config.norm].kept
    of_stream = 2.0 * (norm + 1)  # what each of the two norms keeps and what it gave
    of_stream += 2 * mask if config.drops("residual") else 0
    of_stream += 1 if config.embedding_skip else 0
    of_queries = of_keys = 2.0 + (norm if config.qk_norm != "none" else 0)
    of_keys += sum(map(config.has_value_embedding, range(config.n_layer))) / config.n_layer
    of_mlp = ACTIVATIONS[config.activation].kept + (mask if config.drops("mlp") else 0)
    kept = [(of_stream, width), (of_queries, queries), (of_keys, keys), (of_mlp, config.width_of_mlp)]
    # Fused attention keeps no scores. On a CPU it is not used for short windows in bf16, nor with dropout.
    short = dtype == torch.bfloat16 and window <= SHORT
    if device == "cpu" and (short or config.drops("attention")):
        kept.append((3.0 if config.drops("attention") else 1.0, config.n_head * window))
    return kept


def loss_pieces(config: ModelConfig, tokens: int, dtype: torch.dtype, device: str) -> Share:
    """The head's gradient in fp32, and beside it either a piece of the logits and what it adds, or, backwards, the same
    scaled and cast."""
    rows, size = _padded_vocabulary(config, device), dtype.itemsize
    piece, head = _piece(config, tokens, device), rows * config.n_embd
    copies = 1 if config.logit_cap is None else 3
    padded = size * head if rows != config.known_vocab_size else 0
    forwards = copies * size * piece + size * head + padded
    backwards = FP32 * head + (size * head if dtype != torch.float32 else 0)
    if backwards > forwards:
        each = FP32 + backwards // head
        return Share("gradient of the head", f"{rows:,} x {config.n_embd:,} x {each}", FP32 * head + backwards)
    each = FP32 + size + padded // head
    arithmetic = f"{piece:,} logits x {copies * size} + {rows:,} x {config.n_embd:,} x {each}"
    return Share("logits of a piece, gradient of the head", arithmetic, FP32 * head + forwards)


def evaluation_logits(config: RunConfig, dtype: torch.dtype, device: str) -> Share:
    """A piece of the logits, with no gradients anywhere: as they come, in fp32, and their logarithms."""
    tokens = max(TOKENS_AT_ONCE // config.window, 1) * config.window
    piece = _piece(config.model, tokens, device)
    each = 2 * FP32 + (dtype.itemsize if dtype != torch.float32 else 0)
    return Share("logits of a piece", f"{piece:,} x {each}", each * piece)


def _padded_vocabulary(config: ModelConfig, device: str) -> int:
    multiple = VOCAB_MULTIPLE if device == "cuda" else 1
    return -(-config.known_vocab_size // multiple) * multiple


def _piece(config: ModelConfig, tokens: int, device: str) -> int:
    rows = _padded_vocabulary(config, device)
    return min(tokens, rows_at_once(rows, device == "cuda")) * rows
