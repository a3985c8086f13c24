"""What the Hugging Face hub shows of a model, and a page on which it answers.

In: a model folder, and the run that it lies in, where it lies in one.  Out: `README.md` (a model card: a head for the
hub's machines, the rest for people), `app.py` with `requirements.txt` for a Space, and the run's `loss.png`. Every
sentence follows from the model and its run; of a folder without a run the card says no more than the folder does. Names
are what somebody called a file: they stand there as letters, and mean nothing to Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from hornbook.base import files
from hornbook.base.console import count, duration, warn
from hornbook.base.errors import UserError, folded
from hornbook.base.output import visible
from hornbook.exchange.gguf import ARCHITECTURES
from hornbook.model.config import ModelConfig
from hornbook.model.folder import load_config
from hornbook.model.shapes import shape_of
from hornbook.runs.folder import RECORD, SNAPSHOTS, Record, RunFolder, step_of
from hornbook.runs.logs import evaluations, read_log
from hornbook.shards.format import Shards
from hornbook.text.corpora import find_corpus
from hornbook.text.readers import name_of

TEMPLATE = "card.md.jinja"
SMALL = 7e9  # parameters
CARD, APP, NEEDS, PICTURE = "README.md", "app.py", "requirements.txt", "loss.png"
# What the app was tried with. The hub brings gradio; whoever starts it at home has to.
NEEDED = "torch>=2.11\ntransformers>=5,<6\ngradio>=6,<7\n"
# Of Markdown, with what a backslash takes its meaning; of HTML and links, which a number does.
MARKUP, MARKED = re.compile(r"[\\`*_\[\]#|~$]"), re.compile(r"[<>&]|(?<=\w)@(?=\w)|(?<=www)\.|:(?=//)")
PLAIN = re.compile(r"[\w ,.'?!-]+")  # as it stands, between the quotes of a shell or of Python


def write_card(folder: Path, staging: Path, dtype: str, with_code: bool) -> None:
    """Put the card and the app of the model in `folder` beside what was exported of it."""
    known = Known.of(folder)
    picture = known.run / PICTURE if known.run is not None else None
    if picture is not None and picture.is_file():
        files.write_bytes(staging / PICTURE, picture.read_bytes())
    pictured = PICTURE if (staging / PICTURE).is_file() else None
    text = as_far_as_known(known, lambda known: _card(known, dtype, with_code, pictured))
    files.write_text(staging / CARD, text)
    files.write_bytes(staging / APP, Path(__file__).with_name("space.py").read_bytes())
    files.write_text(staging / NEEDS, NEEDED)


def as_far_as_known(known: Known, write: Callable[[Known], str]) -> str:
    """What is written of a model; of one whose run is damaged, without that."""
    try:
        return write(known)
    except (KeyError, TypeError, ValueError, AttributeError, jinja2.TemplateError):
        if known.run is None:
            raise
        warn(f"{known.run}: its {RECORD} or its logs are damaged, so the model card says nothing of it")
        return write(Known(known.name, known.model))


def _card(known: Known, dtype: str, with_code: bool, picture: str | None) -> str:
    shape = shape_of(known.model)
    forms = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    forms.filters["letters"] = letters
    return forms.from_string(Path(__file__).with_name(TEMPLATE).read_text("utf-8")).render(
        known=known,
        times_read=known.times_read,
        model=known.model,
        config=known.config,
        manifest=known.manifest,
        head=_head(known, with_code).rstrip("\n"),
        shape=shape,
        goes_to_gguf=shape in ARCHITECTURES,
        dtype=dtype,
        with_code=with_code,
        picture=picture,
        app=APP,
        needs=NEEDS,
        count=lambda value: count(float(value)),
        duration=duration,
        visible=visible,
        whole="{:,}".format,
    )


def letters(name: object) -> str:
    """A name in Markdown, inside a line: each of its letters as it is, whatever they mean together."""
    bare = MARKED.sub(lambda found: f"\0{ord(found[0])};", folded(str(name)))
    return MARKUP.sub(r"\\\g<0>", bare).replace("\0", "&#")


@dataclass(frozen=True)
class Known:
    """What can be said of a model; of one without a run, the first two."""

    name: str
    model: ModelConfig
    run: Path | None = None
    record: Record | None = None
    step: int = 0
    rounded: bool = False
    trained: dict[str, Any] | None = None  # the log's entry of the model's step
    evaluated: dict[str, Any] | None = None
    samples: tuple[dict[str, Any], ...] = ()
    data: str = ""
    manifest: dict[str, Any] | None = None

    @classmethod
    def of(cls, folder: Path) -> Known:
        folder, model = folder.resolve(), load_config(folder)
        run = RunFolder(folder.parent.parent)
        try:
            record = run.record()
            step, data = step_of(folder), name_of(Path(str(record.config["data"])))
        except (UserError, KeyError, TypeError, ValueError):
            return cls(folder.name, model)
        log = [each for each in read_log(run.metrics) if each.get("step") == step]
        try:
            manifest = Shards.open(record.shards).manifest
        except UserError:  # the cache was cleared
            manifest = None
        return cls(
            name=run.path.name,
            model=model,
            run=run.path,
            record=record,
            step=step,
            rounded=folder.parent.name == SNAPSHOTS,
            trained=next((each for each in log if each.get("loss") is not None), None),
            evaluated=next(reversed(evaluations(log)), None),
            samples=tuple(each for each in read_log(run.samples) if each.get("step") == step),
            data=str(manifest["name"]) if manifest else data,
            manifest=manifest,
        )

    @property
    def config(self) -> dict[str, Any]:
        return self.record.config if self.record else {}

    @property
    def times_read(self) -> float | None:
        if self.trained is None or self.manifest is None:
            return None
        return float(self.trained["tokens"] / self.manifest["splits"]["train"]["tokens"])

    @property
    def measures(self) -> dict[str, float]:
        names = {"loss": "val_loss", "perplexity": "val_perplexity", "bits per byte": "val_bits_per_byte"}
        entry = self.evaluated or {}
        return {kind: float(entry[name]) for kind, name in names.items() if entry.get(name) is not None}

    @property
    def from_scratch(self) -> bool:
        return self.record is not None and self.config.get("start_from") is None

    @property
    def start(self) -> str:
        return Path(str(self.config["start_from"])).name

    @property
    def source(self) -> str:
        """Where its text is from."""
        name = str(self.config["data"])
        try:
            corpus, _ = find_corpus(name)
        except UserError:
            return f"From {letters(self.data)}, a text of the owner's."
        origin = f"From {corpus.origin}; " if corpus.local is None else ""
        return f"The corpus {letters(name)}: {corpus.about}. {origin}licence: {corpus.licence}."

    @property
    def limits(self) -> Iterator[str]:
        """What it cannot do, a sentence or two each."""
        yield (
            "It continues text, and was not taught to answer, to follow instructions, to refuse, or to be harmless. "
            "Nothing filters what it writes."
        )
        yield "It states what is false as readily as what is true; nothing in it checks."
        if (parameters := self.model.n_params()) < SMALL:
            small = f"With {count(float(parameters))} parameters it is small beside the models that people talk to"
            yield f"{small}: expect less of it."
        yield f"It sees {self.model.context:,} tokens at once, and knows nothing of what came before them."
        if self.from_scratch:
            yield f"All that it knows is from {self.data}: its language, its subjects, and its faults."
        recites = "may recite from it word for word: names, numbers and what is protected included."
        if (times := self.times_read or 0) >= 2:
            yield f"It read its text {times:.1f} times over, and {recites}"
        elif self.record is not None:
            yield f"It {recites.replace('from it', 'from its text')}"
        if self.measures:
            yield "The figures above are of text of the same kind as it was trained on; on other text they are worse."

    @property
    def prompt(self) -> str:
        """One that stands as it is between quotes."""
        return next((each["prompt"] for each in self.samples if PLAIN.fullmatch(each["prompt"])), "Once upon a time")


def _head(known: Known, with_code: bool) -> str:
    """In the hub's own words. It names no licence and no language: those are the owner's to say."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for kind, value in known.measures.items():
        result = EvalResult(
            task_type="text-generation",
            dataset_type=known.data,
            dataset_name=known.data,
            dataset_split="validation",
            metric_type=kind.replace(" ", "_"),
            metric_name=kind,
            metric_value=round(value, 4),
        )
        results.append(result)
    tags = [
        "hornbook",
        *(["custom_code"] if with_code else []),
        *(["trained-from-scratch"] if known.from_scratch else []),
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        model_name=known.name,
        eval_results=results or None,
    ).to_yaml()
