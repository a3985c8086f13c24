"""Hornbook trains GPT-style language models from scratch. From Python:

    run = hornbook.fit("demo", train={"minutes": 1})   # or data="my-text.txt"
    run.loss_curve()                                   # shown in a notebook
    run = hornbook.open_run("runs/demo")               # also one of the command line
    model = run.model()                                # or hornbook.load("runs/demo")
    print(model.generate("def "))

Nothing heavy is imported until one of these is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.base.machine import share_the_cores
from hornbook.base.output import going_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from hornbook.infer.speaker import Speaker
    from hornbook.report.curves import Curves
    from hornbook.report.finding import Finding
    from hornbook.shards.format import Shards
    from hornbook.train.config import RunConfig

__all__ = ["Picture", "TrainedRun", "fit", "list_runs", "load", "open_run", "prepare_text"]


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure that a notebook shows by itself."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        import io

        data = io.BytesIO()
        self.figure.savefig(data, format="png", dpi=110)
        return data.getvalue()


@dataclass(frozen=True)
class TrainedRun:
    """A run folder, and how the run in it ended."""

    folder: Path
    ended: str = ""
    """Of a run that was opened, nothing: its metrics tell how far it came."""

    def model(self, at: str = "best") -> Speaker:
        """The trained model; `at` names its checkpoint: best, newest, or a step."""
        return load(self.folder, at)

    def metrics(self) -> list[dict[str, Any]]:
        """Every step and every evaluation, as written (docs/metrics.md)."""
        from hornbook.runs.folder import RunFolder
        from hornbook.runs.logs import read_log

        return read_log(RunFolder(self.folder).metrics)

    def frame(self) -> DataFrame:
        """The metrics as pandas has them, a row a step with what was evaluated after it."""
        from hornbook.base.errors import UserError
        from hornbook.runs.logs import by_step

        try:
            import pandas
        except ImportError:
            raise UserError("frame: needs pandas (pip install pandas); metrics() is the same as a list") from None
        return pandas.DataFrame(by_step(self.metrics()))

    def curves(self) -> Curves:
        """The losses and rates as columns, from which pictures are drawn."""
        from hornbook.report.curves import Curves

        return Curves.read(self.folder)

    def findings(self) -> list[Finding]:
        """What went wrong in it, or could go better: each with its evidence, and one thing to do."""
        from hornbook.report.doctor import examine

        return examine(self.folder)

    def report(self) -> Path:
        """Writes `report.html` into its folder, one page that says how it went; its snapshots are asked for it."""
        from hornbook.infer.looking_back import look_back
        from hornbook.report.run_page import write_report

        look_back(self.folder)
        return write_report(self.folder)[0]

    def loss_curve(self) -> Picture:
        """Training and validation loss over steps and tokens."""
        from hornbook.report.curves import Curves, loss_figure

        return Picture(loss_figure(Curves.read(self.folder)))

    def perplexity_curve(self) -> Picture:
        from hornbook.report.curves import Curves, perplexity_figure

        return Picture(perplexity_figure(Curves.read(self.folder)))

    def gradient_curve(self) -> Picture:
        """The gradients' norm, and the learning rates."""
        from hornbook.report.curves import Curves, gradient_figure

        return Picture(gradient_figure(Curves.read(self.folder)))

    @going_on()
    def resume(self, **train: Any) -> TrainedRun:
        """Go on, until a new end: `run.resume(minutes=10)`."""
        from hornbook.train.start import resume

        return TrainedRun(self.folder, resume(self.folder, {"train": train}).reason)


@going_on()
def fit(
    config: RunConfig | str | None = None, *, out: str | Path | None = None, tiny: bool = False, **knobs: Any
) -> TrainedRun:
    """Train a model from nothing.

    `config` is a recipe's name, a text or a RunConfig; with a text and no recipe, sizes are chosen from the amount of
    text. Knobs are nested as in a file: `fit("demo", seed=2, model={"n_layer": 2}, train={"minutes": 1})`.
    With `tiny`, the run's miniature: seconds on a laptop.
    """
    share_the_cores()
    from hornbook.recipes import compose
    from hornbook.train.start import fit as fit_run
    from hornbook.train.start import free_folder

    composed = compose(config, knobs, tiny, measured=True)
    folder = Path(out) if out is not None else free_folder(composed)
    return TrainedRun(folder, fit_run(composed, folder, turned=knobs).reason)


def open_run(path: str | Path) -> TrainedRun:
    """A run that lies there, also of the command line: `open_run("runs/demo").metrics()`, `.model()`, `.curves()`."""
    from hornbook.base.errors import UserError
    from hornbook.runs.folder import RECORD, RunFolder, did_you_mean

    if not RunFolder(Path(path)).has_record():
        raise UserError(f"{path}: no run (no {RECORD})" + did_you_mean(Path(path)))
    return TrainedRun(Path(path))


def list_runs(folder: str | Path = "runs") -> DataFrame:
    """The runs in a folder as pandas has them: a row a run, with what it came to and all of its settings."""
    from hornbook.base.errors import UserError
    from hornbook.report.results import rows_of, runs_in

    try:
        import pandas
    except ImportError:
        raise UserError("list_runs: needs pandas (pip install pandas); hornbook report --to csv has the same") from None
    return pandas.DataFrame(rows_of(runs_in(Path(folder))))


def load(path: str | Path, at: str = "best", device: str | None = None) -> Speaker:
    """A trained model, from a run or a model folder: it generates, streams, scores, embeds, encodes and decodes."""
    share_the_cores()
    from hornbook.infer.speaker import load_speaker

    return load_speaker(Path(path), at, device)


def prepare_text(
    data: str | Path, *, out: str | Path | None = None, workers: int | str | None = None, **knobs: Any
) -> Shards:
    """Text to tokens on disk: `prepare_text("my-text.txt", tokenizer={"kind": "bpe"})`. `data` may also be a corpus's
    name; `workers` are processes that share the work, or say where Ray is (docs/text.md)."""
    from hornbook.base.console import warn
    from hornbook.shards.prepare import PrepareConfig, default_folder, prepare, too_little
    from hornbook.shards.workers import workers_from
    from hornbook.text.corpora import find_source

    config = PrepareConfig().with_(**knobs)
    source = find_source(str(data), config.text)
    folder = Path(out) if out is not None else default_folder(source, config.tokenizer, config.shards)
    by = None if workers is None else workers_from(str(workers))
    shards = prepare(source, config.tokenizer, config.shards, folder, workers=by)
    if doubt := too_little(shards):
        warn(doubt)
    return shards
