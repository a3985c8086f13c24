"""Curves beside one another.

In: several run folders, or one and the steps at which to look at it.  Out: `comparison.png`, all in one picture; or
`lengths.png` in the run's folder, a picture for each length that it had.
"""

from __future__ import annotations

from pathlib import Path

from hornbook.base.console import command
from hornbook.base.errors import UserError
from hornbook.report.curves import (
    DROP,
    Curves,
    draw_losses,
    drawable_names,
    figure_of,
    fit_height,
    mark_drops,
    save_picture,
    token_format,
)

PALETTE = ("#c0392b", "#2c6fbb", "#2e8b57", "#8e44ad", "#d68910", "#16a085", "#7f8c8d")
MOST_LENGTHS = 12


def compare(runs: list[Path], out: Path) -> Path:
    """Both losses of several runs in one picture, over tokens, which runs of different batch sizes share."""
    figure, [axes] = figure_of()
    drops: dict[float, str] = {}  # in the run's own colour, unless several share it
    every = [Curves.read(run) for run in runs]
    names, fonts = drawable_names(curves.name for curves in every)
    for color, name, curves in zip(PALETTE * (len(runs) // len(PALETTE) + 1), names, every, strict=False):
        each = curves.tokens_per_step
        axes.plot([step * each for step in curves.steps], curves.smoothed(), color=color, alpha=0.55, linewidth=1.1)
        axes.plot(
            [step * each for step in curves.val_steps],
            curves.val_losses,
            color=color,
            linewidth=1.8,
            marker="o",
            markersize=3.5,
            label=name,
        )
        for place in (step * each for step in curves.drops):
            drops[place] = DROP if place in drops else color
    axes.plot([], [], color=DROP, alpha=0.55, linewidth=1.1, label="training")
    axes.plot([], [], color=DROP, linewidth=1.8, marker="o", markersize=3.5, label="validation")
    mark_drops(axes, drops)
    fit_height(axes, every)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(token_format())
    axes.legend(frameon=False, prop={"family": fonts})
    return save_picture(figure, out)


def draw_lengths(run: Path, steps: list[int]) -> Path:
    """Both losses of a run up to each of these steps, side by side at one height: how it stood before it was
    lengthened."""
    curves = Curves.read(run)
    if not 1 <= len(steps) <= MOST_LENGTHS or min(steps) < curves.steps[0]:
        raise UserError(f"--at: should be 1 to {MOST_LENGTHS} steps of the run, such as --at 500,4000, not {steps}")
    if max(steps) > curves.steps[-1]:
        longer = command("resume", run, "--train.steps", max(steps))
        raise UserError(f"{run}: has come to step {curves.steps[-1]}, not to {max(steps)}; lengthen it: {longer}")
    columns = min(len(steps), 2)
    figure, panels = figure_of(len(steps), columns)
    lengths = [curves.up_to(step) for step in sorted(steps)]
    for number, (axes, length) in enumerate(zip(panels, lengths, strict=True)):
        draw_losses(axes, length)
        mark_drops(axes, dict.fromkeys(length.drops, DROP))
        fit_height(axes, lengths)
        end = length.steps[-1]
        epochs = f", {end * length.epochs_per_step:.3g} epochs" if length.epochs_per_step else ""
        axes.set_xlim(0, end)
        axes.set_title(f"{end:,} steps{epochs}", loc="left", fontsize=10, color="#555555")
        if number % columns == 0:
            axes.set_ylabel("loss (nats per token)")
        if number >= len(steps) - columns:
            axes.set_xlabel("step")
    panels[0].legend(loc="best", frameon=False)
    return save_picture(figure, run / "lengths.png")
