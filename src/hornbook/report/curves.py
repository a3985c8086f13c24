"""The curves of a run.

In: run folders, of which only run.json and metrics.jsonl are read.  Out: `loss.png` and `perplexity.png` in each, fit
for a paper, and `memory.png` of those on an accelerator; `gradients.png` where all is asked for.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.base import files
from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.runs.folder import RunFolder, did_you_mean
from hornbook.runs.logs import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, TRAIN_EVALUATED, VALIDATION, DROP = "#7a9cc6", "#2c5282", "#c0392b", "#777777"
RATES = {"lr": "norms, biases, head", "embedding_lr": "embedding", "matrix_lr": "matrices"}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}
DOTS_PER_INCH = 160
GB = 10**9
EPOCHS_AT = -0.19  # below the steps
PNG_END_BYTES = 12
SIGNATURE_BYTES = 12 + len("Hornbook") + 1 + 64
LARGEST_PICTURE = 64 << 20


@dataclass(frozen=True)
class Curves:
    """The numbers of a run, as columns."""

    name: str
    steps: list[int]
    losses: list[float]
    tokens_per_step: float
    val_steps: list[int]
    val_losses: list[float]
    # Evaluated as the validation losses are, where a run does so on part of both texts.
    train_steps: list[int]
    train_losses: list[float]
    drops: list[int]  # the last step before the learning rate falls at once
    grad_norms: list[tuple[int, float]]
    rates: dict[str, list[tuple[int, float]]]  # by what learns at them
    epochs_per_step: float  # 0 where the run did not write it down
    memory: list[tuple[int, int]]  # of an accelerator, the bytes that were taken at a step
    memory_total: int

    @classmethod
    def read(cls, run: Path) -> Curves:
        entries = read_log(RunFolder(run).metrics)
        trained = [each for each in entries if _is_finite(each.get("loss"))]
        evaluated = [each for each in entries if _is_finite(each.get("val_loss"))]
        both = [each for each in entries if _is_finite(each.get("train_loss"))]
        memory = ("memory_bytes", "memory_total_bytes")
        looked = [each for each in entries if all(_is_finite(each.get(name)) for name in memory)]
        if not trained:
            hint = "" if run.is_dir() else did_you_mean(run)
            raise UserError(f"{run}: no metrics to draw yet" + (hint or "; is it the folder of a run?"))
        return cls(
            name=run.name,
            steps=[each["step"] for each in trained],
            losses=[each["loss"] for each in trained],
            tokens_per_step=trained[-1]["tokens"] / trained[-1]["step"],
            val_steps=[each["step"] for each in evaluated],
            val_losses=[each["val_loss"] for each in evaluated],
            train_steps=[each["step"] for each in both],
            train_losses=[each["train_loss"] for each in both],
            drops=_drops(_series(entries, "lr_factor")),
            grad_norms=_series(entries, "grad_norm"),
            rates={name: series for name in RATES if (series := _series(entries, name))},
            epochs_per_step=trained[-1].get("epochs", 0) / trained[-1]["step"],
            memory=[(each["step"], each["memory_bytes"]) for each in looked],
            memory_total=looked[-1]["memory_total_bytes"] if looked else 0,
        )

    def up_to(self, step: int) -> Curves:
        """As they stood when the run had come so far."""

        def cut(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
            count = bisect.bisect_right(steps, step)
            return steps[:count], values[:count]

        (steps, losses), (val_steps, val_losses) = cut(self.steps, self.losses), cut(self.val_steps, self.val_losses)
        train_steps, train_losses = cut(self.train_steps, self.train_losses)
        return replace(
            self,
            steps=steps,
            losses=losses,
            val_steps=val_steps,
            val_losses=val_losses,
            train_steps=train_steps,
            train_losses=train_losses,
            drops=[each for each in self.drops if each < step],
        )

    def smoothed(self) -> list[float]:
        """The losses as a running mean over about a fiftieth of the run, begun without a lag."""
        memory = 1 - 1 / max(len(self.losses) / 50, 1)
        mean, weight, result = 0.0, 0.0, []
        for loss in self.losses:
            mean, weight = memory * mean + (1 - memory) * loss, memory * weight + (1 - memory)
            result.append(mean / weight)
        return result


def _drops(factors: list[tuple[int, float]]) -> list[int]:
    """The steps after which the learning rate falls at once by more than half, and stays: not where it was falling
    already, or goes on to fall."""
    steps, rates = [step for step, _ in factors], [rate for _, rate in factors]
    drops = []
    for place in range(len(rates) - 2):
        before, after, later = rates[place : place + 3]
        alone = rates[max(place - 1, 0)] <= before and after <= later
        if 0 < after < before / 2 and alone:
            drops.append(steps[place])
    return drops


def _series(entries: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(each["step"], each[name]) for each in entries if _is_finite(each.get(name))]


def draw(run: Path, everything: bool = False) -> list[Path]:
    """Draw a run's pictures into its folder: those of how well it learned, or of `everything` that it wrote down, and
    what was drawn before, which would tell of an earlier step."""
    curves = Curves.read(run)
    figures = {"loss.png": loss_figure, "perplexity.png": perplexity_figure}
    if curves.grad_norms and (everything or (run / "gradients.png").exists()):
        figures["gradients.png"] = gradient_figure
    if curves.memory:
        figures["memory.png"] = memory_figure
    return [save_picture(figure(curves), run / name) for name, figure in figures.items()]


def loss_figure(curves: Curves) -> Figure:
    """Both losses over steps, with tokens on a second axis above."""
    figure, [axes] = figure_of()
    draw_losses(axes, curves)
    mark_drops(axes, dict.fromkeys(curves.drops, DROP))
    fit_height(axes, [curves])
    _label(axes, curves, "loss (nats per token)")
    return figure


def draw_losses(axes: Axes, curves: Curves) -> None:
    axes.plot(curves.steps, curves.losses, color=TRAIN, alpha=0.3, linewidth=0.7)
    axes.plot(curves.steps, curves.smoothed(), color=TRAIN, linewidth=1.8, label="training")
    if curves.val_steps:
        axes.plot(
            curves.val_steps,
            curves.val_losses,
            color=VALIDATION,
            linewidth=1.8,
            marker="o",
            markersize=4,
            label="validation",
        )
        _mark_lowest(axes, curves, curves.val_losses, "{:.3f}")
    if curves.train_steps:
        axes.plot(
            curves.train_steps,
            curves.train_losses,
            color=TRAIN_EVALUATED,
            linewidth=1.2,
            linestyle="--",
            marker="o",
            markersize=4,
            label="training, evaluated",
        )


def perplexity_figure(curves: Curves) -> Figure:
    """Both perplexities, on a logarithmic scale."""
    figure, [axes] = figure_of()
    axes.plot(
        curves.steps,
        [_perplexity(loss) for loss in curves.smoothed()],
        color=TRAIN,
        linewidth=1.8,
        label="training",
    )
    if curves.val_steps:
        values = [_perplexity(loss) for loss in curves.val_losses]
        axes.plot(
            curves.val_steps,
            values,
            color=VALIDATION,
            linewidth=1.8,
            marker="o",
            markersize=4,
            label="validation",
        )
        _mark_lowest(axes, curves, values, "{:.1f}")
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _label(axes, curves, "perplexity")
    return figure


def gradient_figure(curves: Curves) -> Figure:
    """The norm of the gradients, before they are clipped, over the learning rates."""
    figure, panels = figure_of(2 if curves.rates else 1)
    norms, *below = panels
    norms.plot(*zip(*curves.grad_norms, strict=True), color=TRAIN, linewidth=0.9)
    norms.set_yscale("log")
    norms.set_ylabel("gradient norm")
    for axes in below:
        for color, (name, rates) in zip((TRAIN_EVALUATED, VALIDATION, DROP), curves.rates.items(), strict=False):
            axes.plot(*zip(*rates, strict=True), color=color, linewidth=1.8, label=RATES[name])
        axes.set_ylabel("learning rate")
        axes.legend(loc="best", frameon=False)
    for axes in panels:
        axes.set_xlim(0, max(curves.steps[-1], 1))
    panels[-1].set_xlabel("step")
    return figure


def memory_figure(curves: Curves) -> Figure:
    """The accelerator's memory that was taken, of what it has."""
    figure, [axes] = figure_of()
    steps, taken = zip(*curves.memory, strict=True)
    axes.plot(steps, [each / GB for each in taken], color=TRAIN_EVALUATED, linewidth=1.8, label="taken")
    axes.axhline(curves.memory_total / GB, color=DROP, linestyle="--", linewidth=1.2, label="all there is")
    axes.set_ylim(0, 1.08 * curves.memory_total / GB)
    _label(axes, curves, "memory (GB)")
    return figure


