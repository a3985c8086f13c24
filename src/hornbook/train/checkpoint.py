"""A run's state on disk, whole or absent.

In: model, optimizer and the loop's own state after a step.  Out: `checkpoints/step-00001000/`, a model folder with
`optimizer.safetensors`, `state.json` and a MANIFEST.json over all of it. Where weights are averaged, the average is the
model, and those that learn are with the optimizer's. Restoring takes the newest one that is as it was written. There
are no random states in it: what is random in a step follows from the run's seed and the step's number. Of some steps
the weights alone are kept for good, in `snapshots/`, for looking back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hornbook.base import files
from hornbook.base.console import count, warn
from hornbook.base.errors import MachineError, UserError
from hornbook.base.world import Meeting
from hornbook.model.folder import describe_model, load_config, load_weights, save_weights
from hornbook.runs.folder import BEST, CHECKPOINTS, OPTIMIZER, SNAPSHOTS, STATE, RunFolder, step_of, strangeness
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.config import RunConfig, learned_by
from hornbook.train.distributed_checkpoint import read_moments, write_in_parts
from hornbook.train.learner import Learner

SETTINGS = "settings"
# What must be equal for a resumed run to be the same bit for bit.
SAME_FOR_EXACTNESS = ("device", "dtype", "name", "threads", "torch")
# Weights in fp32, and with two moments.
WEIGHT_BYTES_OF_A_PARAMETER = 4
CHECKPOINT_BYTES_OF_A_PARAMETER = 12
# Beside them the average, where weights are averaged.
AVERAGE_BYTES_OF_A_PARAMETER = 4
# Half precision with the longer fraction: a snapshot is to speak as the model did, at half the space, and weights that
# do not fit its range belong to no model that speaks.
SNAPSHOT_DTYPE = torch.float16
# From here on every second snapshot is left out, so that all of them take less than the checkpoints do.
LARGE_MODEL = 100_000_000


@dataclass
class TrainState:
    """Where a run is. The next sample's number is all there is to know about its place in the data."""

    step: int = 0
    sample: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro_batch: int = 0
    compiled: bool | None = None
    checkpoints_activations: bool | None = None
    sharded: bool = False
    """Whether no process had the whole model; the next may have it."""
    not_finite_in_a_row: int = 0
    scaler: dict[str, float] | None = None
    """Of the loss, where it is scaled."""
    val_loss: float | None = None
    evaluated_at: int = 0
    eval_windows: int | None = None
    """That an evaluation sees, once it is known; 0: all."""
    best_val_loss: float | None = None
    best_step: int = 0
    not_better_in_a_row: int = 0
    """Evaluations since the best one."""
    unseen_since: float | None = None
    """The share of the run before this step, where evaluations and samples after it are still to come: they failed."""
    reached_loss: float | None = None
    ended: str = ""
    """How, in the last checkpoint of a run that was not killed: in a few words of the loop's, or "failed"."""
    logs: dict[str, int] = field(default_factory=dict)

    def record_evaluation(self, loss: float) -> None:
        self.val_loss, self.evaluated_at = loss, self.step
        if math.isfinite(loss) and (self.best_val_loss is None or loss < self.best_val_loss):
            self.best_val_loss, self.best_step, self.not_better_in_a_row = loss, self.step, 0
        else:
            self.not_better_in_a_row += 1


