"""What the Hugging Face hub shows of a model, and a page on which it answers.

In: a model folder, and the run that it lies in, where it lies in one.  Out: `README.md` (a model card: a head for the
hub's machines, the rest for people), `app.py` with `requirements.txt` for a Space, and the run's `loss.png`. Every
sentence follows from the model and its run; of a folder without a run the card says no more than the folder does. Names
are what somebody called a file: they stand there as letters, and mean nothing to Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import count, duration, warn
from hornbook.base.errors import UserError, folded
from hornbook.base.logs import read_log
from hornbook.base.output import visible
from hornbook.exchange.gguf import ARCHITECTURES
from hornbook.model.config import ModelConfig
from hornbook.model.folder import RUN, SNAPSHOTS, load_config, step_of
from hornbook.model.shapes import shape_of
from hornbook.shards.format import Shards
from hornbook.text.corpora import find_corpus
from hornbook.text.readers import name_of

CARD, APP, NEEDS, PICTURE = "README.md", "app.py", "requirements.txt", "loss.png"
# What the app was tried with. The hub brings gradio; whoever starts it at home has to.
NEEDED = "torch>=2.11\ntransformers>=5,<6\ngradio>=6,<7\n"
MANY_TIMES = 2.0  # so often read, a text is remembered in part rather than learned from
LARGE = 7e9
MOST_SAMPLES, LINES_OF_A_SAMPLE = 3, 20
# Of Markdown, with what a backslash takes its meaning; of HTML and links, which a number does.
MARKUP, MARKED = re.compile(r"[\\`*_\[\]#|~$]"), re.compile(r"[<>&]|(?<=\w)@(?=\w)|(?<=www)\.|:(?=//)")
PLAIN = re.compile(r"[\w ,.'?!-]+")  # as it stands, between the quotes of a shell or of Python


def write_card(folder: Path, staging: Path, dtype: str, with_code: bool) -> None:
    """Put the card and the app of the model in `folder` beside what was exported of it."""
    known = Known.of(folder)
    picture = known.run / PICTURE if known.run is not None else None
    if picture is not None and picture.is_file():
        files.write_bytes(staging / PICTURE, picture.read_bytes())
    pictured = (staging / PICTURE).is_file()
    try:
        text = _card(known, dtype, with_code, pictured)
    except (KeyError, TypeError, ValueError, AttributeError):
        if known.run is None:
            raise
        warn(f"{known.run}: its {RUN} or its logs are damaged, so the model card tells nothing of it")
        text = _card(Known(known.name, known.model), dtype, with_code, pictured)
    files.write_text(staging / CARD, text)
    files.write_bytes(staging / APP, Path(__file__).with_name("space.py").read_bytes())
    files.write_text(staging / NEEDS, NEEDED)


def _card(known: Known, dtype: str, with_code: bool, pictured: bool) -> str:
    lines = [
        *("---", _head(known, with_code), "---", "", f"# {letters(known.name)}", ""),
        *_first_words(known),
        *_model(known, dtype),
        *_data(known),
        *_training(known),
        *_evaluation(known, pictured),
        *_samples(known),
        *_limits(known),
        *_use(known, with_code),
    ]
    return "\n".join(lines)


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
    record: dict[str, Any] | None = None
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
        run = folder.parent.parent
        try:
            record = files.read_json(run / RUN)
            config, shards = record["config"], Path(record["data"]["folder"])
            step, data = step_of(folder), name_of(Path(str(config["data"])))
        except (UserError, KeyError, TypeError, ValueError):
            return cls(folder.name, model)
        log = [each for each in read_log(run / "metrics.jsonl") if each.get("step") == step]
        try:
            manifest = Shards.open(shards).manifest
        except UserError:  # the cache was cleared
            manifest = None
        return cls(
            name=run.name,
            model=model,
            run=run,
            record=record,
            step=step,
            rounded=folder.parent.name == SNAPSHOTS,
            trained=next((each for each in log if each.get("loss") is not None), None),
            evaluated=next((each for each in log if each.get("val_loss") is not None), None),
            samples=tuple(each for each in read_log(run / "samples.jsonl") if each.get("step") == step),
            data=str(manifest["name"]) if manifest else data,
            manifest=manifest,
        )

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"] if self.record else {}

    @property
    def times_read(self) -> float | None:
        if self.trained is None or self.manifest is None:
            return None
        return float(self.trained["tokens"] / self.manifest["splits"]["train"]["tokens"])


def _head(known: Known, with_code: bool) -> str:
    """In the hub's own words. It names no licence and no language: those are the owner's to say."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for kind, value in _measures(known):
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
        *(["trained-from-scratch"] if _from_scratch(known) else []),
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        model_name=known.name,
        eval_results=results or None,
    ).to_yaml()


