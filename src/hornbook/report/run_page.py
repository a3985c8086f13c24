"""The report of a run: one page that says how it went.

In: a run folder, of which run.json and the logs are read.  Out: `report.html` in it: findings, curves to look into,
what each of its snapshots says to the same prompts, its text and machine, and all of its settings.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.console import count, duration
from hornbook.base.errors import UserError
from hornbook.base.names import own_version
from hornbook.base.settings import flat
from hornbook.base.stored import stored
from hornbook.model.config import ModelConfig
from hornbook.report.curves import RATES, Curves
from hornbook.report.doctor import findings
from hornbook.report.finding import Finding
from hornbook.report.observed import Numbers, Observed, observed
from hornbook.report.offline import page, save_page
from hornbook.report.thinning import thinned
from hornbook.runs.answers import Answers, Asked
from hornbook.runs.folder import Record, RunFolder
from hornbook.runs.logs import evaluations, read_log
from hornbook.shards.format import Shards

REPORT = "report.html"
# Of the main curve, into which one looks closely, and of the others.
POINTS, FEWER_POINTS = 12_000, 4_000
# Of a line behind another one.
NOISE = {"quiet": True, "noisy": True}
RATES_OVER = 200  # parts of a run, for each of which a throughput is told
MOST_EVALUATIONS_SHOWN, MOST_ASKED, LONGEST_SAID = 60, 120, 2_000
OF_THE_WHOLE = "run"
# Rules of sampling that change nothing.
UNFELT = {"repetition_penalty": 1.0, "presence_penalty": 0.0}


@dataclass(frozen=True)
class Told:
    """A run, as it lies there."""

    name: str
    seen: Observed
    entries: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    record: Record | None
    shards: Shards | None
    findings: list[Finding] = field(default_factory=list)
    answers: Answers | None = None

    @classmethod
    def of(cls, run: Path) -> Told:
        folder, record, shards = RunFolder(run), None, None
        entries = read_log(folder.metrics)
        if not any(isinstance(each.get("loss"), int | float) for each in entries):
            Curves.read(run)  # which says what is missing
        with contextlib.suppress(UserError):
            record = folder.record()
            shards = Shards.open(record.shards)
        seen = observed(run, entries)
        said = read_log(folder.samples)
        return cls(run.resolve().name, seen, entries, said, record, shards, findings(seen), Answers.of(folder))

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation, or that of the best model on all of the text."""
        evaluated = evaluations(self.entries)
        if evaluated and "tokens" not in evaluated[-1]:
            return evaluated[-1]
        finite = [each for each in evaluated if math.isfinite(each["val_loss"])]
        return min(finite, key=lambda each: float(each["val_loss"]), default=None)

    @property
    def bits(self) -> float | None:
        """Bits for each byte of text that a nat for each token is."""
        best = self.best or {}
        if not best.get("val_bits_per_byte") or not best.get("val_loss"):
            return None
        return float(best["val_bits_per_byte"] / best["val_loss"])


def write_report(run: Path, told: Told | None = None) -> tuple[Path, list[Finding]]:
    """Where it lies, and what was found."""
    told = told or Told.of(run)
    return save_page(page("run.html.jinja", drawn(told), **written(told)), run / REPORT), told.findings


def drawn(told: Told) -> dict[str, Any]:
    """What the script draws."""
    seen, bits = told.seen, told.bits
    steps = seen["step"]
    losses = line_of("each step", "raw", steps, seen["loss"], POINTS) | NOISE
    smooth = line_of("training", "train", steps, smoothed(seen["loss"]), FEWER_POINTS)
    val = _evaluated(told, "val_loss", "validation", "val")
    trained = _evaluated(told, "train_loss", "training, evaluated", "trained")
    main = [each | {"bits": bits} for each in (losses, smooth, trained, val) if each["points"]]
    measures = ["loss", "perplexity", *(["bits per byte"] if bits else [])]
    charts: list[dict[str, Any]] = [{"name": "Loss", "lines": main, "measures": measures, "marks": _marks(told)}]
    charts += (each for each in _more_charts(told) if any(line["points"] for line in each["lines"]))
    first = min((line["points"][0][0] for line in main if line["points"]), default=0)
    return {"whole": [min(first, 1), max(seen.step, 2)], "of": "step", "charts": charts, "samples": _samples(told)}


