"""The dial's forecasts beside what came of them, over texts and minutes. Row 7.

    python bench/dial.py [--minutes 1 3 10 20] [--texts FILE|CORPUS ...] [--beside] [--out FOLDER]

For each text and budget `hornbook plan` tells when a run ends and at which loss, and `hornbook train` is run with the
same words. With --beside, two other choices have the same minutes: the demo's settings as they were fixed, and those of
the ladder that went by the amount of text alone. Twelve settings take two hours, with --beside six; --minutes 0.5 tries
it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from learning import hornbook
from measuring import Claim, Found, run, texts_at_hand

TEXTS = ("tinyshakespeare.txt", "wikitext2-test.txt", "python-stdlib")
BUDGETS = (1.0, 3.0, 10.0, 20.0)
SHARED_KNOBS = "--optim.lr 4e-3 --optim.embedding-lr 1e-2 --optim.matrix-lr 0.02 --schedule.warmup-steps 40"
# Four layers of 256 with half of the heads, 2,048 tokens a step, 4,096 entries: the demo's before the dial.
FIXED = (
    "--tokenizer.vocab-size 4096 --model.n-layer 4 --model.n-head 2 --model.n-kv-head 1 --model.head-width 64 "
    "--model.n-embd 256 --model.mlp-width 768 --model.context 128 --train.batch-tokens 2048 --optim.weight-decay 0 "
    f"{SHARED_KNOBS}"
)
# From so many tokens on: layers, heads, width, context, tokens a step.
LADDER = (
    (0, (3, 2, 128, 128, 2048)),
    (200_000, (4, 3, 192, 128, 2048)),
    (2_000_000, (4, 4, 256, 256, 4096)),
)


def by_the_ladder(text_bytes: float, vocabulary: int | None) -> list[str]:
    layers, heads, width, context, batch = [sizes for least, sizes in LADDER if text_bytes / 3 >= least][-1]
    sizes = f"--model.n-layer {layers} --model.n-head {heads} --model.n-embd {width} --model.context {context}"
    entries = f"--tokenizer.vocab-size {vocabulary} " if vocabulary else ""
    return f"{entries}{sizes} --train.batch-tokens {batch} --optim.weight-decay 0 {SHARED_KNOBS}".split()


def planned(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "hornbook", "plan", *words, "--json"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(given: argparse.Namespace) -> Found:
    found = Found()
    here = [text for text in given.texts if not text.endswith(".txt") or place_of(text, given).is_file()]
    for text in [each for each in given.texts if each not in here]:
        found.pass_over(f"{text}: not in {given.folder.name} (--folder)")
    for text in here:
        for minutes in given.minutes:
            setting = f"{Path(text).stem}, {minutes:g} min"
            found.figures[setting] = one_setting(found, setting, text, minutes, given)
    return found


def place_of(text: str, given: argparse.Namespace) -> Path:
    return Path(text) if Path(text).is_file() else given.folder / text


def one_setting(found: Found, setting: str, text: str, minutes: float, given: argparse.Namespace) -> dict[str, Any]:
    data = str(place_of(text, given).resolve()) if text.endswith(".txt") else text
    words = ("--data", data, "--minutes", f"{minutes:g}", *(("--tiny",) if given.tiny else ()))
    plan = planned(*words)
    came = hornbook(*words)
    figures = {"planned": {name: value for name, value in plan.items() if name != "config"}, "came": came}
    print(setting, {name: plan[name] for name in ("seconds", "bits_per_byte")}, came, flush=True)
    off = {
        ("end", "10%"): came["in_training"] / plan["seconds"] - 1,
        ("loss", "3%"): came["bits_per_byte"] / plan["bits_per_byte"] - 1,
    }
    for (what, aim), share in off.items():
        foretold = plan["seconds"] if what == "end" else plan["bits_per_byte"]
        unit = "s" if what == "end" else "bits a byte"
        claim = f"{what} foretold, {setting}: {foretold:.3g} {unit}; off by"
        found.claims.append(Claim(7, claim, 100 * share, "% off", aim=aim))
    if given.beside:
        entries = plan["config"]["tokenizer"]["vocab_size"]
        choices = {
            "the demo's settings": FIXED.split(),
            "the old ladder": by_the_ladder(plan_bytes(text, given), entries),
        }
        for name, knobs in choices.items():
            other = hornbook("--data", data, "--minutes", f"{minutes:g}", "--train.epochs", "1000", *knobs)
            figures[name] = other
            found.claims.append(
                Claim(
                    7,
                    f"{setting}, the same minutes",
                    came["bits_per_byte"],
                    "bits a byte",
                    other["bits_per_byte"],
                    name,
                )
            )
    return figures


def plan_bytes(text: str, given: argparse.Namespace) -> float:
    return place_of(text, given).stat().st_size if text.endswith(".txt") else 12_000_000


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--texts", nargs="+", default=list(TEXTS), help="files, or names of corpora")
    parser.add_argument("--folder", type=Path, default=texts_at_hand(), help="where the files lie")
    parser.add_argument("--beside", action="store_true", help="two other choices as well")


if __name__ == "__main__":
    run(__doc__, measure, options)
