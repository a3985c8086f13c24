"""How a run begins, and begins again.

In: a RunConfig, or the folder of a run.  Out: an assembled `Run`, handed to the loop, and how it ended.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import Progress, command, warn
from hornbook.base.errors import UserError
from hornbook.base.machine import (
    Machine,
    best_device,
    choose_machine,
    cores_to_use,
    fast_float_modes,
    peak_memory_bytes,
)
from hornbook.base.names import plain_name
from hornbook.base.process import keep_freed_memory, process_left_as_found
from hornbook.base.settings import flat
from hornbook.base.stored import stored
from hornbook.base.world import World, patience_seconds, world
from hornbook.report.dashboards import refuse_absent, shown_on
from hornbook.report.doctor import Doctor
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
from hornbook.train.config import STOPS, RunConfig, kept_from_rote, override
from hornbook.train.guard import NonFiniteGuard, memory_for_a_model
from hornbook.train.head_start import give_head_start
from hornbook.train.introduction import introduce
from hornbook.train.learner import Learner
from hornbook.train.metrics import Metrics
from hornbook.train.origin import Origin
from hornbook.train.proof import Proof
from hornbook.train.saving import Saver
from hornbook.train.schedule import Extension, planned_since
from hornbook.train.sizing import (
    first_micro_batch,
    fitted_to,
    is_to_be_compiled,
    is_to_checkpoint_activations,
    refuse_idle,
    refuse_without_room,
    slices_of_model,
)
from hornbook.train.timetable import Timetable

# By which torchrun names all processes that it begins, also those that take the place of one that failed.
LAUNCH, NAMELESS = "TORCHELASTIC_RUN_ID", "none"
MAY_CHANGE = {*STOPS, "patience", "dashboards", "device", "threads", "activation_checkpointing", "parallel"}


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
def fit(
    config: RunConfig, path: Path, progress: Progress | None = None, turned: Mapping[str, Any] | None = None
) -> Outcome:
    """Train a model from nothing, or from what another has learned, into a new run folder. `turned` are the knobs that
    were asked for beside the recipe, nested, for the record."""
    together, folder, progress = world(), RunFolder(path), progress or Progress()
    if together.by_first(lambda: was_begun_by_this_launch(folder)):
        return resume(path, None, progress)
    together.by_first(folder.refuse_taken)
    if not files.is_utf8(str(path)):
        raise UserError(f"{path}: not UTF-8, and libraries that write into it take nothing else; choose another --out")
    refuse_absent(config.train.dashboards)
    machine = machine_of(config, together)
    # A branch of the hub may be at another commit tomorrow.
    config = config.with_(data=together.by_first(lambda: pinned(config.data)))
    origin = together.host_by_host(lambda: Origin.asked_for(config))
    if origin is not None:
        origin.check(config)
    shards = together.host_by_host(
        lambda: open_or_prepare(config.data, config.tokenizer, config.shards, progress, config.text)
    )
    if origin is not None:
        origin.check_tokenizer(shards)
    config = fitted_to(shards, config)
    if doubt := too_little(shards):
        warn(doubt)
    run_id = together.from_first(uuid.uuid4().hex)
    record = Record(config.model_dump(), shards.folder, shards.fingerprint, run_id)
    record = record.with_(turned=sorted(flat(turned or {})))
    if origin is not None:
        record = record.with_(**{"from": origin.record()})
    if launch := os.environ.get(LAUNCH):
        record = record.with_(launch=launch)
    with contextlib.ExitStack() as stack:

        def take_place() -> None:
            files.make_folder(path)
            stack.enter_context(files.locked(path, seconds_for_the_lock(path)))
            folder.refuse_taken()  # another process may have been quicker
            clear_leftovers(folder)

        together.by_first(take_place)
        return _train(_assembled(config, folder, record, shards, machine, origin, progress), origin)


def was_begun_by_this_launch(folder: RunFolder) -> bool:
    """Whether torchrun, under the same id, began this run before, so that the same words mean to go on with it; from
    nothing, where it was ended before its first checkpoint."""
    launch = os.environ.get(LAUNCH)
    if launch == NAMELESS and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False  # of torchrun on one host every launch is called so
    if launch is None or not folder.has_record() or not folder.is_ours() or not folder.checkpoints():
        return False
    return bool(folder.record().more.get("launch") == launch)


def seconds_for_the_lock(path: Path) -> float:
    """A host that lost the others may take as long to notice, and holds the run's folder until then."""
    if LAUNCH not in os.environ or not files.is_locked(path):
        return 0.0
    warn(f"{path}: another process is at work in it; waiting until it ends, {patience_seconds():.0f} s at most")
    return patience_seconds() + 10


