"""What saving costs while it trains, and how long a resume takes.

    PYTHONPATH=tests/train python bench/going_on.py [--layers 12] [--rounds 5] [--only-resume]

Saving: GPT-2's 124M in float32, AdamW, steps of 2 sequences of 64 tokens on the cores there are. First steps alone;
then a checkpoint is taken and steps go on until it is on the disk, fsync included. What these took longer than as many
steps alone, the copy included, is what a save costs; it is told as a share of five minutes, the time between saves of a
large model.

Going on: a tiny run whose newest checkpoint says that it is of step 100, or of step 100,000 with a line in its log for
each, is resumed for one step, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from test_late_resume import made_late
from trial import tiniest, write_short_text

from hornbook.base.machine import choose_machine, processor_name
from hornbook.base.process import keep_freed_memory
from hornbook.base.world import World
from hornbook.model.config import classic
from hornbook.runs.folder import RunFolder
from hornbook.shards.order import Batch
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from hornbook.train.checkpoint import TrainState, save_checkpoint
from hornbook.train.config import OptimConfig, RunConfig, TrainConfig
from hornbook.train.learner import Learner
from hornbook.train.saving import Saver
from hornbook.train.start import fit, resume

CONTEXT, SEQUENCES, STEPS_ALONE = 64, 2, 8
BETWEEN_SAVES_SECONDS = 300
LATE = (100, 100_000)


def cost_of_saving(place: Path, layers: int) -> dict[str, float]:
    keep_freed_memory()
    model = classic(n_layer=layers, n_head=12, n_embd=768, context=1024, vocab_size=50_257)
    knobs = TrainConfig(steps=1, batch_tokens=SEQUENCES * CONTEXT, context=CONTEXT)
    config, machine = (
        RunConfig(model=model, optim=OptimConfig(kind="adamw"), train=knobs),
        choose_machine("cpu", "float32"),
    )
    learner = Learner(config, machine, World(), SEQUENCES, compiled=False)
    learner.prepare()
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [], 0)
    write = partial(save_checkpoint, RunFolder(place), "bench", tokenizer, machine.facts(), config)
    ids = torch.randint(0, 50_257, (SEQUENCES, CONTEXT + 1))

    def take(first: int, count: int) -> Batch:
        return ids[first : first + count, :-1], ids[first : first + count, 1:]

    def step(number: int) -> float:
        began = time.perf_counter()
        float(learner.learn(take, number, 1.0).loss)
        return time.perf_counter() - began

    for number in range(3):
        step(number)
    alone = [step(number) for number in range(STEPS_ALONE)]
    with Saver(learner, write, 0) as saver:
        began = time.perf_counter()
        saver.begin(TrainState(step=1))
        copied, beside = time.perf_counter() - began, []
        while saver.saved_step == 0:
            beside.append(step(len(beside)))
        saver.wait()
    took = time.perf_counter() - began
    after = [step(number) for number in range(STEPS_ALONE)]
    of_a_step = statistics.mean(alone + after)
    lost = took - len(beside) * of_a_step
    return {
        "parameters": model.n_params(),
        "seconds of a step alone, before": statistics.mean(alone),
        "seconds of a step alone, after": statistics.mean(after),
        "seconds of the copy": copied,
        "seconds until it is on the disk": took,
        "steps meanwhile": len(beside),
        "seconds lost": lost,
        "share of five minutes": lost / BETWEEN_SAVES_SECONDS,
    }


def times_to_resume(place: Path, rounds: int) -> dict[str, list[float]]:
    text, found = write_short_text(place / "short.txt"), {str(step): [] for step in LATE}
    os.environ["HORNBOOK_HOME"] = str(place / "home")
    for turn in range(rounds + 1):  # the first is not counted
        for step in LATE:
            run = place / f"{step}-{turn}"
            fit(tiniest(text, train={"steps": 1, "snapshots": False, "eval_every_steps": 10**6}), run)
            made_late(run, step)
            os.sync()  # a log of that length was put safely on the disk long before
            began = time.perf_counter()
            resume(run, {"train": {"steps": step + 1}})
            if turn:
                found[str(step)].append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--only-resume", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    machine = {"processor": processor_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as place:
        resumed = times_to_resume(Path(place), given.rounds)
        medians = {step: statistics.median(seconds) for step, seconds in resumed.items()}
        saving = None if given.only_resume else cost_of_saving(Path(place) / "run", given.layers)
    print(json.dumps({"machine": machine, "saving": saving, "going on": resumed, "medians": medians}, indent=2))


if __name__ == "__main__":
    main()
