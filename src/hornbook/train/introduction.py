"""What a run is about to do, in a few lines, before its first step.

In: a `Run`.  Out: lines of its data, its model, its training and its folder, and what a person would hardly mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from hornbook.base.console import count, warn
from hornbook.exchange.moments import updates_beside
from hornbook.model.positions import POSITIONS
from hornbook.shards.order import SampleOrder
from hornbook.shards.prepare import changed_in_reading
from hornbook.train.config import RunConfig
from hornbook.train.loop import Run
from hornbook.train.origin import Origin
from hornbook.train.schedule import doubts_of
from hornbook.train.timetable import steps_in_all


def introduce(run: Run, begin: Path | Origin | None) -> None:
    config, model, machine, shards = run.config, run.config.model, run.machine, run.shards
    train, val = shards.split_facts("train"), shards.split_facts("val")
    threads = f", {machine.threads} thread{'s' * (machine.threads != 1)}" if machine.device == "cpu" else ""
    lines = [
        f"data      {shards.manifest['name']}: {count(train['tokens'])} tokens to train on, "
        f"{count(val['tokens'])} to validate, {shards.manifest['tokenizer']} vocabulary of {shards.vocab_size:,}",
        f"model     {count(model.n_params())} parameters: {model.n_layer} layer{'s' * (model.n_layer != 1)}, "
        f"{model.n_head} head{'s' * (model.n_head != 1)}, width {model.n_embd}, context {model.context}",
        f"training  {config.sequences * config.window:,} tokens a step ({config.sequences} x {config.window}), "
        f"on {machine.name}{threads}{shared_out(run)}",
        f"numbers   {machine.dtype}: {machine.why_dtype}{in_short_numbers(run)}",
        f"run       {run.folder} (Ctrl-C stops and saves)",
    ]
    if run.learner.checkpoints_activations:
        lines.insert(4, f"memory    {why_checkpointing(config)}")
    of_token = shards.bytes_of_text("train") / max(train["tokens"], 1)
    lines.insert(1, f"          a token is about {of_token:.1f} bytes of text; what is to validate is never trained on")
    lines.insert(2, f"          {loaded(config, run.loader.order, val['tokens'])}")
    lines[2:2] = (f"          {each}" for each in changed_in_reading(shards.manifest))
    if isinstance(begin, Path):
        lines.append(f"going on from {begin}, step {run.state.step}")
        if run.extension.step == run.state.step:
            lines.append(run.extension.told(config.schedule))
    elif begin is not None:
        grown = ", grown, so that it begins by computing the same" if begin.grows else ""
        lines.append(f"weights   those of {begin.folder}{grown}")
        if begin.goes_on_with_optimizer(config):
            lines.append(f"optimizer after {updates_beside(begin.folder):,} updates, as it came with them")
    elif config.has_head_start:
        back = ", and its first heads look back" if config.model.positions == "rotary" else ""
        lines.append(f"weights   random; embedding and head know from counting which token follows which{back}")
    for line in lines:
        run.progress.note(line)
    for line in _doubts(config, run.loader.order.samples_per_epoch):
        warn(line)


def shared_out(run: Run) -> str:
    """Among several processes."""
    if run.world.size == 1:
        return ""
    ranks, slices = run.world.size, run.learner.slices
    if not run.learner.is_sharded:
        return f", {ranks} processes, each with all the weights"
    together = f", of which each {slices} have them together" if slices < ranks else ""
    return f", {ranks} processes, each with a slice of the weights{together}"


def in_short_numbers(run: Run) -> str:
    """What follows from them."""
    if run.machine.dtype == "float32":
        return ""
    scaler = run.learner.scaler
    scaled = f", the loss is scaled by {scaler.scale.item():,.0f}" if scaler.scales else ""
    return f"; weights are kept in float32{scaled}"


def why_checkpointing(config: RunConfig) -> str:
    asked = config.train.activation_checkpointing is not None
    why = "as asked for" if asked else "without it, one sequence would not fit"
    return f"activation checkpointing: {why}; a third more arithmetic"


def loaded(config: RunConfig, order: SampleOrder, val_tokens: int) -> str:
    """How many batches an epoch has, and an evaluation: what is trained on may overlap, what is validated on never."""
    sequences, window = config.sequences, config.window
    batches, predicted = order.samples_per_epoch / sequences, max(val_tokens - 1, 0)
    if config.train.eval_batches is not None and predicted >= window:
        predicted -= predicted % window  # whole windows only
    told = f"{batches:,.0f}" if batches.is_integer() else f"{batches:,.1f}"
    stride = f", {order.stride:,} apart" if order.stride != window else ""
    return (
        f"1 epoch = {told} batches of {sequences:,} x {window:,}{stride}: {order.samples_per_epoch * window:,} tokens; "
        f"to validate, {math.ceil(predicted / window / sequences):,}: {predicted:,} tokens"
    )


def _doubts(config: RunConfig, samples_per_epoch: int) -> Iterator[str]:
    """What a person would hardly mean, though it was published so."""
    if (steps := steps_in_all(config, samples_per_epoch, 0, 0.0)) is not None:
        yield from doubts_of(config.schedule, steps)
    if (share := config.schedule.final_share) > 1 and config.schedule.kind != "constant":
        yield f"the learning rate rises to {share:g} times what it warms up to, as --schedule.final-share says"
    if (
        config.window < config.model.context
        and POSITIONS[config.model.positions].params(config.model) > 0
        and config.start_from is None
    ):
        yield (
            f"places past {config.window} are never trained, as --train.context is; the model's context is "
            f"{config.model.context}"
        )
