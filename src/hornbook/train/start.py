"""How a run begins, and begins again.

In: a RunConfig, or the folder of a run.  Out: an assembled `Run`, handed to the loop, and how it ended.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hornbook.base import files, ours
from hornbook.base.console import Progress, command, count, say, warn
from hornbook.base.errors import UserError
from hornbook.base.machine import Machine, choose_machine, fast_float_modes, keep_freed_memory, peak_memory_bytes
from hornbook.base.names import plain_name
from hornbook.base.settings import build
from hornbook.model.compile import Trunk, compiled_or_eager
from hornbook.model.folder import CHECKPOINTS, RUN, SNAPSHOTS, checkpoint_folders, first_good, is_run, load_weights
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.shards.format import Shards
from hornbook.shards.loader import Loader
from hornbook.shards.order import SampleOrder
from hornbook.shards.prepare import changed_in_reading, open_or_prepare, too_little
from hornbook.text.readers import STANDARD_INPUT, NothingPipedInError, name_of
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train import loop
from hornbook.train.checkpoint import (
    TrainState,
    check_room,
    clear_leftovers,
    forget_snapshots_after,
    newest_checkpoint,
    refuse_other_settings,
    restore,
)
from hornbook.train.config import STOPS, RunConfig, override
from hornbook.train.guard import NonFiniteGuard, first_micro_batch, smaller_micro_batch
from hornbook.train.memory import training_memory
from hornbook.train.metrics import METRICS, SAMPLES, Metrics
from hornbook.train.optim import Optimizer
from hornbook.train.origin import Origin
from hornbook.train.precision import WorkingCopy
from hornbook.train.schedule import Extension, planned_since

# Weight, gradient, and what Muon remembers of it.
LEAST_BYTES_OF_A_PARAMETER = 12
MAY_CHANGE = {*STOPS, "device", "threads"}


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


def fit(config: RunConfig, folder: Path, progress: Progress | None = None) -> Outcome:
    """Train a model from nothing, or from what another has learned, into a new run folder."""
    _refuse_taken(folder)
    if not files.is_utf8(str(folder)):
        raise UserError(
            f"{folder}: not UTF-8, and libraries that write into it take nothing else; choose another --out"
        )
    progress = progress or Progress()
    machine = choose_machine(config.train.device, config.train.dtype, config.train.threads)
    origin = Origin.find(config.start_from) if config.start_from is not None else None
    if origin is not None:
        origin.check(config)
    shards = open_or_prepare(config.data, config.tokenizer, config.shards, progress, config.text)
    if origin is not None:
        origin.check_tokenizer(shards)
    config = fitted_to(shards, config)
    if doubt := too_little(shards):
        warn(doubt)
    record = {
        "run_id": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": config.model_dump(),
        "data": {"folder": str(shards.folder.resolve()), "fingerprint": shards.fingerprint},
    }
    if origin is not None:
        record["from"] = origin.record()
    files.make_folder(folder)
    with files.locked(folder):
        _refuse_taken(folder)  # another process may have been quicker
        clear_leftovers(folder)
        return _train(config, folder, record, shards, machine, origin, progress)


def resume(folder: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Outcome:
    """Go on with a run from its newest good checkpoint. `changes` may move where it stops."""
    if not (folder / RUN).is_file():
        raise UserError(f"{folder}: no run to go on with (no {RUN}); begin one: {command('train', '--out', folder)}")
    progress = progress or Progress()
    record, config = _recorded(folder)
    run_id, fingerprint = str(record["run_id"]), record["data"]["fingerprint"]
    try:
        shards = Shards.open(Path(record["data"]["folder"])).checked(say=progress.note)
    except UserError as error:  # the cache was cleared, or is damaged; the same text gives the same tokens
        where = "standard input" if config.data == STANDARD_INPUT else "the text"
        progress.note(f"{error.mistakes[0].partition('; ')[0]}; looking for {where}")
        shards = _prepared_again(config, folder, progress)
        record["data"]["folder"] = str(shards.folder.resolve())
    if shards.fingerprint != fingerprint:
        raise UserError(f"{shards.folder}: not the data that this run began with; train on it into another --out")
    changes = changes or {}
    fixed = (set(changes) - {"train"}) | (set(changes.get("train", {})) - MAY_CHANGE)
    if fixed:
        may = ", ".join(sorted(MAY_CHANGE))
        raise UserError(f"{min(fixed)}: a run keeps the settings that it began with, except --train. {may}")
    before, config = config, override(config, changes)
    machine = choose_machine(config.train.device, config.train.dtype, config.train.threads)
    with files.locked(folder):
        clear_leftovers(folder)
        checkpoint = newest_checkpoint(folder, run_id)
        refuse_other_settings(checkpoint, config)
        record["config"] = config.model_dump()
        return _train(config, folder, record, shards, machine, checkpoint, progress, before)


def _prepared_again(config: RunConfig, folder: Path, progress: Progress) -> Shards:
    try:
        return open_or_prepare(config.data, _tokenizer_at_hand(config, folder), config.shards, progress, config.text)
    except NothingPipedInError:
        raise UserError(
            f"{folder}: its text came by standard input and is gone from the cache; pipe it in again: "
            "cat TEXT | hornbook resume RUN (hornbook prepare - --out FOLDER keeps it)"
        ) from None


def begun(folder: Path) -> RunConfig | None:
    """What a run that ended before its first checkpoint was to be."""
    if not (folder / RUN).is_file() or checkpoint_folders(folder):
        return None
    return _recorded(folder)[1]


def _recorded(folder: Path) -> tuple[dict[str, Any], RunConfig]:
    record = files.read_json(folder / RUN)
    if ours.is_edited(record):
        warn(f"{folder / RUN}: was edited since it was written; taken as it is now")
    try:
        _ = record["run_id"], Path(record["data"]["folder"]), record["data"]["fingerprint"]
        _ = Extension.of(record)
        return record, build(RunConfig, record["config"])
    except UserError as error:
        raise UserError(*(f"{folder / RUN}: {mistake}" for mistake in error.mistakes)) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{folder / RUN}: damaged; train again into another --out") from None


def _tokenizer_at_hand(config: RunConfig, folder: Path) -> TokenizerConfig:
    """What a run was given, it has in each of its checkpoints, whatever became of the file."""
    if config.tokenizer.kind != "file":
        return config.tokenizer
    return config.tokenizer.with_(file=str(first_good(folder, checkpoint_folders(folder))))


def _refuse_taken(folder: Path) -> None:
    if checkpoint_folders(folder):
        raise UserError(
            f"{folder}: holds a run already; choose another --out, or go on with it: {command('resume', folder)}"
        )
    if (name := _stranger(folder)) is not None:
        raise UserError(f"{folder / name}: not known to be written by Hornbook; choose another --out, or move it away")


def _stranger(folder: Path) -> str | None:
    """What stands where a new run would write, and is of no run that ended before its first checkpoint."""
    known = is_run(folder)
    for name in (RUN, METRICS, SAMPLES):
        path = folder / name
        if path.is_symlink() or (path.exists() and not known):
            return name
    if known:
        return None
    return next((name for name in (CHECKPOINTS, SNAPSHOTS) if ours.in_the_way(folder / name) is not None), None)


def free_folder(config: RunConfig, parent: Path = Path("runs")) -> Path:
    """Where a run goes that was given no --out: runs/NAME, or runs/NAME-2 and so on where there is a run already."""
    own = config.recipe in ("own-text", "continued")
    name = name_of(Path(config.data)) if own else plain_name(config.recipe, "run")
    folder, number = parent / name, 1
    while checkpoint_folders(folder) or _stranger(folder):
        taken, number = folder, number + 1
        folder = parent / f"{name}-{number}"
    if number > 1:
        known = checkpoint_folders(taken)
        mend = f"to go on with it: {command('resume', taken)}" if known else "none of Hornbook's"
        say(f"{taken} is there already ({mend}); this is a new run, {folder}")
    return folder


def fitted_to(shards: Shards, config: RunConfig) -> RunConfig:
    """The config with the vocabulary of its data, or a UserError where the two do not go together."""
    context, there = config.window, len(shards.split("train"))
    if there <= context:
        smaller, knob = max(there // 2, 2), "model" if config.start_from is None else "train"
        raise UserError(
            f"{config.data}: only {there} tokens to train on, a context of {context} needs more than that; "
            f"take a longer text, or --{knob}.context {smaller}"
        )
    if shards.tokenizer.vocab_size != shards.vocab_size:
        raise UserError(f"{shards.folder}: its tokenizer.json and manifest.json differ; prepare the text again")
    if len(shards.split("val")) < 2:
        raise UserError(
            f"{config.data}: no text left for validation; take a longer text, or raise --shards.val-fraction"
        )
    asked = config.model.vocab_size
    if asked is not None and not config.model.fits_vocabulary(shards.vocab_size):
        raise UserError(
            f"--model.vocab-size: {asked}, but the tokenizer has {shards.vocab_size} entries; "
            "leave it out, or set --tokenizer.vocab-size"
        )
    return override(config, {"model": {"vocab_size": asked or shards.vocab_size}})


def _train(
    config: RunConfig,
    folder: Path,
    record: dict[str, Any],
    shards: Shards,
    machine: Machine,
    begin: Path | Origin | None,
    progress: Progress,
    before: RunConfig | None = None,
) -> Outcome:
    """Assemble the run, from nothing, another model or a checkpoint, and let the loop have it."""
    device, tokens = machine.torch_device, shards.split("train")
    if machine.device == "cpu":
        keep_freed_memory()
    _refuse_without_room(config, machine)
    torch.manual_seed(config.seed)
    model = untrained(config.model).to(device).train()
    optimizer = Optimizer(model, config.optim, machine.torch_dtype)
    check_room(folder, model, config.train.keep_checkpoints)
    state = TrainState(micro_batch=_micro_batch(config, model, machine))
    if isinstance(begin, Path):
        state = restore(begin, model, optimizer, machine.facts())
    elif begin is not None:
        load_weights(model, begin.folder)
    forget_snapshots_after(folder, state.step)
    order = SampleOrder(config.order, config.seed, shards.fingerprint, len(tokens), config.window, config.sequences)
    planned = planned_since(before or config, config, state, order.samples_per_epoch, Extension.of(record))
    record |= {"machine": machine.facts()} | planned.record()
    files.write_json(folder / RUN, ours.with_own_hash(record))
    flops = config.model.flops_per_token(config.window)
    working = WorkingCopy(model, machine.torch_dtype)
    run = loop.Run(
        config=config,
        folder=folder,
        run_id=record["run_id"],
        machine=machine,
        shards=shards,
        order=order,
        loader=Loader(tokens, order, device),
        model=model,
        working=working,
        trunk=working.model,
        make_trunk=_make_trunk,
        optimizer=optimizer,
        metrics=Metrics(folder, progress, flops, machine.peak_flops, state.logs if isinstance(begin, Path) else None),
        guard=NonFiniteGuard(state.not_finite_in_a_row),
        progress=progress,
        state=state,
        planned=planned,
        saved_step=state.step,
        saved_seconds=state.seconds,
    )
    _introduce(run, begin)
    with fast_float_modes():
        reason = loop.train(run)
    return Outcome(
        folder=folder,
        reason=reason,
        step=state.step,
        seconds=state.seconds,
        tokens_per_second=run.metrics.tokens_per_second(),
        mfu=run.metrics.mfu(),
        peak_memory_bytes=peak_memory_bytes(machine.device),
    )


def _refuse_without_room(config: RunConfig, machine: Machine) -> None:
    """Said at once, rather than after minutes of building what cannot be held."""
    needed = LEAST_BYTES_OF_A_PARAMETER * config.model.n_params()
    if needed > machine.memory_bytes:
        raise UserError(
            f"--model.n-embd: {count(float(config.model.n_params()))} parameters need {needed >> 30:,} GB to train, "
            f"{machine.name} has {machine.memory_bytes >> 30:,}; lower it, or --model.n-layer"
        )


def _micro_batch(config: RunConfig, model: GPT, machine: Machine) -> int:
    """What the user says, or what should fit; where it does not, the loop halves it."""
    if config.train.micro_batch is not None:
        return min(config.train.micro_batch, config.sequences)
    device, room = machine.torch_device, 0.8 * machine.memory_bytes

    def fits(at_once: int) -> bool:
        return training_memory(config, model, at_once, machine.torch_dtype, device.type).bytes <= room

    return first_micro_batch(config.sequences, config.window, device, fits)


def _make_trunk(run: loop.Run) -> Trunk:
    wanted = run.config.train.compile
    if wanted is None:  # a resumed run keeps to what it did, which is part of being exact
        pays = _compiling_pays(run) if run.state.compiled is None else run.state.compiled
        wanted = run.machine.can_compile and pays
    run.state.compiled = wanted
    if not wanted:
        return run.working.model
    while True:
        try:
            return compiled_or_eager(run.working.model, (run.state.micro_batch, run.config.window))
        except torch.OutOfMemoryError:
            pass  # the error holds on to what was allocated, so go on only when it is gone
        run.state.micro_batch = smaller_micro_batch(run.state.micro_batch, run.machine.torch_device)


def _compiling_pays(run: loop.Run) -> bool:
    """Compiling costs about a minute; a run must be long enough to win it back."""
    knobs = run.config.train
    if knobs.minutes is not None and knobs.minutes < 10:
        return False
    ends = [run.order.samples_per_epoch * knobs.epochs * run.config.window] if knobs.epochs else []
    ends += [knobs.steps * knobs.batch_tokens] if knobs.steps else []
    ends += [knobs.tokens] if knobs.tokens else []
    if not ends:
        return True
    seconds = min(ends) * run.config.model.flops_per_token() / (run.machine.peak_flops or 5e11) / 0.4
    return seconds > 600


def _introduce(run: loop.Run, begin: Path | Origin | None) -> None:
    config, model, machine, shards = run.config, run.config.model, run.machine, run.shards
    train, val = shards.split_facts("train"), shards.split_facts("val")
    threads = f", {machine.threads} threads" if machine.device == "cpu" else ""
    lines = [
        f"data      {shards.manifest['name']}: {count(train['tokens'])} tokens to train on, "
        f"{count(val['tokens'])} to validate, {shards.manifest['tokenizer']} vocabulary of {shards.vocab_size:,}",
        f"model     {count(model.n_params())} parameters: {model.n_layer} layers, {model.n_head} heads, "
        f"width {model.n_embd}, context {model.context}",
        f"training  {config.sequences * config.window:,} tokens a step ({config.sequences} x {config.window}), "
        f"on {machine.name}, {machine.dtype}{threads}",
        f"run       {run.folder} (Ctrl-C stops and saves)",
    ]
    lines[1:1] = (f"          {each}" for each in changed_in_reading(shards.manifest))
    if isinstance(begin, Path):
        lines.append(f"going on from {begin}, step {run.state.step}")
        if run.planned.step == run.state.step:
            lines.append(run.planned.told(config.schedule))
    elif begin is not None:
        lines.append(f"weights   those of {begin.folder}")
    for line in lines:
        run.progress.note(line)
    for line in _doubts(config):
        warn(line)


def _doubts(config: RunConfig) -> Iterator[str]:
    """What a person would hardly mean, though it was published so."""
    if (share := config.schedule.final_share) > 1 and config.schedule.kind != "constant":
        yield f"the learning rate rises to {share:g} times what it warms up to, as --schedule.final-share says"
    if config.window < config.model.context and config.model.positions == "learned" and config.start_from is None:
        yield (
            f"places past {config.window} are never trained, as --train.context is; the model's context is "
            f"{config.model.context}"
        )
