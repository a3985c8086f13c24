"""Runs beside one another, as a page.

In: run folders.  Out: `comparison.html`: who won, their curves in bits per byte over tokens, which runs of different
batch sizes and vocabularies share; the settings in which they differ, and what each says to the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.console import count, duration
from hornbook.base.names import own_version
from hornbook.report.offline import page, save_page
from hornbook.report.results import differing, results_of, settings_of, verdict
from hornbook.report.run_page import FEWER_POINTS, Told, column, how_asked, line_of, shown, smoothed
from hornbook.runs.answers import Answers

LOOKS = 7
MOST_PROMPTS, LONGEST_SAID = 6, 1_200
RESULTS = {
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "val_loss": ("validation loss", "{:.4f}"),
    "perplexity": ("perplexity", "{:,.1f}"),
    "best_tokens": ("tokens until the best", None),
    "tokens": ("tokens seen", None),
    "readings": ("epochs", "{:.3g}"),
    "steps": ("steps", "{:,}"),
    "seconds": ("time", None),
    "tokens_per_second": ("tokens a second", None),
    "parameters": ("parameters", None),
}


def write_comparison(runs: list[Told], out: Path, answers: Sequence[Answers | None] = ()) -> Path:
    """With the answers of their best models; where none was asked, what they said last on their way."""
    text = page(
        "comparison.html.jinja",
        drawn(runs),
        title=", ".join(told.name for told in runs),
        verdict=verdict(runs),
        runs=[(told.name, f"run-{number % LOOKS}") for number, told in enumerate(runs)],
        results=list(_results(runs)),
        settings=list(_settings(runs)),
        prompts=list(_answered(runs, answers) if any(answers) else _prompts(runs)),
        asked=next((how_asked(each.asked, "about as much text") for each in answers if each is not None), ""),
        made=f"Written by Hornbook {own_version()}. This page asks nobody for anything.",
    )
    return save_page(text, out)


def drawn(runs: list[Told]) -> dict[str, Any]:
    """What the script draws: of each run the validation loss, and the training loss behind it."""
    lines, last = [], 2.0
    in_bits = all(told.bits is not None for told in runs)
    for number, told in enumerate(runs):
        look, bits, tokens = f"run-{number % LOOKS}", told.bits, told.seen["tokens"]
        trained = line_of(told.name, f"{look} raw", tokens, smoothed(told.seen["loss"]), FEWER_POINTS) | {"quiet": True}
        steps, losses = column(told.seen.evaluations, "val_loss")
        at = np.interp(steps, told.seen["step"], tokens) if len(steps) else steps
        val = line_of(told.name, look, at, losses, FEWER_POINTS) | {"dots": True}
        lines += [trained | {"bits": bits}, val | {"bits": bits}]
        last = max([last, *(point[0] for line in (trained, val) for point in line["points"])])
    measures = [*(["bits per byte"] if in_bits else []), "loss", "perplexity"]
    chart = {"name": "Validation", "lines": [line for line in lines if line["points"]], "measures": measures}
    return {"whole": [0, last], "of": "tokens", "charts": [chart]}


def _results(runs: list[Told]) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    found = [results_of(told) for told in runs]
    for name, (said, form) in RESULTS.items():
        values = [each[name] for each in found]
        if any(value is not None for value in values):
            measured = [value for value in values if value is not None]
            best = min(measured) if name in ("bits_per_byte",) and len(measured) > 1 else None
            yield said, [(_worded(name, value, form), value is not None and value == best) for value in values]


def _worded(name: str, value: Any, form: str | None) -> str:
    if value is None:
        return "-"
    if name == "seconds":
        return duration(value)
    return form.format(value) if form is not None else count(float(value))


def _settings(runs: list[Told]) -> Iterator[tuple[str, list[str]]]:
    for name in differing(runs):
        yield name, [shown(settings_of(told).get(name)) for told in runs]


Beside = tuple[str, list[tuple[str, str, str, str]]]  # a prompt; of each run its name, its look, the text, the step


def _answered(runs: list[Told], answers: Sequence[Answers | None]) -> Iterator[Beside]:
    asked = next(each.asked for each in answers if each is not None)
    for place, prompt in enumerate(asked.prompts):
        said = []
        for number, (told, each) in enumerate(zip(runs, answers, strict=True)):
            for step, texts in each.texts.items() if each is not None else ():
                said.append((told.name, f"run-{number % LOOKS}", texts[place][:LONGEST_SAID], f"{step:,}"))
        yield prompt, said


def _prompts(runs: list[Told]) -> Iterator[Beside]:
    """What each run that was asked said last."""
    last = [{str(each.get("prompt", "")): each for each in told.samples if "text" in each} for told in runs]
    prompts = list(dict.fromkeys(prompt for each in last for prompt in each))
    prompts.sort(key=lambda prompt: -sum(prompt in each for each in last))
    for prompt in prompts[:MOST_PROMPTS]:
        answers = []
        for number, (told, each) in enumerate(zip(runs, last, strict=True)):
            if (said := each.get(prompt)) is not None:
                text, step = str(said["text"])[:LONGEST_SAID], f"{said['step']:,}"
                answers.append((told.name, f"run-{number % LOOKS}", text, step))
        yield prompt, answers