def _measures(known: Known) -> list[tuple[str, float]]:
    names = {"loss": "val_loss", "perplexity": "val_perplexity", "bits per byte": "val_bits_per_byte"}
    entry = known.evaluated or {}
    return [(kind, entry[name]) for kind, name in names.items() if entry.get(name) is not None]


def _from_scratch(known: Known) -> bool:
    return known.record is not None and known.config.get("start_from") is None


def _first_words(known: Known) -> Iterator[str]:
    about = f"A language model of {count(float(known.model.n_params()))} parameters"
    if known.record is None:
        yield f"{about}, exported with Hornbook. It continues text. How it was trained is not known here."
    elif _from_scratch(known):
        yield f"{about}, trained from nothing on {letters(known.data)} with Hornbook. It continues text."
    else:
        start = Path(str(known.config["start_from"])).name
        begun = f"which began with the weights of {letters(start)} and was trained on {letters(known.data)}"
        yield f"{about}, {begun} with Hornbook."
    yield ""


def _model(known: Known, dtype: str) -> Iterator[str]:
    model, kind = known.model, shape_of(known.model)
    keys = f", {model.kv_heads} for keys and values" if model.kv_heads != model.n_head else ""
    yield from _table(
        "## The model",
        [
            (
                "parameters",
                f"{model.n_params():,}, of them {model.n_params(embeddings=False):,} outside embedding and head",
            ),
            ("layers", str(model.n_layer)),
            ("heads", f"{model.n_head}{keys}"),
            ("width", f"{model.n_embd:,}"),
            ("context", f"{model.context:,} tokens"),
            ("vocabulary", f"{model.known_vocab_size:,} tokens"),
            ("shape", f"`{kind}` of transformers" if kind else "none that transformers has"),
            ("weights stored as", dtype),
        ],
    )


def _data(known: Known) -> Iterator[str]:
    if known.record is None:
        return
    yield from ["## The data", ""]
    try:
        corpus, _ = find_corpus(str(known.config["data"]))
        origin = f"From {corpus.origin}; " if corpus.local is None else ""
        yield f"The corpus {letters(known.config['data'])}: {corpus.about}. {origin}licence: {corpus.licence}."
    except UserError:
        yield f"From {letters(known.data)}, a text of the owner's."
    yield ""
    if known.manifest is not None:
        rows = []
        for name, meaning in (("train", "to train on"), ("val", "to validate"), ("test", "to test")):
            if facts := known.manifest["splits"].get(name):
                size = f"{count(float(facts['bytes_of_text']))}B of text, {facts['tokens']:,} tokens"
                rows.append((meaning, f"{size}, {facts['documents']:,} documents"))
        rows.append(("held back by", letters(known.manifest["split_rule"])))
        rows.append(("tokenizer", f"{letters(known.manifest['tokenizer'])}, {known.manifest['vocab_size']:,} entries"))
        yield from _table("", rows)


def _training(known: Known) -> Iterator[str]:
    if known.record is None:
        return
    config, machine = known.config, known.record.get("machine", {})
    train, optim, schedule = config["train"], config["optim"], config["schedule"]
    rows = [("recipe", letters(config["recipe"])), ("steps", f"{known.step:,}")]
    if known.trained is not None:
        times = f", {known.times_read:.1f} times its text" if known.times_read else ""
        rows.append(("tokens read", f"{known.trained['tokens']:,}{times}"))
        rows.append(
            ("time", f"{duration(known.trained['seconds'])} on {letters(machine.get('name', 'an unknown machine'))}")
        )
    rates = f"learning rate {optim['lr']:g}" + (
        f", of matrices {optim['matrix_lr']:g}" if optim["kind"] == "muon" else ""
    )
    rows += [
        ("tokens a step", f"{train['batch_tokens']:,}"),
        ("optimizer", f"{optim['kind']}, {rates}, weight decay {optim['weight_decay']:g}"),
        ("schedule", f"{schedule['kind']}, {schedule['warmup_steps']} steps of warmup"),
        ("dropout", f"{known.model.dropout:g}"),
        ("computed in", f"{letters(machine.get('dtype', 'unknown'))}, weights in float32"),
        ("seed", str(config["seed"])),
        ("torch", letters(machine.get("torch", "unknown"))),
    ]
    yield from _table("## The training", rows)


