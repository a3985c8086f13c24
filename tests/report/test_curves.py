from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot

from hornbook.base.errors import UserError
from hornbook.report.comparison import compare, draw_lengths
from hornbook.report.curves import Curves, draw, loss_figure, memory_figure, perplexity_figure
from hornbook.report.fonts import drawable
from hornbook.train.config import ScheduleConfig
from hornbook.train.schedule import lr_factor

Entries = list[dict[str, Any]]


def trained(steps: int, every: int = 0) -> Entries:
    """What a run writes: a loss each step, and a validation loss every so many."""
    entries: Entries = []
    for step in range(1, steps + 1):
        at: dict[str, Any] = {"step": step, "tokens": step * 256}
        entries.append({**at, "loss": 2 + 3 * math.exp(-step / 20)})
        if every and step % every == 0:
            entries.append({**at, "val_loss": 2.2 + 3 * math.exp(-step / 20)})
    return entries


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    def write(entries: Entries, name: str = "run") -> Path:
        run = tmp_path / name
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return run

    return write


def shows_something(picture: Path) -> bool:
    """Axes in black, and curves in colour."""
    pixels = matplotlib.image.imread(picture)[..., :3]
    coloured = (pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.2
    return bool(coloured.sum() > 50 and (pixels.max(axis=-1) < 0.1).sum() > 500)


WITH_A_GAP: Entries = [{**entry, "loss": float("nan")} if entry["step"] == 9 else entry for entry in trained(30)]
RUNS = {
    "long": trained(200, 20),
    "one step, evaluated": trained(1, 1),
    "with a step that was not finite": WITH_A_GAP,
    "with an evaluation that was not finite": [*trained(30, 10), {"step": 30, "tokens": 7680, "val_loss": math.inf}],
    "hopeless": [{"step": step, "tokens": step, "loss": 900.0 + step} for step in range(1, 9)],
}


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.filterwarnings("error")
def test_pictures_are_drawn_from_the_folder_alone(kind: str, run_of: Callable[..., Path]) -> None:
    run = run_of(RUNS[kind])
    pictures = draw(run)
    assert pictures == [run / "loss.png", run / "perplexity.png"]
    assert sorted(each.name for each in run.iterdir()) == ["loss.png", "metrics.jsonl", "perplexity.png"]
    for picture in pictures:
        height, width, _ = matplotlib.image.imread(picture).shape
        assert width > 1000, "too coarse for a paper"
        assert 0.4 < height / width < 0.8
        assert shows_something(picture)


def test_what_was_drawn_once_does_not_tell_of_an_earlier_step(run_of: Callable[..., Path]) -> None:
    run = run_of([each | {"grad_norm": 1.0} for each in trained(20, 5)])
    assert run / "gradients.png" not in draw(run)
    assert run / "gradients.png" in draw(run, everything=True)
    assert run / "gradients.png" in draw(run)


def test_a_line_that_a_crash_cut_off_is_passed_over(run_of: Callable[..., Path]) -> None:
    run = run_of(trained(20, 5))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "tok')
    assert Curves.read(run).steps == list(range(1, 21))


@pytest.mark.parametrize("entries", [[], [{"step": 1, "tokens": 9, "val_loss": 2.0}], [{"step": 1, "loss": math.nan}]])
def test_a_run_without_numbers_is_a_mistake(entries: Entries, run_of: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no metrics to draw yet"):
        draw(run_of(entries))


def test_a_folder_that_is_no_run_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is it the folder of a run"):
        draw(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_curves_show_the_numbers(run_of: Callable[..., Path]) -> None:
    entries = trained(30, 10)
    curves = Curves.read(run_of(entries))
    axes = loss_figure(curves).axes[0]
    raw, _, validation = axes.lines
    assert list(raw.get_ydata()) == [entry["loss"] for entry in entries if "loss" in entry]
    assert list(validation.get_xdata()) == [10, 20, 30]
    lowest = min(entry["val_loss"] for entry in entries if "val_loss" in entry)
    assert [each.get_text() for each in axes.texts] == [f"{lowest:.3f}"]
    perplexities = perplexity_figure(curves).axes[0].lines[-1].get_ydata()
    assert np.allclose(perplexities, np.exp(validation.get_ydata()))


@pytest.mark.parametrize(("steps", "lowest"), [((0,), 0), ((0, 4, 8), -1), ((30,), 0), ((1, 60), -1)])
def test_the_lowest_value_stands_inside_the_axes(
    steps: tuple[int, ...], lowest: int, run_of: Callable[..., Path]
) -> None:
    entries = trained(60)
    entries += [
        {"step": step, "tokens": step * 256, "val_loss": 2.5 if step == steps[lowest] else 3.0} for step in steps
    ]
    curves = Curves.read(run_of(entries))
    for figure in (loss_figure(curves), perplexity_figure(curves)):
        figure.canvas.draw()
        axes = figure.axes[0]
        frame, label = axes.get_window_extent(), axes.texts[0].get_window_extent()
        assert frame.x0 <= label.x0
        assert label.x1 <= frame.x1


def scheduled(config: ScheduleConfig, steps: int = 60) -> Entries:
    """What a run of this schedule writes, with evaluations over part of both texts."""
    entries = trained(steps, 10)
    for entry in entries:
        step = entry["step"]
        if "loss" in entry:
            entry["lr_factor"] = lr_factor(config, step - 1, (step - 1) / steps)
        else:
            entry["train_loss"] = entry["val_loss"] - 0.2
    return entries


def dotted(axes: Any) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]


def test_the_drop_of_the_learning_rate_is_marked(run_of: Callable[..., Path], tmp_path: Path) -> None:
    dropping = ScheduleConfig(kind="drop", warmup_steps=5, drop_step=25, final_share=0.1)
    axes = loss_figure(Curves.read(run_of(scheduled(dropping)))).axes[0]
    assert dotted(axes) == [25]
    assert "learning rate drops" in [each.get_text() for each in axes.texts]
    out = compare([tmp_path / "run", run_of(scheduled(dropping), "other")], tmp_path / "comparison.png")
    assert shows_something(out)


@pytest.mark.parametrize("kind", ["trapezoid", "cosine", "constant"])
@pytest.mark.parametrize("steps", [3, 60])
def test_a_learning_rate_that_falls_slowly_is_not_marked(kind: Any, steps: int, run_of: Callable[..., Path]) -> None:
    entries = scheduled(ScheduleConfig(kind=kind, warmup_steps=2), steps)
    assert dotted(loss_figure(Curves.read(run_of(entries))).axes[0]) == []


def test_evaluated_training_losses_are_drawn(run_of: Callable[..., Path]) -> None:
    entries = scheduled(ScheduleConfig(kind="constant"))
    lines = {line.get_label(): line for line in loss_figure(Curves.read(run_of(entries))).axes[0].lines}
    evaluated = [entry for entry in entries if "train_loss" in entry]
    assert list(lines["training, evaluated"].get_xdata()) == [entry["step"] for entry in evaluated]
    assert list(lines["training, evaluated"].get_ydata()) == [entry["train_loss"] for entry in evaluated]
    plain = loss_figure(Curves.read(run_of(trained(30, 10), "plain"))).axes[0]
    assert "training, evaluated" not in [line.get_label() for line in plain.lines]


def test_tokens_stand_above_the_steps(run_of: Callable[..., Path]) -> None:
    figure = loss_figure(Curves.read(run_of(trained(30))))
    figure.canvas.draw()
    above = figure.axes[0].child_axes[0]
    assert above.get_xlabel() == "tokens seen"
    assert above.get_xlim() == pytest.approx((0, 30 * 256))


def test_epochs_stand_below_the_steps_where_the_text_was_read_once(run_of: Callable[..., Path]) -> None:
    entries = [{**entry, "epochs": entry["step"] / 9} for entry in trained(30)]
    figure = loss_figure(Curves.read(run_of(entries)))
    figure.canvas.draw()
    above, below = figure.axes[0].child_axes
    assert (above.get_xlabel(), below.get_xlabel()) == ("tokens seen", "epochs")
    assert below.get_xlim() == pytest.approx((0, 30 / 9))
    assert below.get_tightbbox().y1 < figure.axes[0].xaxis.label.get_window_extent().y0
    assert len(loss_figure(Curves.read(run_of(entries[:8], "short"))).axes[0].child_axes) == 1


def test_memory_is_drawn_under_all_there_is(run_of: Callable[..., Path]) -> None:
    entries = trained(30, 10)
    entries[0] |= {"memory_bytes": 3_000_000_000, "memory_total_bytes": 12_000_000_000}
    entries[20] |= {"memory_bytes": 4_000_000_000, "memory_total_bytes": 12_000_000_000}
    run = run_of(entries)
    assert draw(run)[-1] == run / "memory.png"
    assert shows_something(run / "memory.png")
    taken, all_there_is = memory_figure(Curves.read(run)).axes[0].lines
    assert (list(taken.get_xdata()), list(taken.get_ydata())) == ([1, entries[20]["step"]], [3.0, 4.0])
    assert set(all_there_is.get_ydata()) == {12.0}


def test_smoothing_calms_noise_and_begins_without_a_lag(run_of: Callable[..., Path]) -> None:
    noise = np.random.default_rng(1).normal(size=500)
    entries = [{"step": n, "tokens": n, "loss": 5.0 + float(each)} for n, each in enumerate(noise, start=1)]
    curves = Curves.read(run_of(entries))
    smoothed = curves.smoothed()
    assert smoothed[0] == curves.losses[0]
    assert np.std(smoothed[50:]) < 0.4 * np.std(curves.losses)
    assert np.mean(smoothed[50:]) == pytest.approx(np.mean(curves.losses), abs=0.1)


def test_one_wild_step_does_not_press_the_curve_flat(run_of: Callable[..., Path]) -> None:
    entries = trained(500)
    entries[250]["loss"] = 1000.0
    low, high = loss_figure(Curves.read(run_of(entries))).axes[0].get_ylim()
    assert low < 2
    assert high < 150


def test_runs_are_compared_in_one_picture(run_of: Callable[..., Path], tmp_path: Path) -> None:
    runs = [run_of(trained(20 + number, 5), f"run-{number}") for number in range(7)]
    runs.append(run_of(trained(3), "not-evaluated"))
    out = compare(runs, tmp_path / "comparison.png")
    assert out == tmp_path / "comparison.png"
    assert shows_something(out)


def test_a_comparison_shows_both_losses_of_each_run_over_tokens(
    run_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr("hornbook.report.comparison.save_picture", lambda figure, out: saved.append(figure))
    runs = [run_of(trained(steps, 5), name) for steps, name in ((20, "13m"), (40, "2b"))]
    compare(runs, tmp_path / "comparison.png")
    axes = saved[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["13m", "2b", "training", "validation"]
    for number, run in enumerate(runs):
        training, validation = axes.lines[2 * number : 2 * number + 2]
        curves = Curves.read(run)
        assert list(training.get_xdata()) == [step * 256 for step in curves.steps]
        assert list(training.get_ydata()) == curves.smoothed()
        assert list(validation.get_ydata()) == curves.val_losses
        assert training.get_color() == validation.get_color()


def test_the_lengths_that_a_run_had_are_drawn_beside_one_another(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(trained(200, 20))
    out = draw_lengths(run, [200, 50, 100])
    assert out == run / "lengths.png"
    assert shows_something(out)
    saved: list[Any] = []
    monkeypatch.setattr("hornbook.report.comparison.save_picture", lambda figure, out: saved.append(figure))
    draw_lengths(run, [200, 50, 100])
    for axes, step in zip(saved[0].axes, (50, 100, 200), strict=True):
        short = Curves.read(run_of(trained(step, 20), f"as-it-was-at-{step}"))
        raw, smoothed, validation = axes.lines
        assert list(raw.get_ydata()) == short.losses
        assert list(smoothed.get_ydata()) == short.smoothed()
        assert list(validation.get_xdata()) == short.val_steps
        assert axes.get_ylim() == saved[0].axes[0].get_ylim()
    for steps, says in (([201], "train.steps 201"), ([0, 5], "steps of the run"), ([], "steps of the run")):
        with pytest.raises(UserError, match=says):
            draw_lengths(run, steps)


@pytest.mark.parametrize("name", ["红楼梦 _a$b$c $x_{", "x" * 200 + "\U0010ffff"])
def test_a_run_of_any_name_is_drawn_without_a_complaint(
    name: str, run_of: Callable[..., Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    runs = [run_of(trained(20, 5), name), run_of(trained(10, 5), "plain")]
    assert all(shows_something(each) for each in draw(runs[0]))
    compare(runs, tmp_path / "comparison.png")
    assert [str(each.message) for each in recwarn] == []


def test_letters_without_a_font_are_spelt_out_and_others_find_theirs() -> None:
    from matplotlib.font_manager import fontManager, get_font

    own = next(each.fname for each in fontManager.ttflist if each.name == "DejaVu Sans")
    known, other = get_font(own).get_charmap(), next(each for each in fontManager.ttflist if each.name == "STIXGeneral")
    letter = next(chr(code) for code in sorted(get_font(other.fname).get_charmap()) if code not in known and code > 255)
    [found], fonts = drawable([f"a{letter}"])
    assert found == f"a{letter}"
    assert len(fonts) > 1
    nowhere = "\U0010fffe"
    [spelt], fonts = drawable([f"a{nowhere}"])
    assert spelt == "a\\U0010fffe"
    with_dollars, hidden = drawable(["a$b$", "_x"])[0]
    assert (with_dollars, hidden) == ("a\\$b\\$", " _x")


def test_the_users_own_matplotlib_is_left_alone(run_of: Callable[..., Path]) -> None:
    run = run_of(trained(20, 5))
    plain = matplotlib.get_backend()
    with matplotlib.rc_context({"font.size": 23}):
        try:
            pyplot.switch_backend("svg")
            figure, before = pyplot.figure(), dict(matplotlib.rcParams)
            draw(run)
            compare([run, run], run / "comparison.png")
            assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == (before, "svg")
            assert pyplot.get_fignums() == [figure.number]
            assert pyplot.gcf() is figure
        finally:
            pyplot.switch_backend(plain)
