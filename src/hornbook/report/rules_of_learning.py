"""Rules of how a run learns: too long or too short, too fast or too slowly, and whether each layer has a part in it.

In: `Observed`.  Out: a `Finding`, or None. The thresholds are from runs at a thousandth to a hundred times their usual
learning rate (tests/report/test_doctor.py has them).
"""

from __future__ import annotations

import math
import statistics
from itertools import accumulate, pairwise

import numpy as np

from hornbook.base.console import command
from hornbook.report.finding import Finding
from hornbook.report.observed import Observed

# Of the loss: what an evaluation must lie above the best to be told of.
WORSE = 0.01
# Of the loss: what twice the time must bring to be worth it. A good run gains 7 to 13 % by a doubling.
WORTH = 0.2
# As often as this a text can be read again and still teach something.
MOST_READINGS = 6.0
SPIKES, NOT_FINITE = 3, 1
# Of the weights, what a step changes.
SMALLEST_UPDATE, LARGEST_UPDATE = 3e-4, 0.1
# Of the least training loss so far, what it may rise to; in fewer than so many of a run's parts.
ROSE, ROSE_FOR, PARTS = 1.05, 3, 20
# Time for batches, of all there is; on an accelerator they are made ready while it computes.
INPUT_BOUND, INPUT_BOUND_BESIDE, LEAST_SECONDS = 0.35, 0.8, 5.0
# Of what passes through a layer.
DEAD, ALIVE, EXPLODING = 1e-3, 0.03, 300.0


def rises_since(losses: list[float]) -> int | None:
    """The place of the best evaluation, where the last is worse."""
    if not losses or losses[-1] <= min(losses) * (1 + WORSE):
        return None
    return losses.index(min(losses))


