"""What a model is and takes, before or after it is trained.

In: the name of a recipe, a run, or a model folder, and knobs.  Out: `Sizes`: its tree with shapes, its parameters,
FLOPs, bytes at rest and in training, and which GPUs hold it; to read, each number with the arithmetic that it comes
from, or as a dictionary. The model is built on the meta device, so three billion parameters take no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hornbook.base.console import count, say, table
from hornbook.base.errors import UserError
from hornbook.base.settings import meant
from hornbook.base.stored import stored
from hornbook.model.config import CONFIG
from hornbook.model.folder import load_config
from hornbook.model.gpt import GPT
from hornbook.model.init import outline
from hornbook.model.shapes import shape_of
from hornbook.model.tree import Branch, tree_of
from hornbook.plan.gpus import GB, GPUS, SECONDS_OF_A_DAY, SHARE_OF_PEAK, Gpu
from hornbook.recipes import RECIPES, compose, vocabulary_of
from hornbook.runs.folder import RunFolder, resolve
from hornbook.train.config import RunConfig, TrainConfig, override
from hornbook.train.memory import NAMES as SHORT_NAMES
from hornbook.train.memory import TrainingMemory, training_memory
from hornbook.train.optim import rules_of

TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PILE = ("pile-13m", "pile-2b")
BYTES_AT_REST = {"fp32": 4, "bf16": 2, "int8": 1}
IN_BF16 = 2
FRUGAL = "*"


def find(name: str, knobs: Mapping[str, Any]) -> Sizes:
    """Of a recipe or a settings file, with knobs turned; of a run, as it is trained; of a model folder, as a run with
    our defaults would go on with it."""
    run = _run_of(name, knobs)
    if run.model.vocab_size is None:
        raise UserError(f"{name}: does not say its vocab_size, without which the model's shape is not known")
    return Sizes(name, run)


def _run_of(name: str, knobs: Mapping[str, Any]) -> RunConfig:
    if name in RECIPES or name.endswith((".toml", ".json")):
        return _with_vocabulary(name, compose(name, knobs))
    path = Path(name)
    if not path.exists():
        mend = meant(name, RECIPES, "see: hornbook recipes")
        raise UserError(f"{name}: neither a recipe nor the folder of a run or a model; {mend}")
    if "model" in knobs:
        turned = knobs["model"]
        knob = "model" if not isinstance(turned, Mapping) or not turned else f"model.{next(iter(turned))}"
        raise UserError(f"--{knob.replace('_', '-')}: {name} has its shape already; only a recipe's can be changed")
    runs = [path, path.absolute().parent.parent] if (path / CONFIG).is_file() else [path]
    for run in runs:
        if (folder := RunFolder(run)).has_record():
            return override(stored(RunConfig, folder.record().config, folder.record_file), knobs)
    config = RunConfig(recipe=name, model=load_config(resolve(path)), train=TrainConfig(steps=1))
    return override(config, knobs)


def _with_vocabulary(name: str, config: RunConfig) -> RunConfig:
    size = vocabulary_of(config)
    if size is None:
        raise UserError(
            f"{name}: its {config.tokenizer.kind} vocabulary depends on the text; say how many: --model.vocab-size 100"
        )
    return override(config, {"model": {"vocab_size": size}})


@dataclass(frozen=True)
class Held:
    """What a GPU holds of it."""

    gpu: Gpu
    numbers: str
    one: TrainingMemory
    frugal: TrainingMemory
    """One sequence at once, with activation checkpointing."""
    batch: TrainingMemory
    generation_bytes: int
    flops_per_token: int

    @property
    def trains(self) -> bool:
        return self.least.bytes <= self.gpu.bytes

    @property
    def checkpoints_activations(self) -> bool:
        """As a run does by itself where it would not fit otherwise."""
        return self.one.bytes > self.gpu.bytes >= self.frugal.bytes

    @property
    def least(self) -> TrainingMemory:
        return self.frugal if self.checkpoints_activations else self.one

    @property
    def tokens_in_a_day(self) -> float | None:
        """The amount of text that it learns from in a day, where it holds the training."""
        if not self.trains:
            return None
        return self.gpu.tokens_in_a_day(self.flops_per_token, self.numbers)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.gpu.name,
            "bytes": self.gpu.bytes,
            "training_in": SHORT_NAMES[TORCH_TYPES[self.numbers]],
            "trains_one_sequence_at_once": self.trains,
            "with_activation_checkpointing": self.checkpoints_activations,
            "trains_whole_batch_at_once": self.batch.bytes <= self.gpu.bytes,
            "generates_in_bf16": self.generation_bytes <= self.gpu.bytes,
            "tokens_in_a_day": self.tokens_in_a_day and round(self.tokens_in_a_day),
        }


@dataclass(frozen=True)
class Sizes:
    name: str
    run: RunConfig

    @cached_property
    def model(self) -> GPT:
        return outline(self.run.model)

    @cached_property
    def tree(self) -> Branch:
        return tree_of(self.model)

    @property
    def at_once(self) -> int:
        """Sequences that the recipe itself computes at once, where memory does not matter."""
        return min(self.run.train.micro_batch or self.run.sequences, self.run.sequences)

    @cached_property
    def numbers(self) -> torch.dtype:
        return TORCH_TYPES[self.run.train.dtype or "bfloat16"]

    def flops(self) -> tuple[int, str, str]:
        """Of one token: in training, forward alone, and how they are reckoned."""
        config = self.run.model
        multiplied = config.n_params(embeddings=False) + config.known_vocab_size * config.n_embd
        seen = f"{config.n_layer} layers x {config.n_head * config.width_of_head:,} wide x {self.run.window:,} tokens"
        training = f"6 x {multiplied:,} parameters that multiply + 12 x {seen}"
        forward = f"2 x {multiplied:,} + 4 x {seen}"
        return config.flops_per_token(self.run.window), training, forward

    def cache(self) -> tuple[int, str]:
        """Bytes of keys and values for each token in bf16, and how they are reckoned."""
        config = self.run.model
        heads = "head" if config.kv_heads == 1 else "heads"
        numbers = 2 * config.n_layer * config.kv_heads * config.width_of_head
        how = f"2 x {config.n_layer} layers x {config.kv_heads} {heads} x {config.width_of_head} x {IN_BF16}"
        return numbers * IN_BF16, how

    @property
    def generation_bytes(self) -> int:
        """Weights, and the keys and values of a full context, in bf16."""
        return IN_BF16 * self.run.model.n_params() + self.cache()[0] * self.run.model.context

    def memory(self, at_once: int, numbers: torch.dtype, checkpoints_activations: bool | None = None) -> TrainingMemory:
        return training_memory(self.run, self.model, at_once, numbers, "cuda", checkpoints_activations)

    @cached_property
    def gpus(self) -> list[Held]:
        chosen = self.run.train.dtype
        frugal = self.run.train.activation_checkpointing is not False
        needs = {
            name: (self.memory(1, numbers), self.memory(1, numbers, frugal), self.memory(self.at_once, numbers))
            for name, numbers in TORCH_TYPES.items()
        }
        held = []
        for gpu in sorted(GPUS, key=lambda gpu: gpu.gigabytes):
            numbers = chosen or gpu.numbers
            held.append(Held(gpu, numbers, *needs[numbers], self.generation_bytes, self.flops()[0]))
        return held

    def as_dict(self) -> dict[str, Any]:
        config, (flops, how, how_forward), (cache, how_cache) = self.run.model, self.flops(), self.cache()
        return {
            "name": self.name,
            "recipe": self.run.recipe,
            "transformers_type": shape_of(config),
            "config": config.model_dump(),
            "tree": self.tree.as_dict(),
            "parameters": {"all": config.n_params(), "without_embeddings": config.n_params(embeddings=False)},
            "flops_per_token": {
                "training": flops,
                "forward": flops // 3,
                "arithmetic": {"training": how, "forward": how_forward},
            },
            "weights_bytes": {name: size * config.n_params() for name, size in BYTES_AT_REST.items()},
            "cache_bytes": {"per_token": cache, "full": cache * config.context, "arithmetic": how_cache},
            "generation_bytes": self.generation_bytes,
            "training": {
                "numbers": SHORT_NAMES[self.numbers],
                "batch_sequences": self.run.sequences,
                "window": self.run.window,
                "one_at_once": memory_as_dict(self.memory(1, self.numbers)),
                "whole_batch_at_once": memory_as_dict(self.memory(self.at_once, self.numbers)),
            },
            "gpus": [held.as_dict() for held in self.gpus],
        }

    def show(self) -> None:
        kind = shape_of(self.run.model)
        known = f"; transformers knows this shape as {kind}" if kind else "; a shape of our own"
        of = self.run.recipe
        say(f"{self.name}" + (f", of the recipe {of}" if of not in (self.name, "custom") else "") + known + "\n")
        self._show_tree()
        self._show_sizes()
        self._show_training()
        self._show_gpus()
        if self.run.recipe in PILE:
            self._show_page_of_the_pile()

    def _show_tree(self) -> None:
        rows = []
        for depth, part in self.tree.walk():
            each = part.parameters // part.times
            times = f" ({part.times} times)" if part.times > 1 else ""
            shapes = ", ".join(" x ".join(f"{size:,}" for size in shape) for shape in part.shapes)
            shapes = f"{part.times} x {each:,}" if part.times > 1 else shapes
            if part.name == "head" and self.run.model.tied:
                shapes += ", the embedding's"
            rows.append(("  " * depth + part.name + times, part.kind, shapes, f"{part.parameters:,}"))
        table(("part", "kind", "shape", "parameters"), rows, right=(3,))

    def _show_sizes(self) -> None:
        config, (flops, how, how_forward), (cache, how_cache) = self.run.model, self.flops(), self.cache()
        count = config.n_params()
        rows = [
            ("parameters", "", f"{count:,}"),
            ("  without embeddings", "blocks and norms", f"{config.n_params(embeddings=False):,}"),
            ("FLOPs per token", "", ""),
            ("  forward and backward", how, f"{flops:,}"),
            ("  forward alone", how_forward, f"{flops // 3:,}"),
            ("weights", "", ""),
            *(
                (f"  in {name}", f"{count:,} x {size}", size_in_words(size * count))
                for name, size in BYTES_AT_REST.items()
            ),
            ("keys and values in bf16", "", ""),
            ("  of a token", how_cache, size_in_words(cache)),
            ("  of a full context", f"{config.context:,} x {cache:,}", size_in_words(cache * config.context)),
        ]
        say()
        table(("what", "arithmetic", "number"), rows, right=(2,))

    def _show_training(self) -> None:
        one, batch = self.memory(1, self.numbers), self.memory(self.at_once, self.numbers)
        rows: list[tuple[str, str, str]] = []
        rows += [(part.what, part.arithmetic, size_in_words(part.bytes)) for part in one.held]
        rows.append(("held throughout", "", size_in_words(one.held_bytes)))
        rows += _moments_of(one, 1)
        if self.at_once > 1:
            rows += _moments_of(batch, self.at_once, one)
        optimizer = " and ".join(rules_of(self.model, self.run.optim))
        say(
            f"\nTraining with {optimizer}, computing in {SHORT_NAMES[self.numbers]} on a GPU, "
            f"{self.run.sequences:,} x {self.run.window:,} tokens a step.\n"
            "Gradients and activations come and go, so beside what is held throughout, the fullest moment counts.\n"
        )
        table(("in training", "arithmetic", "bytes"), rows, right=(2,))

    def _show_gpus(self) -> None:
        rows = []
        for held in self.gpus:
            facts = held.as_dict()
            rows.append(
                (
                    held.gpu.name,
                    f"{held.gpu.gigabytes} GB",
                    facts["training_in"],
                    _fits(held.least.bytes, held.gpu) + FRUGAL * held.checkpoints_activations,
                    _fits(held.batch.bytes, held.gpu),
                    _fits(held.generation_bytes, held.gpu),
                    "-" if held.tokens_in_a_day is None else count(held.tokens_in_a_day),
                )
            )
        say("\nWhat holds it. A GB is 10^9 bytes here; what chips hold beyond that, the driver takes.")
        say(
            f"The text that suits a card: tokens that it learns from in a day, {SHARE_OF_PEAK:.0%} of its peak "
            f"x {SECONDS_OF_A_DAY:,} s / {self.flops()[0]:,} FLOPs.\n"
        )
        whole = f"trains, {self.at_once} at once"
        headings = ("GPU", "memory", "in", "trains, 1 at once", whole, "generates, bf16", "tokens a day")
        table(headings, rows, right=(1, 3, 4, 5, 6))
        if any(held.checkpoints_activations for held in self.gpus):
            say(f"{FRUGAL} with activation checkpointing, which a run turns to where it would not fit otherwise")

    def _show_page_of_the_pile(self) -> None:
        """What is said of the two sizes where they were published, and what arithmetic says."""
        sizes = [self if self.run.recipe == name else find(name, {}) for name in PILE]
        rows = []
        for small, large in zip(*(each.gpus for each in sizes), strict=True):
            if (said := small.gpu.holds_2b) is not None:
                told = [_fits(held.least.bytes, held.gpu) for held in (small, large)]
                rows.append(
                    (small.gpu.name, f"{small.gpu.gigabytes} GB", "yes", told[0], "yes" if said else "no", told[1])
                )
        say("\nWhat their page says of training the two sizes, and the arithmetic, with 1 sequence at once.\n")
        headings = [f"{name}, {who}" for name in PILE for who in ("its page", "arithmetic")]
        table(("GPU", "memory", *headings), rows, right=(1, 3, 5))


def _moments_of(memory: TrainingMemory, at_once: int, told: TrainingMemory | None = None) -> list[tuple[str, str, str]]:
    """A row for each part of each moment, but for those that were told already."""
    rows = []
    sequences = "1 sequence" if at_once == 1 else f"{at_once} sequences"
    for moment in memory.moments:
        if told is not None and moment in told.moments:
            continue
        rows.append((f"{moment.when}, {sequences} at once", "", size_in_words(moment.bytes)))
        rows += [(f"  {part.what}", part.arithmetic, size_in_words(part.bytes)) for part in moment.parts]
    held, fullest = size_in_words(memory.held_bytes), size_in_words(memory.fullest.bytes)
    at = f"held throughout {held} + {memory.fullest.when} {fullest}"
    rows.append((f"at its fullest, {sequences} at once", at, size_in_words(memory.bytes)))
    return rows


def memory_as_dict(memory: TrainingMemory) -> dict[str, Any]:
    return {
        "held": [asdict(part) for part in memory.held],
        "moments": [
            {"when": moment.when, "bytes": moment.bytes, "parts": [asdict(part) for part in moment.parts]}
            for moment in memory.moments
        ],
        "held_bytes": memory.held_bytes,
        "bytes": memory.bytes,
    }


def _fits(needed: int, gpu: Gpu) -> str:
    return f"{'yes' if needed <= gpu.bytes else 'no'}, {size_in_words(needed)}"


def size_in_words(size: int) -> str:
    """1,500,000,000 as 1.50 GB."""
    for unit, each in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if size >= each:
            return f"{size / each:,.2f} {unit}"
    return f"{size} B"
