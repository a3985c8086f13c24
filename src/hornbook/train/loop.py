"""The training loop.

In: a `Run`, assembled in start.py.  Out: changed weights, and in the run's folder metrics, samples, checkpoints and
snapshots.
A step reads `sequences` windows of `context` tokens and changes the weights once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hornbook.base.console import Progress, warn
from hornbook.base.machine import Machine, attention_backend, free_cache, is_out_of_memory, memory_in_use
from hornbook.base.world import World
from hornbook.infer.decode import generate
from hornbook.infer.score import Score, score
from hornbook.model.gpt import GPT
from hornbook.report.doctor import Doctor
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards
from hornbook.shards.order import Batch, Loader
from hornbook.train.checkpoint import TrainState, save_snapshot
from hornbook.train.config import RunConfig
from hornbook.train.guard import NonFiniteGuard, StopSignals
from hornbook.train.layers import layer_sizes
from hornbook.train.learner import Learner
from hornbook.train.metrics import MEMORY_EVERY_STEPS, Metrics, StepReading, passed
from hornbook.train.optimizers import learning_rates
from hornbook.train.pauses import Pauses
from hornbook.train.proof import Proof
from hornbook.train.saving import Saver
from hornbook.train.schedule import WHOLE, Extension, lr_factor, share_done

INTERRUPTED, FAILED = "interrupted", "failed"


@dataclass
class Pause:
    """A step is over, and what is looked at after it is not: should that fail, the run goes on from here."""

    before: float
    """The share of the run before the step."""
    state: TrainState
    logs: dict[str, int] | None = None
    """Their lengths with the line of the step, once it is written."""


@dataclass
class Run:
    """What the loop works with."""

    config: RunConfig
    folder: RunFolder
    run_id: str
    machine: Machine
    world: World
    shards: Shards
    loader: Loader
    learner: Learner
    metrics: Metrics
    guard: NonFiniteGuard
    progress: Progress
    state: TrainState
    pauses: Pauses
    saver: Saver
    doctor: Doctor
    proof: Proof | None = None
    began: float = 0.0  # when the run's clock would have been started, had the run never been interrupted
    planned: Extension = WHOLE  # since when the learning rate has followed its plan
    saved_seconds: float = 0.0
    pause: Pause | None = None


def train(run: Run) -> str:
    """Step until the run is done; how it ended, in a few words."""
    unseen_since = run.state.unseen_since
    if unseen_since is None and (share_of(run) >= 1 or out_of_patience(run)):
        return look_once_more(run)
    ended = ""
    with StopSignals() as signals, attention_backend(run.machine.device), saved_if_it_fails(run):
        run.learner.prepare()
        run.began = time.monotonic() - run.state.seconds
        known_already = run.config.start_from is not None
        if run.state.step == 0 and (run.config.train.eval_from_step is not None or known_already):
            evaluate(run)
        if unseen_since is not None:
            ended = look_around(run, unseen_since, asked_to_stop=False)
        while not ended:
            run.saver.look()
            before = share_of(run)
            update(run, before)
            ended = look_around(run, before, run.world.any(signals.asked > 0))
    return ended


def update(run: Run, share: float) -> None:
    """One step: what the batch says, turned into changed weights."""
    config, state, first_sample = run.config, run.state, run.state.sample

    def take(first: int, count: int) -> Batch:
        return run.loader.take(first_sample + first, count)

    factor = lr_factor(config.schedule, state.step, share, run.planned)
    numbers = run.learner.learn(take, state.step, factor)

    state.step += 1
    state.sample += config.sequences
    state.tokens += config.sequences * config.window
    state.seconds = seconds_since_beginning(run)
    reading = StepReading(
        state.step,
        first_sample,
        state.tokens,
        factor,
        state.seconds,
        progress=share_of(run),
        before=share,
        epochs=epochs_of(run),
        rates=learning_rates(config.optim, factor),
        memory=memory_in_use(run.machine.device) if state.step % MEMORY_EVERY_STEPS == 1 else None,
    )
    run.metrics.launched(reading, numbers)


def look_around(run: Run, before: float, asked_to_stop: bool) -> str:
    """Evaluate, sample and save when it is time; why the run ends here, if it does. None of it changes what is
    learned."""
    knobs, state, after = run.config.train, run.state, share_of(run)
    state.unseen_since = None
    run.pause = Pause(before, replace(state, unseen_since=before))
    due = run.pauses.due(state, before, after, state.seconds - run.saved_seconds)
    pausing = due.anything or after >= 1 or asked_to_stop
    target_reached = read_numbers(run, everything=pausing or knobs.target_loss is not None)
    run.pause.logs = run.metrics.lengths()

    ended = ""
    if target_reached is not None:
        ended = f"reached target loss: {target_reached:.4f}"
    elif after >= 1:
        ended = "done"
    elif asked_to_stop:
        ended = INTERRUPTED
    if due.evaluate or ended not in ("", INTERRUPTED):
        evaluate(run)
        if ended in ("", INTERRUPTED):
            ended = out_of_patience(run) or ended
        for finding in run.doctor.look() if run.world.is_first else ():
            run.progress.note(f"note: {finding.line()}")
    if due.sample or ended not in ("", INTERRUPTED):
        sample(run)
    if due.snapshot:
        weights = run.learner.kept_weights()
        if run.world.is_first:
            save_snapshot(run.folder, run.run_id, run.config, weights, run.shards.tokenizer, state)
    state.ended = ended
    if due.save or ended or (due.evaluate and state.best_step == state.step and not run.saver.remember_best(state)):
        save(run)
    if ended:
        run.saver.wait()
    run.pause = None
    if ended not in ("", INTERRUPTED) and run.pauses.has_time_for_the_whole(state):
        evaluate_whole(run)
    return ended


def read_numbers(run: Run, everything: bool) -> float | None:
    """Write down the numbers that have arrived from the device; the loss that reached the target, if one did."""
    target = run.config.train.target_loss
    for reading, told in run.metrics.arrived(everything):
        for line in passed(run.config, reading, run.loader.order.samples_per_epoch):
            run.progress.note(line)
        numbers = (told.loss, told.gradient_length, reading.lr_factor)
        if run.proof is not None and (verdict := run.proof.saw(reading.step, *numbers)):
            run.progress.note(verdict)
        run.guard.heard(reading, told, run.config.sequences, run.progress.note)
        if target is not None and told.loss <= target:
            run.state.reached_loss = told.loss
            return told.loss
    return None


def evaluate(run: Run) -> None:
    """Loss, perplexity and bits per byte of the validation set, or of what there is time for; of part of both sets,
    where a part is asked for."""
    state, at_most, train_loss = run.state, run.pauses.windows(run.state), None
    with run.learner.at_rest() as model:
        result = scored(run, model, "val", at_most)
        if run.config.train.eval_batches is not None:
            train_loss = scored(run, model, "train", at_most).loss
        layers = layer_sizes(model, run.loader.take(state.sample, 1)[0])
    state.val_loss, state.evaluated_at = result.loss, state.step
    if math.isfinite(result.loss) and (state.best_val_loss is None or result.loss < state.best_val_loss):
        state.best_val_loss, state.best_step, state.not_better_in_a_row = result.loss, state.step, 0
    else:
        state.not_better_in_a_row += 1
    seconds, more = seconds_since_beginning(run), layers | {"input_seconds": round(run.loader.seconds_taken(), 3)}
    run.metrics.evaluated(state.step, state.tokens, epochs_of(run), seconds, result, at_most is None, train_loss, more)


def scored(run: Run, model: GPT, split: str, at_most: int | None) -> Score:
    """All of a split, or so many windows of it."""
    text, size, learner = run.shards.split(split), run.shards.bytes_of_text(split), run.learner
    return score(model, text, run.config.window, size, at_most, run.world, learner.is_sharded, learner.tokens_at_once)


def out_of_patience(run: Run) -> str:
    """Why it is to end, where its evaluations have not become better for too long."""
    patience, state = run.config.train.patience, run.state
    if patience is None or state.not_better_in_a_row < patience:
        return ""
    best = f"{state.best_val_loss:.4f} in step {state.best_step}" if state.best_val_loss is not None else "none"
    return f"no better validation loss in {state.not_better_in_a_row} evaluations (best: {best})"


def evaluate_whole(run: Run) -> None:
    """The best model, which evaluations on a part of the validation set have found, on all of it."""
    state, folder = run.state, run.folder
    places = [each(state.best_step) for each in (folder.checkpoint, folder.best_model)]
    there = [each for each in places if state.best_step != state.step and run.world.from_first(each.is_dir())]
    with run.learner.at_rest() as model:
        if there:  # in place of the newest weights, which are saved, so that it takes no more memory
            run.learner.look_at(there[0])
        result = scored(run, model, "val", None)
    run.metrics.evaluated_whole(state.best_step if there else state.step, result)


def look_once_more(run: Run) -> str:
    """A run that is done, and may have been killed before it was scored on all of the text: the line that tells of it
    is of no checkpoint, so that to resume has cut it off."""
    with saved_if_it_fails(run), attention_backend(run.machine.device):
        if run.pauses.has_time_for_the_whole(run.state):
            run.learner.prepare()
            evaluate_whole(run)
    return "nothing left to do"


def sample(run: Run) -> None:
    """What the model says now. Where there is no memory for it, nothing, for nothing needs it to go on."""
    try:
        _sample(run)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        free_cache(run.machine.torch_device)
        warn(f"step {run.state.step}: out of memory in a sample, which is left out; training goes on")


def _sample(run: Run) -> None:
    knobs, tokenizer = run.config.sample, run.shards.tokenizer
    with run.learner.at_rest() as model:
        for prompt in knobs.prompts or ():
            new = generate(
                model,
                tokenizer.encode_prompt(prompt),
                knobs.rules,
                seed=run.config.seed,
                max_tokens=knobs.tokens,
                end_of_text=tokenizer.stop,
                known_ids=tokenizer.vocab_size,
            )
            text = tokenizer.stream(continues=bool(prompt))
            run.metrics.sampled(run.state.step, prompt, "".join([*map(text.feed, new), text.end()]))


def save(run: Run, cut_back_to: dict[str, int] | None = None) -> None:
    state, learner = run.state, run.learner
    state.seconds = seconds_since_beginning(run)
    state.micro_batch, state.compiled = learner.micro_batch, learner.compiled
    state.checkpoints_activations, state.sharded = learner.checkpoints_activations, learner.is_sharded
    state.not_finite_in_a_row, state.scaler = run.guard.in_a_row, learner.scaler.state() or state.scaler
    state.logs = run.metrics.sync() | (cut_back_to or {})
    run.saver.begin(state)
    run.saved_seconds = state.seconds


def seconds_since_beginning(run: Run) -> float:
    return run.world.from_first(time.monotonic() - run.began)


def share_of(run: Run) -> float:
    """How much of the run is done, from 0 to 1."""
    return share_done(run.config.train, run.state, run.loader.order.samples_per_epoch)


def epochs_of(run: Run) -> float:
    """How often the text was read."""
    return run.state.sample / run.loader.order.samples_per_epoch


@contextlib.contextmanager
def saved_if_it_fails(run: Run) -> Iterator[None]:
    """Whatever goes wrong outside an update, the steps before it are kept."""
    try:
        with run.saver:
            try:
                yield
            except Exception:
                if run.world.size == 1:  # the others may be anywhere
                    save_what_is_whole(run)
                raise
    finally:
        run.metrics.close()
        run.progress.close()


def save_what_is_whole(run: Run) -> None:
    with contextlib.suppress(Exception):
        run.saver.wait()
    if run.learner.weights_are_whole and run.state.step > run.saver.saved_step:
        with contextlib.suppress(Exception):
            run.metrics.arrived(everything=True)
            logs = None
            if (pause := run.pause) is not None:
                logs = pause.logs or run.metrics.lengths()
                run.state = replace(pause.state, reached_loss=run.state.reached_loss)
            run.state.ended = FAILED
            save(run, logs)
            run.saver.wait()