def _evaluation(known: Known, pictured: bool) -> Iterator[str]:
    measures = _measures(known)
    if not measures and not pictured:
        return
    yield from ["## How good it is", ""]
    if pictured:
        yield from [f"![Training and validation loss by steps]({PICTURE})", ""]
    if not measures:
        return
    part = known.config["train"].get("eval_batches") is not None
    tokens = f"{known.manifest['splits']['val']['tokens']:,} tokens" if known.manifest else "the text"
    on = f"{'a part of ' if part else ''}{tokens} of {letters(known.data)}"
    yield f"On {on} that it was not trained on, at step {known.step:,}:"
    yield ""
    rows = [(kind, f"{value:.4f}" if kind != "perplexity" else f"{value:.2f}") for kind, value in measures]
    sticks = known.manifest["splits"]["val"].get("yardsticks", {}) if known.manifest else {}
    rows += [(f"bits per byte of `{program}`, for scale", f"{bits:.4f}") for program, bits in sticks.items()]
    yield from _table("", rows)
    if known.rounded:
        yield from ["These weights were rounded to float16 after that.", ""]


def _samples(known: Known) -> Iterator[str]:
    if not known.samples:
        return
    yield from ["## What it says", "", f"At step {known.step:,}, the first that was drawn, not the best:", ""]
    for each in known.samples[:MOST_SAMPLES]:
        lines = visible(f"{each['prompt']}{each['text']}").splitlines()
        yield from (f"    {line}" for line in lines[:LINES_OF_A_SAMPLE])
        yield ""


def _limits(known: Known) -> Iterator[str]:
    model = known.model
    yield from ["## What it cannot do", ""]
    yield (
        "- It continues text, and was not taught to answer, to follow instructions, to refuse, or to be harmless. "
        "Nothing filters what it writes."
    )
    yield "- It states what is false as readily as what is true; nothing in it checks."
    if (size := model.n_params()) < LARGE:
        small = f"- With {count(float(size))} parameters it is small beside the models that people talk to"
        yield f"{small}: expect less of it."
    yield f"- It sees {model.context:,} tokens at once, and knows nothing of what came before them."
    if _from_scratch(known):
        yield f"- All that it knows is from {letters(known.data)}: its language, its subjects, and its faults."
    if known.times_read is not None and known.times_read >= MANY_TIMES:
        yield (
            f"- It read its text {known.times_read:.1f} times over, and may recite from it word for word: "
            "names, numbers and what is protected included."
        )
    elif known.record is not None:
        yield "- It may recite from its text word for word: names, numbers and what is protected included."
    if _measures(known):
        yield "- The figures above are of text of the same kind as it was trained on; on other text they are worse."
    yield ""


def _use(known: Known, with_code: bool) -> Iterator[str]:
    trust = ", trust_remote_code=True" if with_code else ""
    prompt = next((each["prompt"] for each in known.samples if PLAIN.fullmatch(each["prompt"])), "Once upon a time")
    yield from [
        "## How to use it",
        "",
        "With transformers, from this folder or by its name on the hub:",
        "",
        "```python",
    ]
    yield "from transformers import pipeline"
    yield ""
    yield f'speak = pipeline("text-generation", "."{trust})'
    yield f'print(speak("{prompt}", max_new_tokens=50)[0]["generated_text"])'
    yield from [
        "```",
        "",
        "With Hornbook, and for llama.cpp by way of it:" if _goes_to_gguf(known) else "With Hornbook:",
    ]
    yield from ["", "```", f'hornbook generate . --prompt "{prompt}"']
    if _goes_to_gguf(known):
        yield "hornbook export . --to gguf --out model.gguf"
        yield f'llama-cli -m model.gguf -p "{prompt}"'
    yield from ["```", "", f"`{APP}` is a page on which it answers: `pip install -r {NEEDS}`, then `python {APP}`;"]
    yield "or a Space of the hub that holds both files, with a variable `MODEL_ID` that names this model there."
    yield from ["", "No licence is named above; that is for the owner to add.", ""]


def _goes_to_gguf(known: Known) -> bool:
    return shape_of(known.model) in ARCHITECTURES


def _table(heading: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield from [heading, ""] if heading else []
    yield from ["| | |", "| --- | --- |"]
    yield from (f"| {name} | {value} |" for name, value in rows)
    yield ""
