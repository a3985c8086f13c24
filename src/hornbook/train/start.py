"""How a run begins, and begins again.

In: a RunConfig, or the folder of a run.  Out: an assembled `Run`, handed to the loop, and how it ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import Progress, command, warn
from hornbook.base.errors import UserError
from hornbook.base.machine import Machine, choose_machine, fast_float_modes, peak_memory_bytes
from hornbook.base.names import plain_name
from hornbook.base.process import keep_freed_memory, process_left_as_found
from hornbook.base.stored import stored
from hornbook.base.world import World
from hornbook.runs import folder as runs
from hornbook.runs.folder import METRICS, RECORD, Record, RunFolder, damage_of_model
from hornbook.shards.format import Shards
from hornbook.shards.order import Loader, SampleOrder
from hornbook.shards.prepare import open_or_prepare, too_little
from hornbook.text.datasets import pinned
from hornbook.text.readers import STANDARD_INPUT, NothingPipedInError, name_of
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train import loop
from hornbook.train.checkpoint import (
    TrainState,
    check_room,
    clear_leftovers,
    differences,
    forget_models_after,
    newest_checkpoint,
    refuse_other_settings,
    restore,
    save_checkpoint,
    saved_state,
)
from hornbook.train.config import STOPS, RunConfig, override
from hornbook.train.guard import NonFiniteGuard, memory_for_a_model
from hornbook.train.head_start import give_head_start
from hornbook.train.introduction import introduce
from hornbook.train.learner import Learner
from hornbook.train.metrics import Metrics
from hornbook.train.origin import Origin
from hornbook.train.pauses import Pauses
from hornbook.train.proof import Proof
from hornbook.train.saving import Saver
from hornbook.train.schedule import Extension, planned_since
from hornbook.train.sizing import (
    first_micro_batch,
    fitted_to,
    is_to_be_compiled,
    is_to_checkpoint_activations,
    refuse_without_room,
)

MAY_CHANGE = {*STOPS, "patience", "device", "threads", "activation_checkpointing"}


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    reason: str
    step: int
    seconds: float
    tokens_per_second: float
    mfu: float | None
    peak_memory_bytes: int

    @property
    def interrupted(self) -> bool:
        return self.reason == loop.INTERRUPTED


@process_left_as_found()
def fit(config: RunConfig, path: Path, progress: Progress | None = None) -> Outcome:
    """Train a model from nothing, or from what another has learned, into a new run folder."""
    folder, progress = RunFolder(path), progress or Progress()
    folder.refuse_taken()
    if not files.is_utf8(str(path)):
        raise UserError(f"{path}: not UTF-8, and libraries that write into it take nothing else; choose another --out")
    machine = choose_machine(config.train.device, config.train.dtype, config.train.threads)
    config = config.with_(data=pinned(config.data))  # a branch of the hub may be at another commit tomorrow
    origin = Origin.find(config.start_from).grown(config.grow) if config.start_from is not None else None
    if origin is not None:
        origin.check(config)
    shards = open_or_prepare(config.data, config.tokenizer, config.shards, progress, config.text)
    if origin is not None:
        origin.check_tokenizer(shards)
    config = fitted_to(shards, config)
    if doubt := too_little(shards):
        warn(doubt)
    record = Record(config.model_dump(), shards.folder, shards.fingerprint)
    if origin is not None:
        record = record.with_(**{"from": origin.record()})
    files.make_folder(path)
    with files.locked(path):
        folder.refuse_taken()  # another process may have been quicker
        clear_leftovers(folder)
        return _train(config, folder, record, shards, machine, origin, progress)


@process_left_as_found()
def resume(path: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Outcome:
    """Go on with a run from its newest good checkpoint. `changes` may move where it stops."""
    folder, progress = RunFolder(path), progress or Progress()
    if not folder.has_record():
        begin = f"; begin one: {command('train', '--out', path)}"
        raise UserError(f"{path}: no run to go on with (no {RECORD})" + (runs.did_you_mean(path) or begin))
    record, config = _recorded(folder)
    try:
        shards = Shards.open(record.shards).checked(say=progress.note)
    except UserError as error:  # the cache was cleared, or is damaged; the same text gives the same tokens
        where = "standard input" if config.data == STANDARD_INPUT else "the text"
        progress.note(f"{error.mistakes[0].partition('; ')[0]}; looking for {where}")
        shards = _prepared_again(config, folder, progress)
    if shards.fingerprint != record.fingerprint:
        raise UserError(f"{shards.folder}: not the data that this run began with; train on it into another --out")
    changes = changes or {}
    fixed = (set(changes) - {"train"}) | (set(changes.get("train", {})) - MAY_CHANGE)
    if fixed:
        may = ", ".join(sorted(MAY_CHANGE))
        raise UserError(f"{min(fixed)}: a run keeps the settings that it began with, except --train. {may}")
    before, config = config, override(config, changes)
    machine = choose_machine(config.train.device, config.train.dtype, config.train.threads)
    with files.locked(path):
        clear_leftovers(folder)
        checkpoint = newest_checkpoint(folder, record.run_id)
        refuse_other_settings(checkpoint, config)
        record = replace(record, config=config.model_dump(), shards=shards.folder)
        return _train(config, folder, record, shards, machine, checkpoint, progress, before)


def begun(path: Path) -> RunConfig | None:
    """What a run that ended before its first checkpoint was to be."""
    folder = RunFolder(path)
    return _recorded(folder)[1] if folder.has_record() and not folder.checkpoints() else None


def free_folder(config: RunConfig, parent: Path = runs.USUAL) -> Path:
    """Where a run goes that was given no --out: named after its text, or its recipe."""
    own = config.recipe in ("own-text", "continued")
    return runs.free_folder(name_of(Path(config.data)) if own else plain_name(config.recipe, "run"), parent)


def learner_at(state: TrainState, config: RunConfig, machine: Machine, world: World, order: SampleOrder) -> Learner:
    """One that computes as the run did when it was there; its weights are a matter of their own."""
    checkpoints_activations = is_to_checkpoint_activations(config, machine, state.checkpoints_activations)
    learner = Learner(
        config,
        machine,
        world,
        micro_batch=state.micro_batch or first_micro_batch(config, machine, checkpoints_activations),
        compiled=is_to_be_compiled(config, machine, order.samples_per_epoch, state.compiled),
        checkpoints_activations=checkpoints_activations,
    )
    if state.step:
        learner.scaler.restore(state.scaler)
    return learner


def _recorded(folder: RunFolder) -> tuple[Record, RunConfig]:
    record = folder.record()
    if record.edited:
        warn(f"{folder.record_file}: was edited since it was written; taken as it is now")
    config = stored(RunConfig, record.config, folder.record_file)
    try:
        Extension.of(record.more)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder.record_file}: damaged; train again into another --out") from None
    return record, config


def _prepared_again(config: RunConfig, folder: RunFolder, progress: Progress) -> Shards:
    try:
        return open_or_prepare(config.data, _tokenizer_at_hand(config, folder), config.shards, progress, config.text)
    except NothingPipedInError:
        raise UserError(
            f"{folder}: its text came by standard input and is gone from the cache; pipe it in again: "
            "cat TEXT | hornbook resume RUN (hornbook prepare - --out FOLDER keeps it)"
        ) from None


def _tokenizer_at_hand(config: RunConfig, folder: RunFolder) -> TokenizerConfig:
    """What a run was given, it has in each of its checkpoints, whatever became of the file."""
    if config.tokenizer.kind != "file":
        return config.tokenizer
    return config.tokenizer.with_(file=str(folder.first_good(folder.checkpoints(), damage_of_model)))


def _train(
    config: RunConfig,
    folder: RunFolder,
    record: Record,
    shards: Shards,
    machine: Machine,
    begin: Path | Origin | None,
    progress: Progress,
    before: RunConfig | None = None,
) -> Outcome:
    """Assemble the run, from nothing, another model or a checkpoint, and let the loop have it."""
    world, goes_on = World(), isinstance(begin, Path)
    if machine.device == "cpu":
        keep_freed_memory()
    refuse_without_room(config, machine)
    check_room(folder, config.model.n_params(), config.train.keep_checkpoints, config.train.average is not None)
    tokens = shards.split("train")
    order = SampleOrder(config.order, config.seed, shards.fingerprint, len(tokens), config.window, config.sequences)
    state, proof = TrainState(), None
    if isinstance(begin, Path):
        state, differing = saved_state(begin), differences(begin, machine.facts())
        for each in differing:
            warn(f"{each}: the run goes on, but not bit for bit as it would have")
        proof = Proof.of(folder.metrics, state.logs[METRICS], state.step, differing) if METRICS in state.logs else None
    with memory_for_a_model():
        learner = learner_at(state, config, machine, world, order)
        if isinstance(begin, Path):
            restore(begin, learner)
        elif begin is not None:
            begin.restore(learner, config)
        elif config.has_head_start:
            give_head_start(learner.model, tokens, config.seed)
    forget_models_after(folder, state.step)
    planned = planned_since(before or config, config, state, order.samples_per_epoch, Extension.of(record.more))
    folder.write(record.with_(machine=machine.facts(), **planned.record()))
    flops = config.model.flops_per_token(config.window)
    write_checkpoint = partial(save_checkpoint, folder, record.run_id, shards.tokenizer, machine.facts(), config)
    run = loop.Run(
        config=config,
        folder=folder,
        run_id=record.run_id,
        machine=machine,
        world=world,
        shards=shards,
        loader=Loader(tokens, order, machine.torch_device),
        learner=learner,
        metrics=Metrics(folder, progress, flops, machine.peak_flops, state.logs if goes_on else None),
        guard=NonFiniteGuard(state.not_finite_in_a_row, machine.dtype),
        progress=progress,
        state=state,
        pauses=Pauses(config, order.samples_per_epoch, len(shards.split("val")), machine.torch_device.type),
        planned=planned,
        proof=proof,
        saver=Saver(learner, write_checkpoint, state.step),
        saved_seconds=state.seconds,
    )
    introduce(run, begin)
    with fast_float_modes():
        reason = loop.train(run)
    return Outcome(
        folder=folder.path,
        reason=reason,
        step=state.step,
        seconds=state.seconds,
        tokens_per_second=run.metrics.tokens_per_second(),
        mfu=run.metrics.mfu(),
        peak_memory_bytes=peak_memory_bytes(machine.device),
    )