def overfits(run: Observed) -> Finding | None:
    losses = [float(each["val_loss"]) for each in run.evaluations]
    best = rises_since(losses)
    if best is None or (not run.over and (len(losses) - best < 3 or rises_since(losses[:-1]) != best)):
        return None  # one worse evaluation may be chance, while it goes on
    step = int(run.evaluations[best]["step"])
    place = int(np.searchsorted(run["step"], step))
    around = max(run.steps // 20, 1)
    then = float(np.nanmean(run["loss"][max(place - around, 0) : place + 1]))
    now = float(np.nanmean(run["loss"][-around:]))
    if not now < then or run.epochs < 1:
        return None  # it became worse at both, or read nothing twice: that is not overfitting
    if (run.knob("model.dropout") or 0) < 0.2:
        action = (
            "Bring more text; where there is none, train again with --model.dropout 0.2, which makes it harder to "
            "learn by heart"
        )
    else:
        action = "Bring more text: to train longer makes it worse, and more dropout does not make up for it"
    return Finding(
        f"Since step {step:,} it learns its text by heart (it overfits)",
        f"on text that it has not seen its loss, which is to be small, rose from {losses[best]:.2f} to "
        f"{losses[-1]:.2f}, while in training it fell from {then:.2f} to {now:.2f}; the text was read {run.epochs:.3g} "
        f"times. The best model, of step {step:,}, is kept, and is the one that speaks",
        action,
    )


def still_improves(run: Observed) -> Finding | None:
    gain = gain_of_a_doubling(run)
    if not run.over or gain is None or gain < WORTH or 2 * run.epochs > MOST_READINGS:
        return None
    losses = [float(each["val_loss"]) for each in run.evaluations]
    if not losses or rises_since(losses) is not None:
        return None
    end = next((stop for stop in ("minutes", "epochs", "tokens", "steps") if run.knob(f"train.{stop}")), None)
    if end is None:
        return None
    knob = "--minutes" if end == "minutes" else f"--train.{end}"
    twice = f"{2 * run.knob(f'train.{end}'):.12g}"
    return Finding(
        "It was stopped while it still improved",
        f"the last time that it had seen twice as much text, the loss fell by {gain:.0%}; twice as long a run would "
        f"bring about {losses[-1] * (1 - gain / 2):.2f} in place of {losses[-1]:.2f}",
        f"Go on with it: `{command('resume', run.folder, knob, twice)}`",
    )


def gain_of_a_doubling(run: Observed) -> float | None:
    """By which share the training loss fell as the tokens seen doubled, before the learning rate began to fall: what it
    falls by then comes of that. Where the second half of the doubling brought less than the first, twice that half: a
    loss that has come to its floor improves no more, however fast it came there."""
    factors = run["lr_factor"]
    if run.steps < 20 or not np.isfinite(factors).any():
        return None
    full = np.flatnonzero(factors >= 0.98 * np.nanmax(factors))
    end = max(int(full[-1]) + 1, run.steps // 2) / run.steps
    half = math.sqrt(0.5)
    earlier, between, later = (run.mean_loss(0.9 * part * end, part * end) for part in (0.5, half, 1))
    if not earlier > 0 or not between > 0:
        return None
    return min(1 - later / earlier, 1 - (later / between) ** 2)


def bound_by_input(run: Observed) -> Finding | None:
    waited = sum(each.get("input_seconds") or 0.0 for each in run.evaluations)
    seconds = float(run.evaluations[-1].get("seconds") or 0.0) if run.evaluations else 0.0
    beside = str(run.machine.get("device", "cpu")) != "cpu"
    if waited < LEAST_SECONDS or waited <= (INPUT_BOUND_BESIDE if beside else INPUT_BOUND) * seconds:
        return None
    where = run.text.folder if run.text is not None else "the prepared text"
    return Finding(
        "It waits for its text",
        f"{waited / seconds:.0%} of the time went into reading batches, {waited:,.0f} of {seconds:,.0f} seconds",
        f"Copy {where} to a disk of this machine, or into memory, and train with that folder as --data",
    )


def dead_layer(run: Observed) -> Finding | None:
    dead: dict[str, float] | None = None
    for each in run.evaluations[-2:]:
        added = {
            f"the {part} of layer {layer + 1}": size
            for part, name in (("attention", "attention_added"), ("MLP", "mlp_added"))
            for layer, size in enumerate(each.get(name) or ())
            if size is not None
        }
        alive = statistics.median(added.values()) >= ALIVE if added else False
        found = {part: size for part, size in added.items() if alive and size < DEAD}
        dead = found if dead is None else {part: size for part, size in found.items() if part in dead}
    if not dead or len(run.evaluations) < 2:
        return None
    which = sorted(dead)
    told = ", ".join(which[:3]) + (f" and {len(which) - 3} more" if len(which) > 3 else "")
    return Finding(
        f"{told[0].upper()}{told[1:]} {'does' if len(which) == 1 else 'do'} nothing",
        f"of what passes through, no more than {100 * max(dead.values()):.2g} % is added there, in the last two "
        "evaluations, where others add a tenth and more",
        f"Train again with {_lower(run)}; where it stays so, with fewer layers",
    )


def exploding_layer(run: Observed) -> Finding | None:
    sizes = run.evaluations[-1].get("layer_rms") if run.evaluations else None
    if not sizes or learning_rate_too_high(run) is not None:  # of which that would come
        return None
    for layer, (before, after) in enumerate(pairwise(sizes), 1):
        if before is not None and (after is None or after > EXPLODING * max(before, 1.0)):
            grew = "to what is no number" if after is None else f"from {before:.3g} to {after:.3g}"
            return Finding(
                f"Layer {layer} explodes",
                f"what passes through it grows {grew}; usual is less than tenfold",
                f"Train again with {_lower(run)}",
            )
    return None


def learning_rate_too_high(run: Observed) -> Finding | None:
    left_out = int(np.nansum(run["left_out"]))
    broken = int((~np.isfinite(run["loss"])).sum())
    update = largest_updates(run)
    heard = [float(each["val_loss"]) for each in run.evaluations]
    # What never became worse at text that it has not seen only met a harder part of its own.
    worse = any(later > (1 + WORSE) * best for best, later in zip(accumulate(heard, min), heard[1:], strict=False))
    rose = _rose(run) if worse or not heard else None
    if broken >= NOT_FINITE:
        evidence = f"in {broken:,} steps the loss or the gradient was no number"
    elif left_out >= SPIKES:
        evidence = f"{left_out:,} steps were left out, for their loss or gradient stood far above those before"
    elif rose is not None:
        evidence = f"in training the loss rose again, from {rose[0]:.2f} to {rose[1]:.2f}"
    elif update is not None and update > LARGEST_UPDATE:
        evidence = f"a step changes the weights by {update:.0%} of what they are, where a hundredth is usual"
    else:
        return None
    return Finding("The learning rate is too high", evidence, f"Train again with {_lower(run)}")


def _lower(run: Observed) -> str:
    return f"--optim.lr-scale {0.3 * (run.knob('optim.lr_scale') or 1.0):.2g}, a third of the learning rate"


def learning_rate_too_low(run: Observed) -> Finding | None:
    update = largest_updates(run)
    if update is None or update >= SMALLEST_UPDATE or run.knob("start_from"):
        return None
    higher = 10 * (run.knob("optim.lr_scale") or 1.0)
    return Finding(
        "The learning rate is too low",
        f"a step changes the weights by {100 * update:.2g} % of what they are, where 0.1 to 1 % are usual, and the "
        f"loss moved from {run.mean_loss(0.1, 0.2):.2f} to {run.mean_loss(0.9, 1):.2f} only",
        f"Train again with --optim.lr-scale {higher:.2g}",
    )


def largest_updates(run: Observed) -> float | None:
    """How far a step goes, where it goes farthest."""
    updates = run["update_ratio"][np.isfinite(run["update_ratio"])]
    return float(updates.max()) if len(updates) >= 3 else None


def _rose(run: Observed) -> tuple[float, float] | None:
    """The least that the training loss had come to, and to what it rose after, where it stayed above it for long."""
    parts = [run.mean_loss(part / PARTS, (part + 1) / PARTS) for part in range(PARTS)]
    if run.steps < 10 * PARTS or not all(map(math.isfinite, parts)):
        return None
    since_the_least = zip(accumulate(parts, min), parts[1:], strict=False)
    above = [(least, part) for least, part in since_the_least if part > ROSE * least]
    return max(above, key=lambda each: each[1]) if len(above) >= ROSE_FOR else None
