"""What each choice of the dial's recipe is worth, in little time: one thing at a time done otherwise, over texts and
seeds, as many steps for all.

    python bench/recipe.py [--seeds 1 2 3] [--seconds 30] [--at-once 2] [--texts FOLDER] [--out FOLDER]

A run has the sizes that the dial gives a plain processor for so many seconds, and as many steps as it foretells; so its
loss does not depend on what else the machine does, and several may be trained at once, on one thread each, in float32.
What a step of each choice costs is timed at the end, turn by turn; that wants the machine for itself. OUT/runs.jsonl
has a line for each run; the next call with the same folder goes on where it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from measuring import RANKS, texts_at_hand, times_faster, turns

from hornbook.base.machine import choose_machine
from hornbook.recipes import dial, vocabulary_of
from hornbook.recipes.modern import DEMO_BYTES
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import evaluations, read_log
from hornbook.train.config import RunConfig, override
from hornbook.train.probe import seconds_a_step
from hornbook.train.start import fit

AS_IT_IS = "as it is"
CHOICES: dict[str, dict[str, Any]] = {
    AS_IT_IS: {},
    "AdamW for the matrices, too": {"optim": {"kind": "adamw"}},
    "Muon's rate halved": {"optim": {"matrix_lr": 0.01}},
    "Muon's rate doubled": {"optim": {"matrix_lr": 0.04}},
    "AdamW's rates halved": {"optim": {"lr": 2e-3, "embedding_lr": 5e-3}},
    "no head start": {"train": {"head_start": False}},
    "a cosine": {"schedule": {"kind": "cosine"}},
    "queries and keys not normalised": {"model": {"qk_norm": "none"}},
    "squared ReLU, no gate": {"model": {"activation": "relu2", "mlp_width": None}},
    "a table for pairs of tokens": {"model": {"bigram_embeddings": 16_384}},
    "a table for values": {"model": {"value_embeddings": True}},
    "the first embedding mixed in": {"model": {"embedding_skip": True}},
}
TEXTS = {
    "tiny Shakespeare, characters": ("tinyshakespeare.txt", "char"),
    "tiny Shakespeare, GPT-2's tokens": ("tinyshakespeare.txt", "gpt2"),
    "python-stdlib": ("python-stdlib", "bpe"),
    "Wikitext-2, its test text": ("wikitext2-test.txt", "bpe"),
}
EVALUATED = 50_000  # tokens of validation text
QUIET: dict[str, Any] = {
    "train": {"threads": 1, "dtype": "float32", "compile": False, "snapshots": False, "save_every_minutes": 60.0},
    "sample": {"tokens": 1},
}


def config_for(text: str, folder: Path, seconds: float) -> RunConfig:
    """What the dial chooses for a plain processor, and to end after as many steps as it foretells."""
    data, kind = TEXTS[text]
    place = (folder / data).resolve()
    name, size = (str(place), place.stat().st_size) if place.is_file() else (data, DEMO_BYTES)
    paces: list[float] = []

    def pace(size: dial.Size, vocabulary: int) -> float:
        paces.append(dial.PLAIN_CPU(size, vocabulary))
        return paces[-1]

    chosen = dial.own_text(name, size, seconds / 60, pace, kind)
    ranks = {"tokenizer": {"ranks_file": str((folder / RANKS).resolve())}} if kind == "gpt2" else {}
    steps = int(dial.LEARNING * seconds / paces[-1])
    return override(
        chosen,
        QUIET,
        ranks,
        {
            "train": {
                "steps": steps,
                "eval_every_steps": steps,
                "eval_batches": EVALUATED // chosen.train.batch_tokens,
            }
        },
    )


def trained(config: RunConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = RunFolder(Path(name) / "run")
        fit(config, folder.path)
        last = evaluations(read_log(folder.metrics))[-1]
        return {"steps": last["step"], "bits_per_byte": last["val_bits_per_byte"]}


def train_all(given: argparse.Namespace, configs: Mapping[str, RunConfig], choices: list[str]) -> list[dict[str, Any]]:
    log = given.out / "runs.jsonl"
    known = {(each["text"], each["choice"], each["seed"]) for each in read_log(log)}
    wanted = [
        (text, choice, seed)
        for seed in given.seeds
        for text in configs
        for choice in choices
        if (text, choice, seed) not in known
    ]
    for text in configs:  # lest two prepare it at once
        trained(override(configs[text], {"train": {"steps": 1}}))
    with ProcessPoolExecutor(given.at_once, multiprocessing.get_context("spawn")) as pool:
        runs = {
            pool.submit(trained, override(configs[text], CHOICES[choice], {"seed": seed})): (text, choice, seed)
            for text, choice, seed in wanted
        }
        for run in as_completed(runs):
            told = dict(zip(("text", "choice", "seed"), runs[run], strict=True)) | run.result()
            with log.open("a") as file:
                file.write(json.dumps(told) + "\n")
            print(told, flush=True)
    return read_log(log)


def costs(configs: Mapping[str, RunConfig], choices: list[str]) -> dict[tuple[str, str], float]:
    """Of a step of each choice, beside one as it is: how many times as long."""
    machine, found = choose_machine("cpu", "float32"), {}
    for text, config in configs.items():
        sized = config.with_(model=config.model.with_(vocab_size=vocabulary_of(config) or dial.CHARACTERS).model_dump())
        acts = {
            choice: partial(lambda config: seconds_a_step(config, machine).seconds, override(sized, CHOICES[choice]))
            for choice in choices
        }
        seconds = turns(acts, 3)
        for choice in choices:
            found[text, choice] = 1 / times_faster(seconds, choice, AS_IT_IS)
    return found


def table(runs: list[dict[str, Any]], cost: Mapping[tuple[str, str], float]) -> Iterator[str]:
    """Bits per byte as it is, and what each choice adds to it, as a mean over seeds that both have, with the spread of
    the differences."""
    bits = {(each["text"], each["choice"], each["seed"]): each["bits_per_byte"] for each in runs}
    texts, choices = (list(dict.fromkeys(each[name] for each in runs)) for name in ("text", "choice"))
    yield "| | " + " | ".join(texts) + " |"
    yield "| --- " * (len(texts) + 1) + "|"
    for choice in sorted(choices, key=list(CHOICES).index):
        cells = []
        for text in texts:
            seeds = [seed for (of, what, seed) in bits if (of, what) == (text, choice) and (of, AS_IT_IS, seed) in bits]
            found = [bits[text, choice, seed] for seed in seeds]
            if choice != AS_IT_IS:
                found = [each - bits[text, AS_IT_IS, seed] for each, seed in zip(found, seeds, strict=True)]
            spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            sign = "+" if choice != AS_IT_IS else ""
            told = f"{statistics.mean(found):{sign}.3f}{spread}" if found else ""
            cells.append(told + (f", {cost[text, choice]:.2f} x" if (text, choice) in cost else ""))
        yield f"| {choice} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--texts", type=Path, default=texts_at_hand(), help="with the texts, and GPT-2's ranks")
    parser.add_argument("--cost", action="store_true", help="time the steps as well")
    parser.add_argument("--out", type=Path, default=Path("recipe"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HORNBOOK_HOME", str((given.out / "home").absolute()))
    choices = list(dict.fromkeys([AS_IT_IS, *given.choices]))
    configs = {text: config_for(text, given.texts, given.seconds) for text in TEXTS}
    runs = train_all(given, configs, choices)
    print("\n".join(table(runs, costs(configs, choices) if given.cost else {})))


if __name__ == "__main__":
    main()
