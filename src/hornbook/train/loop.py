"""The training loop.

In: a `Run`, assembled in start.py.  Out: changed weights, and in the run's folder metrics, samples, checkpoints and
snapshots.
A step reads `sequences` windows of `window` tokens and changes the weights once: how, says learner.py.
"""

from __future__ import annotations

import contextlib
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
from hornbook.train.layer_stats import layer_sizes
from hornbook.train.learner import Learner
from hornbook.train.metrics import MEMORY_EVERY_STEPS, Metrics, StepReading, passed
from hornbook.train.optim_config import learning_rates
from hornbook.train.proof import Proof
from hornbook.train.saving import Saver
from hornbook.train.schedule import NOT_EXTENDED, Extension, lr_factor, share_done
from hornbook.train.timetable import Timetable

INTERRUPTED, FAILED = "interrupted", "failed"


@dataclass
class RecoveryPoint:
    """Right after a step: should an evaluation, a sample or a checkpoint fail, the run is saved as it is here."""

    before: float
    """The share of the run that was done before the step."""
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
    timetable: Timetable
    saver: Saver
    doctor: Doctor
    proof: Proof | None = None
    began: float = 0.0  # when the run's clock would have been started, had the run never been interrupted
    extension: Extension = NOT_EXTENDED  # since when the learning rate has followed its plan
    saved_seconds: float = 0.0
    recovery_point: RecoveryPoint | None = None


def train(run: Run) -> str:
    """Step until the run is done; how it ended, in a few words."""
    unseen_since = run.state.unseen_since
    if unseen_since is None and (share_of(run) >= 1 or out_of_patience(run)):
        return finish_last_evaluation(run)
    ended = ""
    with StopSignals() as signals, attention_backend(run.machine.device), saved_if_it_fails(run):
        run.learner.prepare()
        run.began = time.monotonic() - run.state.seconds
        known_already = run.config.start_from is not None
        if run.state.step == 0 and (run.config.train.eval_from_step is not None or known_already):
            evaluate(run)
        if unseen_since is not None:
            ended = after_step(run, unseen_since, asked_to_stop=False)
        while not ended:
            run.saver.raise_errors()
            before = share_of(run)
            update(run, before)
            ended = after_step(run, before, run.world.any(signals.asked > 0))
    return ended


def update(run: Run, share: float) -> None:
    """One step: what the batch says, turned into changed weights."""
    config, state, first_sample = run.config, run.state, run.state.sample

    def take(first: int, count: int) -> Batch:
        return run.loader.take(first_sample + first, count)

    factor = lr_factor(config.schedule, state.step, share, run.extension)
    measured = run.learner.learn(take, state.step, factor)

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
    run.metrics.queue(reading, measured)


def after_step(run: Run, before: float, asked_to_stop: bool) -> str:
    """Evaluate, sample and save when it is time; why the run ends here, if it does. None of it changes what is
    learned."""
    knobs, state, after = run.config.train, run.state, share_of(run)
    state.unseen_since = None
    run.recovery_point = RecoveryPoint(before, replace(state, unseen_since=before))
    due = run.timetable.due(state, before, after, state.seconds - run.saved_seconds)
    all_of_them = due.anything or after >= 1 or asked_to_stop or knobs.target_loss is not None
    target_reached = read_metrics(run, everything=all_of_them)
    run.recovery_point.logs = run.metrics.lengths()

    ended = reason_to_end(after, target_reached, asked_to_stop)
    finished = ended not in ("", INTERRUPTED)
    if due.evaluate or finished:
        evaluate(run)
        if not finished and (reason := out_of_patience(run)):
            ended, finished = reason, True
        for finding in run.doctor.new_findings() if run.world.is_first else ():
            run.progress.note(f"note: {finding.line()}")
    if due.sample or finished:
        sample(run)
    if due.snapshot:
        keep_snapshot(run)
    state.ended = ended
    if due.save or ended or (due.evaluate and state.best_step == state.step and not run.saver.remember_best(state)):
        save(run)
    if ended:
        run.saver.wait()
    run.recovery_point = None
    if finished and run.timetable.has_time_for_the_whole(state):
        evaluate_whole(run)
    return ended


def reason_to_end(after: float, target_reached: float | None, asked_to_stop: bool) -> str:
    if target_reached is not None:
        return f"reached target loss: {target_reached:.4f}"
    if after >= 1:
        return "done"
    return INTERRUPTED if asked_to_stop else ""


def read_metrics(run: Run, everything: bool) -> float | None:
    """Write down the metrics that have arrived from the device; the loss that reached the target, if one did."""
    target = run.config.train.target_loss
    for reading, told in run.metrics.collect(everything):
        for line in passed(run.config, reading, run.loader.order.samples_per_epoch):
            run.progress.note(line)
        numbers = (told.loss, told.grad_norm, reading.lr_factor)
        if run.proof is not None and (verdict := run.proof.compare(reading.step, *numbers)):
            run.progress.note(verdict)
        run.guard.check(reading, told, run.config.sequences, run.progress.note)
        if target is not None and told.loss <= target:
            run.state.reached_loss = told.loss
            return told.loss
    return None


def evaluate(run: Run) -> None:
    """Loss, perplexity and bits per byte of the validation set, or of what there is time for; of part of both sets,
    where a part is asked for."""
    state, at_most, train_loss = run.state, run.timetable.windows(run.state), None
    with run.learner.eval_model() as model:
        result = scored(run, model, "val", at_most)
        if run.config.train.eval_batches is not None:
            train_loss = scored(run, model, "train", at_most).loss
        layers = layer_sizes(model, run.loader.take(state.sample, 1)[0])
    state.record_evaluation(result.loss)
    seconds, more = seconds_since_beginning(run), layers | {"input_seconds": round(run.loader.seconds_taken(), 3)}
    run.metrics.evaluated(state.step, state.tokens, epochs_of(run), seconds, result, at_most is None, train_loss, more)


def scored(run: Run, model: GPT, split: str, at_most: int | None) -> Score:
    """All of a split, or at most so many windows of it."""
    return score(
        model,
        run.shards.split(split),
        run.config.window,
        run.shards.bytes_of_text(split),
        at_most,
        run.world,
        in_step=run.learner.is_sharded,
        tokens_at_once=run.learner.tokens_at_once,
    )


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
    with run.learner.eval_model() as model:
        if there:  # in place of the newest weights, which are saved, so that it takes no more memory
            run.learner.load_working_weights(there[0])
        result = scored(run, model, "val", None)
    run.metrics.evaluated_whole(state.best_step if there else state.step, result)


def finish_last_evaluation(run: Run) -> str:
    """A run that is done, and may have been killed before it was scored on all of the text: the line that tells of it
    is of no checkpoint, so that to resume has cut it off."""
    with saved_if_it_fails(run), attention_backend(run.machine.device):
        if run.timetable.has_time_for_the_whole(run.state):
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
    with run.learner.eval_model() as model:
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


def keep_snapshot(run: Run) -> None:
    """The weights alone, for looking back."""
    weights = run.learner.kept_weights()
    if run.world.is_first:
        save_snapshot(run.folder, run.run_id, run.config, weights, run.shards.tokenizer, run.state)


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
            run.metrics.collect(everything=True)
            logs = None
            if (pause := run.recovery_point) is not None:
                logs = pause.logs or run.metrics.lengths()
                run.state = replace(pause.state, reached_loss=run.state.reached_loss)
            run.state.ended = FAILED
            save(run, logs)
            run.saver.wait()