def machine_of(config: RunConfig, together: World) -> Machine:
    """Of several processes on a host, each has its own accelerator, or its share of the processor."""
    knobs = config.train
    if together.size == 1:
        return choose_machine(knobs.device, knobs.dtype, knobs.threads)
    device, threads = knobs.device, knobs.threads
    if (device or best_device()) == "cuda":
        device = f"cuda:{together.rank_on_host}"
    elif threads is None:
        threads = max(cores_to_use() // int(os.environ.get("LOCAL_WORLD_SIZE", together.size)), 1)
    machine = choose_machine(device, knobs.dtype, threads)
    dtype = together.by_first(lambda: machine.dtype)
    return machine if machine.dtype == dtype else choose_machine(device, dtype, threads)


@process_left_as_found()
def resume(path: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Outcome:
    """Go on with a run from its newest good checkpoint. `changes` may move where it stops."""
    together, folder, progress = world(), RunFolder(path), progress or Progress()
    if not folder.has_record():
        begin = f"; begin one: {command('train', '--out', path)}"
        raise UserError(f"{path}: no run to go on with (no {RECORD})" + (runs.did_you_mean(path) or begin))
    record, config = _recorded(folder)
    shards = together.host_by_host(lambda: _shards_of(record, config, folder, progress))
    if shards.fingerprint != record.fingerprint:
        raise UserError(f"{shards.folder}: not the data that this run began with; train on it into another --out")
    changes = dict(changes or {})
    train = changes.get("train", {})
    fixed = (set(changes) - {"train"}) | (set(train) - MAY_CHANGE if isinstance(train, Mapping) else set())
    if fixed:
        may = ", ".join(sorted(MAY_CHANGE))
        raise UserError(f"{min(fixed)}: a run keeps the settings that it began with, except --train. {may}")
    before, config = config, override(config, changes)
    refuse_absent(config.train.dashboards)
    machine = machine_of(config, together)
    with contextlib.ExitStack() as stack:

        def take_place() -> str:
            stack.enter_context(files.locked(path, seconds_for_the_lock(path)))
            clear_leftovers(folder)
            newest = newest_checkpoint(folder, record.run_id)
            refuse_other_settings(newest, config)
            return str(newest)

        checkpoint = Path(together.by_first(take_place))
        config = _bounded_as_before(config, before, saved_state(checkpoint).tokens / len(shards.split("train")))
        record = replace(record, config=config.model_dump(), shards=shards.folder)
        record = record.with_(turned=sorted({*record.more.get("turned", ()), *flat(changes)}))
        run = _assembled(config, folder, record, shards, machine, checkpoint, progress, before)
        return _train(run, checkpoint)


def _bounded_as_before(config: RunConfig, before: RunConfig, readings: float) -> RunConfig:
    """More minutes alone do not lift the bound on readings, unless the run has come to it already."""
    most = before.train.epochs
    if before.train.minutes is None or most is None or readings > most - 1:
        return config
    return kept_from_rote(config, before)


def begun(path: Path) -> RunConfig | None:
    """What a run that ended before its first checkpoint was to be."""
    folder = RunFolder(path)
    return _recorded(folder)[1] if folder.has_record() and not folder.checkpoints() else None


def free_folder(config: RunConfig, parent: Path = runs.USUAL) -> Path:
    """Where a run goes that was given no --out: named after its text, or its recipe."""
    own = config.recipe in ("own-text", "continued")
    name = name_of(Path(config.data)) if own else plain_name(config.recipe, "run")
    begun_before = (each for each in sorted(parent.glob(f"{name}*")) if was_begun_by_this_launch(RunFolder(each)))
    return next(begun_before, None) or runs.free_folder(name, parent)


def learner_at(state: TrainState, config: RunConfig, machine: Machine, world: World, order: SampleOrder) -> Learner:
    """One that computes as the run did when it was there; its weights are a matter of their own."""
    slices = slices_of_model(config, machine, world.size, world.size_of_host)
    before, ranks = state.checkpoints_activations, world.size
    checkpoints_activations = is_to_checkpoint_activations(config, machine, before, slices, ranks)
    learner = _kind_of_learner(slices)(
        config,
        machine,
        world,
        micro_batch=first_micro_batch(config, machine, checkpoints_activations, ranks, state.micro_batch, slices),
        compiled=is_to_be_compiled(config, machine, order.samples_per_epoch, state.compiled),
        checkpoints_activations=checkpoints_activations,
    )
    if state.step:
        learner.scaler.restore(state.scaler)
    return learner


def _kind_of_learner(slices: int | None) -> Callable[..., Learner]:
    if slices is None:
        return Learner
    from hornbook.train.sharded import ShardedLearner

    return partial(ShardedLearner, slices=slices)


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


def _shards_of(record: Record, config: RunConfig, folder: RunFolder, progress: Progress) -> Shards:
    try:
        return Shards.open(record.shards).checked(say=progress.note)
    except UserError as error:  # the cache was cleared, or is damaged; the same text gives the same tokens
        where = "standard input" if config.data == STANDARD_INPUT else "the text"
        progress.note(f"{error.mistakes[0].partition('; ')[0]}; looking for {where}")
        return _prepared_again(config, folder, progress)


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


def _train(run: loop.Run, begin: Path | Origin | None) -> Outcome:
    introduce(run, begin)
    dashboards = run.config.train.dashboards if run.world.is_first else ()
    with fast_float_modes(), shown_on(dashboards, run.folder, run.state.step):
        reason = loop.train(run)
    return Outcome(
        folder=run.folder.path,
        reason=reason,
        step=run.state.step,
        seconds=run.state.seconds,
        tokens_per_second=run.metrics.tokens_per_second(),
        mfu=run.metrics.mfu(),
        peak_memory_bytes=peak_memory_bytes(run.machine.device),
    )


def _assembled(
    config: RunConfig,
    folder: RunFolder,
    record: Record,
    shards: Shards,
    machine: Machine,
    begin: Path | Origin | None,
    progress: Progress,
    before: RunConfig | None = None,
) -> loop.Run:
    """From nothing, another model or a checkpoint; `before` is what it was to be, where it goes on."""
    together, goes_on = world(), isinstance(begin, Path)
    if machine.device == "cpu":
        keep_freed_memory()
    slices = slices_of_model(config, machine, together.size, together.size_of_host)
    refuse_without_room(config, machine, together, slices)
    refuse_idle(config, together.size)
    averages = config.train.average is not None
    together.by_first(lambda: check_room(folder, config.model.n_params(), config.train.keep_checkpoints, averages))
    tokens = shards.split("train")
    order = SampleOrder(config.order, config.seed, shards.fingerprint, len(tokens), config.window, config.sequences)
    state, proof = TrainState(), None
    if isinstance(begin, Path):
        state, differing = saved_state(begin), differences(begin, machine.facts())
        for each in differing:
            warn(f"{each}: the run goes on, but not bit for bit as it would have")
        if METRICS in state.logs and together.is_first:
            proof = Proof.of(folder.metrics, state.logs[METRICS], state.step, differing)
    with memory_for_a_model():
        learner = learner_at(state, config, machine, together, order)
        if isinstance(begin, Path):
            restore(begin, learner)
        elif begin is not None:
            begin.restore(learner, config)
        elif config.has_head_start:
            give_head_start(learner.model, tokens, config.seed, together)
    extension = planned_since(before or config, config, state, order.samples_per_epoch, Extension.of(record.more))

    def write_down() -> None:
        forget_models_after(folder, state.step)
        folder.write(record.with_(machine=machine.facts(), **extension.record()))

    together.by_first(write_down)
    flops = config.model.flops_per_token(config.window)
    metrics = Metrics(folder, progress, flops, machine.peak_flops, state.logs if goes_on else None, together.is_first)
    write_checkpoint = partial(save_checkpoint, folder, record.run_id, shards.tokenizer, machine.facts(), config)
    return loop.Run(
        config=config,
        folder=folder,
        run_id=record.run_id,
        machine=machine,
        world=together,
        shards=shards,
        loader=Loader(tokens, order, machine.torch_device),
        learner=learner,
        metrics=metrics,
        guard=NonFiniteGuard(state.not_finite_in_a_row, machine.dtype),
        progress=progress,
        state=state,
        timetable=Timetable(config, order.samples_per_epoch, len(shards.split("val")), machine.torch_device.type),
        extension=extension,
        proof=proof,
        saver=Saver(learner, write_checkpoint, state.step, together),
        doctor=Doctor(folder.path),
        saved_seconds=state.seconds,
    )
