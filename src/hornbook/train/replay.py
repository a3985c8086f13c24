"""Trained again, does a run come to the same?

In: a run with two checkpoints.  Out: whether from the one to the other each step has the loss that the log has, and at
the end every weight and moment the bits of that checkpoint; and if not, what differs. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hornbook.base import files
from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.base.machine import attention_backend, choose_machine, fast_float_modes
from hornbook.base.process import process_left_as_found
from hornbook.base.stored import stored
from hornbook.base.world import World
from hornbook.model.folder import load_model
from hornbook.runs.folder import RunFolder, step_of
from hornbook.runs.logs import read_log
from hornbook.shards.format import Shards
from hornbook.shards.order import Batch, Loader, SampleOrder
from hornbook.train.checkpoint import differences, good_checkpoints, restore, saved_state
from hornbook.train.config import RunConfig
from hornbook.train.distributed_checkpoint import read_moments
from hornbook.train.learner import Learner
from hornbook.train.proof import because_of, difference_of
from hornbook.train.start import learner_at


@dataclass(frozen=True)
class Replayed:
    """Steps that were taken again."""

    first: int
    last: int
    difference: str | None
    """The first, in a few words."""
    machine: tuple[str, ...]
    """What is another than it was."""

    def __str__(self) -> str:
        if self.difference is None:
            steps = f"steps {self.first} to {self.last}"
            return f"continues exactly: {steps}, their losses, and weights and moments after them"
        return f"does not continue exactly: {self.difference}; {because_of(self.machine)}"


@process_left_as_found()
def replay(path: Path, progress: Progress | None = None) -> Replayed:
    """Train again from the second newest good checkpoint to the newest one."""
    run, progress = RunFolder(path), progress or Progress()
    if not run.has_record():
        raise UserError(f"{path}: no run, so there is nothing to train again; name a run")
    if files.is_locked(path):
        raise UserError(f"{path}: another process is at work in it; replay it when that has ended")
    record = run.record()
    config = stored(RunConfig, record.config, run.record_file)
    checkpoints = good_checkpoints(run, record.run_id)
    if len(checkpoints) < 2:
        raise UserError(f"{path}: has fewer than two good checkpoints; keep more with --train.keep-checkpoints")
    last, first = checkpoints[:2]
    knobs = config.train
    machine = choose_machine(knobs.device, knobs.dtype, knobs.threads)
    shards = Shards.open(record.shards).checked(say=progress.note)
    tokens = shards.split("train")
    order = SampleOrder(config.order, config.seed, record.fingerprint, len(tokens), config.window, config.sequences)
    loader, state = Loader(tokens, order, machine.torch_device), saved_state(first)
    learner = learner_at(state, config, machine, World(), order)
    restore(first, learner)
    known = {each["step"]: each for each in read_log(run.metrics) if "loss" in each}
    difference = None
    with attention_backend(machine.device), fast_float_modes(), progress:
        learner.prepare()
        for step in range(state.step, step_of(last)):
            if (before := known.get(step + 1)) is None:
                raise UserError(f"{run.metrics}: has no line for step {step + 1}, with which to compare")

            def take(begin: int, count: int, sample: int = step * config.sequences) -> Batch:
                return loader.take(sample + begin, count)

            loss, length, *_ = learner.learn(take, step, before["lr_factor"])
            progress.update(f"step {step + 1} of {step_of(last)}")
            difference = difference_of(step + 1, before, float(loss), float(length))
            if difference is not None:
                break
    difference = difference or next(_unlike(learner, last), None)
    other = differences(first, machine.facts())
    if (at_once := saved_state(last).micro_batch) != state.micro_batch:
        other.append(f"memory ran out on the way: from {state.micro_batch} sequences at once to {at_once}")
    return Replayed(state.step + 1, step_of(last), difference, tuple(other))


def _unlike(learner: Learner, checkpoint: Path) -> Iterator[str]:
    """The tensors of which a checkpoint has another bit."""
    saved = {**load_model(checkpoint).state_dict(), **read_moments(checkpoint, lambda name: True)}
    for name, now in {**learner.kept_weights(), **learner.tensors()}.items():
        was, now = (each.cpu().contiguous().flatten().view(torch.uint8) for each in (saved[name], now))
        if not torch.equal(was, now):
            yield f"after step {step_of(checkpoint)}, {name} is another"