@dataclass(frozen=True)
class Best:
    """What is to be come back to of the best evaluation: nobody trains on from there, so without moments."""

    step: int
    val_loss: float | None
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Learned:
    """What training changes, and the best of what it was, where that is not on the disk yet."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    best: Best | None = None
    meeting: Meeting | None = None
    """Where it is but a part, of all processes that save theirs."""

    @classmethod
    def of(cls, learner: Learner, meeting: Meeting | None = None) -> Learned:
        if meeting is not None:
            return cls(learner.own_weights(), learner.own_tensors(), meeting=meeting)
        return cls(learner.kept_weights(), learner.tensors())

    def copied(self) -> Learned:
        return replace(self, weights=copied(self.weights), moments=copied(self.moments))


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As they are at this moment, in main memory; from a GPU into pinned memory, which it fills many times as fast.
    Names of the same tensor, as of tied weights, stay so."""
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for each in tensors.values():
        if (place := (each.data_ptr(), each.shape)) not in copies:
            room = torch.empty(each.shape, dtype=each.dtype, pin_memory=each.is_cuda)
            copies[place] = room.copy_(each, non_blocking=each.is_cuda)
    for device in {each.device for each in tensors.values() if each.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return {name: copies[each.data_ptr(), each.shape] for name, each in tensors.items()}


def save_checkpoint(
    run: RunFolder,
    run_id: str,
    tokenizer: Tokenizer,
    machine: dict[str, Any],
    config: RunConfig,
    learned: Learned,
    state: TrainState,
) -> None:
    """Write the checkpoint of this step, then let go of those that are neither newest nor best. The best weights, where
    they are of another step, come first: no state on the disk speaks of a best model that is not there."""
    keep = config.train.keep_checkpoints
    if (best := learned.best) is not None:
        notes = {"run_id": run_id, "step": best.step, "val_loss": best.val_loss}
        with files.staged_folder(run.best_model(best.step), notes, aside=True) as staging:
            save_weights(config.model, best.weights, tokenizer, staging)
    evaluated = state.val_loss if state.evaluated_at == state.step else None
    notes = {"run_id": run_id, "step": state.step, "val_loss": evaluated}
    path, told = run.checkpoint(state.step), {**asdict(state), "machine": machine, SETTINGS: learned_by(config)}

    def describe(staging: Path) -> None:
        describe_model(config.model, tokenizer, staging, torch.float32)
        files.write_json(staging / STATE, told)

    if learned.meeting is not None:
        write_in_parts(learned.meeting, path, notes, config.model, learned.weights, learned.moments, describe)
        if not learned.meeting.is_first:
            return
    else:
        with files.staged_folder(path, notes, aside=True) as staging:
            save_weights(config.model, learned.weights, tokenizer, staging)
            tensors = {name: tensor.contiguous() for name, tensor in learned.moments.items()}
            safetensors.torch.save_file(tensors, staging / OPTIMIZER)
            files.write_json(staging / STATE, told)
    # One of a later step was found damaged, or it would have been resumed from: it takes nobody's place.
    for old in [each for each in run.checkpoints() if step_of(each) <= state.step][keep:]:
        if step_of(old) != state.best_step:
            files.remove_sealed(old)
    for old in run.best_models():
        if step_of(old) != state.best_step:
            files.remove_sealed(old)


def has_snapshot(step: int, parameters: int) -> bool:
    """Steps 1, 2, 4, 8 and so on; of a large model 1, 4, 16. By the step alone, so that a run that was killed, or does
    not know its end, has the same ones."""
    power = step.bit_length() - 1
    return step == 1 << power and (parameters < LARGE_MODEL or power % 2 == 0)


def save_snapshot(
    run: RunFolder,
    run_id: str,
    config: RunConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    state: TrainState,
) -> None:
    """Keep the weights of this step. Nothing needs them to go on, so a disk without room for them, and for the
    checkpoints that are still to come, stops nothing."""
    folder = run.snapshot(state.step)
    parameters = config.model.n_params()
    still_to_come = max(config.train.keep_checkpoints + 2 - len(run.checkpoints()), 1)
    needed = (SNAPSHOT_DTYPE.itemsize + CHECKPOINT_BYTES_OF_A_PARAMETER * still_to_come) * parameters
    if files.free_bytes(run.path) < needed:
        warn(f"{folder}: left out, to keep room on the disk for checkpoints")
        return
    try:
        with files.staged_folder(folder, {"run_id": run_id, "step": state.step}, aside=True) as staging:
            save_weights(config.model, weights, tokenizer, staging, SNAPSHOT_DTYPE)
    except MachineError as error:
        warn(f"{folder}: left out ({error.__cause__}); training goes on")


def clear_leftovers(run: RunFolder) -> None:
    """Delete what a crash left half done."""
    for folder in (run.path, run.path / CHECKPOINTS, run.path / BEST, run.path / SNAPSHOTS):
        files.remove_leftovers(folder)


def forget_models_after(run: RunFolder, step: int) -> None:
    """Snapshots, and a best model, of steps that are still to be taken, or taken again, perhaps by another run under
    this name."""
    for folder in [*run.snapshots(), *run.best_models()]:
        if step_of(folder) > step:
            files.remove_sealed(folder)


def newest_checkpoint(run: RunFolder, run_id: str) -> Path:
    """The newest checkpoint that is whole and this run's own; each newer one that is not is named in one line."""
    return run.first_good(run.checkpoints(), lambda each: files.damage(each) or strangeness(each, run_id))


def good_checkpoints(run: RunFolder, run_id: str) -> list[Path]:
    """All of these, newest first."""
    return [each for each in run.checkpoints() if not (files.damage(each) or strangeness(each, run_id))]


def refuse_other_settings(checkpoint: Path, config: RunConfig) -> None:
    """Somebody may have edited run.json; what a run learns by is in its checkpoints too, save in old ones."""
    saved, now = files.read_json(checkpoint / STATE).get(SETTINGS, {}), learned_by(config)
    for name in (each for each in now if each in saved and saved[each] != now[each]):
        raise UserError(
            f"{checkpoint}: made with {name} {saved[name]}, but run.json says {now[name]}; "
            "put run.json back as it was, or train anew"
        )


def restore(checkpoint: Path, learner: Learner) -> None:
    """Put a checkpoint's weights and moments in place."""
    saved, model = load_config(checkpoint), learner.model
    if saved != model.config:
        name = next(name for name in type(saved).model_fields if getattr(saved, name) != getattr(model.config, name))
        raise UserError(
            f"{checkpoint}: made with model.{name} {getattr(saved, name)}, but run.json says "
            f"{getattr(model.config, name)}; put run.json back as it was, or train anew"
        )
    load_weights(model, checkpoint)
    try:
        learner.restore(read_moments(checkpoint, lambda name: not learner.is_of_another(name)))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{checkpoint / OPTIMIZER}: of another optimizer ({error}); put run.json back as it was"
        ) from None