def _more_charts(told: Told) -> Iterator[dict[str, Any]]:
    seen = told.seen
    steps = seen["step"]
    rates = {name: column(told.entries, name) for name in RATES}
    looks = ("train", "second", "third")
    lines = [
        line_of(RATES[name], look, at, values, FEWER_POINTS)
        for look, (name, (at, values)) in zip(looks, rates.items(), strict=True)
    ]
    yield {"name": "Learning rates", "lines": [line for line in lines if line["points"]]}
    norms = line_of("gradient norm", "raw", steps, seen["grad_norm"], POINTS) | NOISE
    smooth = line_of("gradient norm", "train", steps, smoothed(seen["grad_norm"]), FEWER_POINTS)
    yield {"name": "Gradient norm", "lines": [norms, smooth], "log": True}
    yield {
        "name": "Size of an update beside the weights",
        "lines": [line_of("update", "train", steps, seen["update_ratio"], FEWER_POINTS)],
        "log": True,
    }
    yield {"name": "Tokens a second", "lines": [line_of("tokens a second", "train", *throughput(seen), FEWER_POINTS)]}
    at, taken = column(told.entries, "memory_bytes")
    _, there = column(told.entries, "memory_total_bytes")
    memory = [line_of("taken", "train", at, taken / 1e9, FEWER_POINTS)]
    if len(there):
        memory.append(line_of("all there is", "third", at[[0, -1]], there[[0, -1]] / 1e9, FEWER_POINTS))
    yield {"name": "Memory of the accelerator, GB", "lines": memory}


def smoothed(values: Numbers) -> Numbers:
    """A mean over about a fiftieth of the run; nothing of steps without a number."""
    width = max(len(values) // 50, 1)
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - width, 0)
    with np.errstate(invalid="ignore"):
        means: Numbers = (sums[ends] - sums[begins]) / (counts[ends] - counts[begins])
    return means


def throughput(seen: Observed) -> tuple[Numbers, Numbers]:
    """Tokens a second over parts of the run; a stretch in which the clock began anew is left out."""
    places = np.unique(np.linspace(0, seen.steps - 1, min(RATES_OVER, seen.steps)).astype(int))
    steps, tokens, seconds = (seen[name][places] for name in ("step", "tokens", "seconds"))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.diff(tokens) / np.diff(seconds)
    fine = np.isfinite(rates) & (rates > 0)
    return steps[1:][fine], rates[fine]


def line_of(name: str, look: str, at: Numbers, values: Numbers, most: int) -> dict[str, Any]:
    there = np.isfinite(values) & np.isfinite(at)
    points = thinned(at[there].tolist(), values[there].tolist(), most)
    short = [(int(place), float(f"{value:.7g}")) for place, value in points]
    return {"name": name, "look": look, "points": short}


def _evaluated(told: Told, name: str, said: str, look: str) -> dict[str, Any]:
    at, values = column(told.entries, name)
    return line_of(said, look, at, values, FEWER_POINTS) | {"dots": True}


def column(entries: list[dict[str, Any]], name: str) -> tuple[Numbers, Numbers]:
    rows = [(each["step"], each[name]) for each in entries if isinstance(each.get(name), int | float)]
    return np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], float)


def _marks(told: Told) -> list[dict[str, Any]]:
    best = told.best
    return [{"at": best["step"], "words": f"best: {best['val_loss']:.3f}"}] if best is not None else []


def _samples(told: Told) -> dict[str, Any]:
    """By steps, what the models that are kept answer to the same prompts; where they were not asked, what was said on
    the way, of many steps some, from all along."""
    if (answers := told.answers) is not None:
        texts = [[text[:LONGEST_SAID] for text in answers.texts[step]] for step in sorted(answers.texts)]
        return {"steps": sorted(answers.texts), "prompts": answers.asked.prompts, "texts": texts}
    said: dict[int, dict[str, str]] = {}
    for each in told.samples:
        if isinstance(each.get("step"), int):
            text = str(each.get("text", ""))[:LONGEST_SAID]
            said.setdefault(each["step"], {})[str(each.get("prompt", ""))] = text
    steps = sorted(said)
    if len(steps) > MOST_ASKED:
        steps = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, MOST_ASKED)]
    prompts = list(dict.fromkeys(prompt for step in steps for prompt in said[step]))
    texts_said = [[said[step].get(prompt) for prompt in prompts] for step in steps]
    return {"steps": steps, "prompts": prompts, "texts": texts_said}


def _how_asked(answers: Answers | None) -> str:
    return how_asked(answers.asked, f"at most {answers.asked.max_tokens} tokens") if answers is not None else ""


def how_asked(asked: Asked, length: str) -> str:
    """By which anybody gets the same answers."""
    applied = {name: value for name, value in asked.rules.items() if value is not None and UNFELT.get(name) != value}
    rules = [f"{name.replace('_', ' ')} {shown(value)}" for name, value in applied.items()]
    return ", ".join([f"seed {asked.seed}", length, *rules])


