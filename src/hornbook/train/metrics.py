"""The numbers of a run.

In: what each step measured.  Out: `metrics.jsonl`, one line a step and one an evaluation; the progress line; tokens a
second and MFU. The loop never waits for a number: on an accelerator it reads those of the step before while the next
one runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from hornbook.base.console import Progress, count, duration
from hornbook.infer.score import Score
from hornbook.runs.folder import METRICS, SAMPLES, RunFolder
from hornbook.runs.logs import Log, NoLog
from hornbook.train.config import RunConfig
from hornbook.train.cuda_graph import StepTensors
from hornbook.train.precision import LEAST_SCALE

RATE_OVER_STEPS = 50
# The loss that is shown is their mean; in the log stands each.
SHOWN_LOSSES = 64
MEMORY_EVERY_STEPS = 10
# The end of each epoch up to this one is told, and then of every so many: of a tiny text there are thousands.
EPOCHS_TOLD = 100
GB = 10**9
# How much of a sample is shown; all of it is in the log.
SAMPLE_LINES, SAMPLE_WIDTH = 4, 100


@dataclass(frozen=True)
class StepReading:
    """One step, as the loop knows it when it has launched it."""

    step: int
    first_sample: int
    tokens: int
    lr_factor: float
    seconds: float
    progress: float
    epochs: float
    """How often the text was read, with this step."""
    before: float = 0.0
    """The progress before this step."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """The learning rates of this step, by what learns at them."""
    memory: tuple[int, int] | None = None
    """Bytes of the accelerator's that are taken, and that it has, where this step looked."""


class StepNumbers(NamedTuple):
    """The metrics of a step, once they have arrived on the host (see cuda_graph.StepTensors)."""

    loss: float
    grad_norm: float
    spike: float
    scale: float
    update: float = math.nan

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def overflowed(self) -> bool:
        """Whether gradients were not finite for their scale alone, which can still fall: nothing is wrong with the
        run."""
        return math.isfinite(self.loss) and not self.finite and self.scale > LEAST_SCALE