def saved_state(checkpoint: Path) -> TrainState:
    """Where a run was."""
    values = files.read_json(checkpoint / STATE)
    known = {each.name for each in fields(TrainState)} - {"ended"}
    return TrainState(**{name: value for name, value in values.items() if name in known})


def differences(checkpoint: Path, machine: dict[str, Any]) -> list[str]:
    """The things by which this machine computes otherwise than the one before."""
    before = files.read_json(checkpoint / STATE)["machine"]
    named = [(name, before.get(name), machine.get(name)) for name in SAME_FOR_EXACTNESS]
    return [f"{name} was {was}, now it is {now}" for name, was, now in named if was != now]


def check_room(run: RunFolder, parameters: int, keep: int, averaged: bool) -> None:
    """Tell before the first step that the checkpoints will not fit, rather than after an hour."""
    # The best one, those kept, and the one being written, with which comes a better one.
    of_a_parameter = CHECKPOINT_BYTES_OF_A_PARAMETER + AVERAGE_BYTES_OF_A_PARAMETER * averaged
    needed = (of_a_parameter * (keep + 2) + WEIGHT_BYTES_OF_A_PARAMETER) * parameters
    free = files.free_bytes(run.path)
    if free < needed:
        raise MachineError(
            f"{run}: its checkpoints need {count(float(needed))} bytes, {count(float(free))} are free; "
            "make room, choose another --out, or keep fewer with --train.keep-checkpoints 1"
        )