def written(told: Told) -> dict[str, Any]:
    """What stands in the page whether or not it has a script."""
    seen = told.seen
    seconds = float(np.nanmax(seen["seconds"])) if np.isfinite(seen["seconds"]).any() else 0.0
    machine = seen.machine.get("name")
    created = told.record.created[:10] if told.record is not None else ""
    parts = [f"{seen.step:,} steps", duration(seconds), f"on {machine}" if machine else "", created]
    return {
        "title": told.name,
        "told": ", ".join(part for part in parts if part),
        "figures": list(_figures(told)),
        "findings": told.findings,
        "evaluations": list(_evaluations(told)),
        "sampled": bool(told.samples) or told.answers is not None,
        "asked": _how_asked(told.answers),
        "facts": list(_facts(told)),
        "settings": list(settings_of(told.record)),
        "settings_told": _settings_told(told.record),
        "made": f"Written by Hornbook {own_version()}. This page asks nobody for anything.",
    }


def _figures(told: Told) -> Iterator[tuple[str, str, str]]:
    seen, best = told.seen, told.best
    if best is not None:
        yield "validation loss", f"{best['val_loss']:.4f}", f"at step {best['step']:,}"
        if best.get("val_perplexity"):
            yield "perplexity", f"{best['val_perplexity']:,.1f}", "equally likely tokens"
        if bits := best.get("val_bits_per_byte"):
            scale = seen.text.yardsticks if seen.text is not None else {}
            beside = ", ".join(f"{name}: {each:.2f}" for name, each in scale.items())
            yield "bits per byte", f"{bits:.3f}", beside
    tokens = float(np.nanmax(seen["tokens"])) if np.isfinite(seen["tokens"]).any() else 0.0
    yield "tokens seen", count(tokens), f"the text {seen.epochs:.3g} times" if seen.epochs else ""
    if told.record is not None:
        parameters = parameters_of(told.record)
        yield "parameters", count(float(parameters)) if parameters is not None else "-", ""


def parameters_of(record: Record | None) -> int | None:
    if record is None:
        return None
    with contextlib.suppress(UserError, KeyError):
        return stored(ModelConfig, record.config["model"], record.shards).n_params()
    return None


def _evaluations(told: Told) -> Iterator[dict[str, Any]]:
    found, best = evaluations(told.entries), told.best
    if len(found) > MOST_EVALUATIONS_SHOWN:
        found = [found[round(place)] for place in np.linspace(0, len(found) - 1, MOST_EVALUATIONS_SHOWN)]
    for each in found:
        bits, perplexity = each.get("val_bits_per_byte"), each.get("val_perplexity")
        yield {
            "step": f"{each['step']:,}",
            "tokens": count(float(each["tokens"])) if "tokens" in each else "all of the text",
            "loss": f"{each['val_loss']:.4f}",
            "perplexity": f"{perplexity:,.1f}" if perplexity is not None else "-",
            "bits": f"{bits:.3f}" if bits is not None else "-",
            "best": each is best,
        }


def _facts(told: Told) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    text, machine = told.seen.text, told.seen.machine
    if told.shards is not None:
        manifest, train, val = told.shards.manifest, told.shards.split_facts("train"), told.shards.split_facts("val")
        rows = [("name", str(manifest["name"]))]
        for what, split in (("to train on", train), ("to validate", val)):
            size = count(float(split["bytes_of_text"]))
            word = "document" if split["documents"] == 1 else "documents"
            rows.append((what, f"{size} bytes, {count(split['tokens'])} tokens, {split['documents']:,} {word}"))
        rows.append(("split by", str(manifest.get("split_rule", "-"))))
        rows.append(("vocabulary", f"{manifest['tokenizer']}, {manifest['vocab_size']:,} entries"))
        if text is not None:
            rows.append(("a token is", f"about {text.bytes_per_token:.1f} bytes"))
        rows.append(("fingerprint", told.shards.fingerprint[:16]))
        yield "Text", rows
    if machine:
        names = {"name": "machine", "device": "device", "dtype": "numbers", "threads": "threads"}
        names |= {"python": "Python", "torch": "torch", "system": "system"}
        yield "Machine", [(said, str(machine[name])) for name, said in names.items() if machine.get(name)]


def settings_of(record: Record | None) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """By sections: a knob, its value, and whether whoever began the run turned it."""
    if record is None:
        return
    turned = set(record.more.get("turned", ()))
    sections: dict[str, list[tuple[str, str, bool]]] = {}
    for name, value in flat(record.config).items():
        section, _, knob = name.rpartition(".")
        rows = sections.setdefault(section.replace(".", ", ") or OF_THE_WHOLE, [])
        rows.append((knob, shown(value), name in turned))
    yield from sections.items()


def _settings_told(record: Record | None) -> str:
    recipe = record.config.get("recipe", "custom") if record is not None else ""
    if record is not None and record.more.get("turned"):
        return f"Of the recipe {recipe}; bold is what was set otherwise for this run. A dash is what Hornbook chooses."
    return f"Of the recipe {recipe}. A dash is what Hornbook chooses."


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return str(value)