class Metrics:
    def __init__(
        self,
        folder: RunFolder,
        progress: Progress,
        flops_per_token: int,
        peak_flops: float | None,
        kept: dict[str, int] | None,
        writes: bool = True,
    ) -> None:
        log = Log if writes else NoLog
        self._log: Log | NoLog = log(folder.metrics, (kept or {}).get(METRICS))
        self._samples: Log | NoLog = log(folder.samples, (kept or {}).get(SAMPLES))
        self._progress = progress
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._waiting: deque[tuple[StepReading, torch.Tensor, Any]] = deque()
        self._recent: deque[tuple[float, int]] = deque(maxlen=RATE_OVER_STEPS)
        self._losses: deque[float] = deque(maxlen=SHOWN_LOSSES)
        self._memory: tuple[int, int] | None = None
        self._val_loss: float | None = None

    def queue(self, reading: StepReading, measured: StepTensors) -> None:
        """A step is under way; its metrics start towards the host."""
        numbers = torch.stack([each.float() for each in measured])
        event = None
        if numbers.is_cuda:
            numbers = torch.empty(len(numbers), pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        elif numbers.device.type != "cpu":
            numbers = numbers.cpu()
        self._waiting.append((reading, numbers, event))

    def collect(self, everything: bool = False) -> list[tuple[StepReading, StepNumbers]]:
        """Steps whose metrics have arrived, now written down; on an accelerator the newest is left for the next call,
        unless `everything` is wanted."""
        done = []
        while self._waiting:
            reading, numbers, event = self._waiting[0]
            if event is not None:
                if len(self._waiting) == 1 and not everything:
                    break
                event.synchronize()
            told = StepNumbers(*numbers.tolist())
            self._write_step(reading, told)
            self._waiting.popleft()  # not before the disk has it: a run that fails by it tries once more
            done.append((reading, told))
        return done

    def evaluated(
        self,
        step: int,
        tokens: int,
        epochs: float,
        seconds: float,
        score: Score,
        whole: bool,
        train_loss: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self._val_loss = score.loss
        self._log.write(
            {
                "step": step,
                "tokens": tokens,
                "epochs": _rounded(epochs),
                "val_loss": _or_null(score.loss),
                "val_perplexity": _or_null(score.perplexity),
                "val_bits_per_byte": _or_null(score.bits_per_byte),
                "val_tokens": score.tokens,
                "seconds": round(seconds, 3),
            }
            | ({"train_loss": _or_null(train_loss)} if train_loss is not None else {})
            | dict(more or {})
        )
        trained = f"training loss {train_loss:.4f}, " if train_loss is not None else ""
        part = "" if whole else f" (on {count(float(score.tokens))} tokens of it)"
        self._progress.note(f"epoch {_epoch(epochs)}, step {step}: {trained}{_in_words(score)}{part}")

    def evaluated_whole(self, step: int, score: Score) -> None:
        """The model that is kept as the best, at the end of a run whose evaluations saw a part of the text."""
        self._log.write(
            {
                "step": step,
                "final_val_loss": _or_null(score.loss),
                "final_val_perplexity": _or_null(score.perplexity),
                "final_val_bits_per_byte": _or_null(score.bits_per_byte),
                "val_tokens": score.tokens,
            }
        )
        self._progress.note(f"on all of the validation text, step {step}: {_in_words(score)}")

    def sampled(self, step: int, prompt: str, text: str) -> None:
        self._samples.write({"step": step, "prompt": prompt, "text": text})
        if prompt:
            self._progress.note(f"  from {prompt!r}:")
        for line in (prompt + text).strip().splitlines()[:SAMPLE_LINES]:
            self._progress.note(f"  | {line[:SAMPLE_WIDTH]}")

    def sync(self) -> dict[str, int]:
        """Put the logs safely on the disk; their lengths, to which a resume cuts them back."""
        return {METRICS: self._log.sync(), SAMPLES: self._samples.sync()}

    def lengths(self) -> dict[str, int]:
        return {METRICS: self._log.length, SAMPLES: self._samples.length}

    def close(self) -> None:
        self._log.close()
        self._samples.close()

    def tokens_per_second(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        (began, first), (ended, last) = self._recent[0], self._recent[-1]
        return (last - first) / max(ended - began, 1e-9)

    def mfu(self) -> float | None:
        """The share of the accelerator's peak that the model's own arithmetic reaches."""
        return self.tokens_per_second() * self._flops_per_token / self._peak_flops if self._peak_flops else None

    def _write_step(self, reading: StepReading, told: StepNumbers) -> None:
        self._recent.append((reading.seconds, reading.tokens))
        self._memory = reading.memory or self._memory
        if math.isfinite(told.loss):
            self._losses.append(told.loss)
        entry = {
            "step": reading.step,
            "tokens": reading.tokens,
            "epochs": _rounded(reading.epochs),
            "loss": _or_null(told.loss),
            "grad_norm": _or_null(told.grad_norm),
            "lr_factor": reading.lr_factor,
            **reading.rates,
            "seconds": round(reading.seconds, 3),
        }
        if told.scale != 1:
            entry["loss_scale"] = told.scale
        if math.isfinite(told.update):
            entry["update_ratio"] = float(f"{told.update:.4g}")
        if told.spike:
            entry["left_out"] = True
        if reading.memory is not None:
            entry |= dict(zip(("memory_bytes", "memory_total_bytes"), reading.memory, strict=True))
        self._log.write(entry)
        self._progress.update(self._line(reading))

    def _line(self, reading: StepReading) -> str:
        """What a narrow terminal cuts off stands last."""
        mean = sum(self._losses) / len(self._losses) if self._losses else math.nan
        parts = [f"epoch {_epoch(reading.epochs)}", f"step {reading.step}", f"loss {mean:.3f}"]
        if self._val_loss is not None:
            parts.append(f"val {self._val_loss:.3f}")
        if rate := self.tokens_per_second():
            parts.append(f"{count(rate)} tokens/s")
        if reading.progress > 0:
            left = reading.seconds * (1 - reading.progress) / reading.progress
            parts += [f"{min(reading.progress, 1):.0%}", f"{duration(left)} left"]
        if mfu := self.mfu():
            parts.append(f"{mfu:.0%} MFU")
        if self._memory is not None:
            used, total = self._memory
            parts.append(f"{used / GB:.2f} of {total / GB:.2f} GB")
        return "  ".join(parts)


def passed(config: RunConfig, reading: StepReading, samples_per_epoch: int) -> Iterator[str]:
    """What a step has come by, in words: the end of an epoch, the drop of the learning rate."""
    first, last = reading.first_sample // samples_per_epoch + 1, int(reading.epochs)
    for epoch in range(first, last + 1):
        if epoch <= EPOCHS_TOLD or epoch % EPOCHS_TOLD == 0:
            yield f"epoch {epoch} finished in step {reading.step}"
    if config.schedule.dropped_in(reading.step, reading.before, reading.progress):
        share = config.schedule.final_share
        lr = config.optim.lr * config.optim.lr_scale * share
        yield f"learning rate dropped to {lr:.3g}, {share:.3g} of its height, after step {reading.step}"


def _epoch(epochs: float) -> int:
    """The number of the one that is being read, or was read last."""
    return max(math.ceil(epochs), 1)


def _rounded(epochs: float) -> float:
    return round(epochs, 6)


def _in_words(score: Score) -> str:
    bits = f"{score.bits_per_byte:.3f} bits per byte"
    return f"validation loss {score.loss:.4f}, perplexity {score.perplexity:.1f}, {bits}"


def _or_null(number: float) -> float | None:
    """JSON has no word for what is not finite, and strict readers refuse Python's."""
    return number if math.isfinite(number) else None