def figure_of(panels: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        rows = -(-panels // columns)
        figure = Figure(figsize=(7.2 * min(columns, 1.4), 4.3 * rows**0.6), layout="constrained")
        FigureCanvasAgg(figure)  # draws without a screen, and leaves the user's own figures alone
        return figure, [figure.add_subplot(rows, columns, 1 + panel) for panel in range(panels)]


def _label(axes: Axes, curves: Curves, height: str) -> None:
    [title], fonts = drawable_names([curves.name])
    axes.set_title(title, loc="left", fontsize=10, color="#555555", fontfamily=fonts)
    axes.set_xlabel("step")
    axes.set_ylabel(height)
    axes.set_xlim(0, max(curves.steps[-1], 1))
    _second_axis(axes, 1, "tokens seen", curves.tokens_per_step).xaxis.set_major_formatter(token_format())
    if curves.epochs_per_step * curves.steps[-1] >= 1:  # of less there is nothing to tell
        _second_axis(axes, EPOCHS_AT, "epochs", curves.epochs_per_step)
    axes.legend(loc="best", frameon=False)


def _second_axis(axes: Axes, height: float, of: str, each: float) -> Any:
    """Of what a step takes so many, beside the steps; `height` in heights of the picture."""

    def from_steps(step: Any) -> Any:
        return step * each

    def to_steps(amount: Any) -> Any:
        return amount / each

    axis = axes.secondary_xaxis(height, functions=(from_steps, to_steps))
    axis.set_xlabel(of)
    return axis


def drawable_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    from hornbook.report.fonts import drawable  # with it comes matplotlib

    return drawable(names)


def token_format() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def fit_height(axes: Axes, every: Iterable[Curves]) -> None:
    """A single wild step must not press the rest of the curves flat."""
    shown = [loss for curves in every for loss in (*curves.smoothed(), *curves.val_losses, *curves.train_losses)]
    low, high = min(shown), max(shown)
    axes.set_ylim(low - 0.06 * (high - low) - 1e-3, high + 0.06 * (high - low) + 1e-3)


def _mark_lowest(axes: Axes, curves: Curves, values: list[float], form: str) -> None:
    lowest = min(range(len(values)), key=values.__getitem__)
    step = curves.val_steps[lowest]
    share = step / max(curves.steps[-1], 1)
    side = "left" if share < 0.1 else "right" if share > 0.9 else "center"  # the number stays off the axes' words
    axes.annotate(
        form.format(values[lowest]),
        (step, values[lowest]),
        xytext=(4 if side == "left" else 0, 9),
        textcoords="offset points",
        ha=side,
        color=VALIDATION,
        fontweight="bold",
    )


def mark_drops(axes: Axes, places: Mapping[float, str]) -> None:
    """Where the learning rate falls at once; the words stand at the top, since curves go down."""
    for place, color in places.items():
        axes.axvline(place, color=color, linestyle=":", linewidth=1.2)
        axes.annotate(
            "learning rate drops",
            (place, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            color=color,
            fontsize=8,
            rotation=90,
            va="top",
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def save_picture(figure: Figure, out: Path) -> Path:
    """Where a picture of somebody else's has the name, beside it."""
    place, number = out, 1
    while os.path.lexists(place) and not _is_signed(place):
        number += 1
        place = out.with_stem(f"{out.stem}-{number}")
    if place != out:
        warn(f"{out}: not known to be drawn by Hornbook; the picture is {place.name}")
    with files.staged_file(place, replace=True) as staging:
        figure.savefig(staging, dpi=DOTS_PER_INCH)
        files.write_bytes(staging, _signed(staging.read_bytes()))
    return place


def _signed(picture: bytes) -> bytes:
    """A PNG with one more chunk of text, by which it proves to be ours and unchanged: the hash of all before it."""
    drawn, end = picture[:-PNG_END_BYTES], picture[-PNG_END_BYTES:]
    chunk = b"tEXtHornbook\0" + hashlib.sha256(drawn).hexdigest().encode()
    return drawn + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


def _is_signed(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
        return False
    picture = path.read_bytes()
    drawn = picture[: -PNG_END_BYTES - SIGNATURE_BYTES] + picture[-PNG_END_BYTES:]
    return len(picture) > PNG_END_BYTES + SIGNATURE_BYTES and _signed(drawn) == picture
