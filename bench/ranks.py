"""Steps of several processes on one machine's processor beside those of one that has all of its threads: tokens a
second, and of each step the bytes and the seconds that communication takes.

    python bench/ranks.py [--shapes demo 124M] [--ranks 1 2 4] [--rounds 3] [--steps 4] [--out FOLDER]

Whoever has two cores gives them to one process with two threads, or to two processes with one. The ways take turns;
what is told is the median. Strong scaling: the batch stays as it is, whatever the number of processes; weak scaling
(--weak): each process has a batch of its own. The formula beside the bytes: gradients and weights, 4 bytes each, to and
from their owners, 2 x 4 P (n - 1) / n a process; in slices, rows are fetched twice and sent home once a round besides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("n_layer", "n_head", "n_embd", "context", "vocab_size")
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(zip(SIZES, (1, 1, 32, 32, 257), strict=True)) | {"sequences": 4, "at_once": 1},
    "demo": dict(zip(SIZES, (2, 3, 192, 256, 2048), strict=True)) | {"sequences": 8, "at_once": 4},
    "124M": dict(zip(SIZES, (12, 12, 768, 256, 50_257), strict=True)) | {"sequences": 8, "at_once": 2},
}


def measure_as_rank(shape: dict[str, Any], steps: int, parallel: str, weak: bool, out: Path) -> None:
    """In one process of several, whose number is in the environment."""
    import torch

    from hornbook.base.machine import choose_machine
    from hornbook.base.process import keep_freed_memory
    from hornbook.base.world import Ranks, leave_world, world
    from hornbook.model.config import modern
    from hornbook.shards.order import Batch
    from hornbook.train.config import RunConfig, TrainConfig
    from hornbook.train.learner import Learner
    from hornbook.train.sharded import ShardedLearner

    together, spent = world(), {"bytes": 0.0, "seconds": 0.0}
    sizes = {name: shape[name] for name in SIZES}
    sequences = shape["sequences"] * (together.size if weak else 1)
    train = TrainConfig(steps=1, batch_tokens=sequences * shape["context"], micro_batch=shape["at_once"])
    config = RunConfig(model=modern(**sizes), train=train)
    machine = choose_machine("cpu", "float32", int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()

    def watched(name: str, numbers_of: Any) -> None:
        act = getattr(Ranks, name)

        def acting(self: Ranks, *given: Any) -> Any:
            began = time.perf_counter()
            result = act(self, *given)
            spent["seconds"] += time.perf_counter() - began
            spent["bytes"] += numbers_of(self, *given)
            return result

        setattr(Ranks, name, acting)

    watched("exchanged", lambda ranks, parts, expected: 4 * (sum(map(len, parts)) - len(parts[ranks.rank])))
    watched("gathered", lambda ranks, numbers: numbers.element_size() * numbers.numel() * (ranks.size - 1))
    watched("any", lambda ranks, said: 4)
    kind = ShardedLearner if parallel == "sharded" else Learner
    learner = kind(config, machine, together, shape["at_once"], False)
    learner.prepare()

    def take(first: int, count: int) -> Batch:
        drawn = torch.Generator().manual_seed(first)
        ids = torch.randint(shape["vocab_size"], (count, shape["context"] + 1), generator=drawn)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    seconds = []
    for step in range(steps + 1):
        if step == 1:  # the first finds its memory
            spent |= {"bytes": 0.0, "seconds": 0.0}
        began = time.perf_counter()
        float(learner.learn(take, step, 1.0)[0])
        seconds.append(time.perf_counter() - began)
    if together.is_first:
        told = {
            "seconds_a_step": statistics.median(seconds[1:]),
            "tokens_a_step": sequences * shape["context"],
            "parameters": config.model.n_params(),
            "communication_bytes_a_step": spent["bytes"] / steps,
            "communication_seconds_a_step": spent["seconds"] / steps,
        }
        out.write_text(json.dumps(told))
    leave_world()


def run(shape: str, ranks: int, cores: int, steps: int, parallel: str, weak: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "told.json"
        words = [sys.executable, __file__, "--as-rank", str(out), "--shapes", shape, "--steps", str(steps)]
        words += ["--parallel", parallel, *(["--weak"] if weak else [])]
        threads = {"OMP_NUM_THREADS": str(max(cores // ranks, 1)), "GOMP_SPINCOUNT": "20000"}
        place = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        place["MASTER_PORT"] = str(29_500 + os.getpid() % 1000)
        children = [
            subprocess.Popen(words, env=os.environ | threads | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]
        codes = [child.wait() for child in children]
        if any(codes):
            raise SystemExit(f"{shape}, {ranks} ranks: exit codes {codes}")
        told: dict[str, Any] = json.loads(out.read_text())
        return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["demo", "124M"], choices=SHAPES)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--parallel", choices=["replicated", "sharded"], default="replicated")
    parser.add_argument("--weak", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_rank:
        measure_as_rank(SHAPES[given.shapes[0]], given.steps, given.parallel, given.weak, given.as_rank)
        return
    figures: dict[str, Any] = {}
    for shape in given.shapes:
        found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in given.ranks}
        for _ in range(given.rounds):
            for ranks, turns in found.items():
                turns.append(run(shape, ranks, given.cores, given.steps, given.parallel, given.weak))
        for ranks, turns in found.items():
            told = {name: statistics.median(each[name] for each in turns) for name in turns[0]}
            told["tokens_a_second"] = told["tokens_a_step"] / told["seconds_a_step"]
            told["bytes_by_formula"] = 2 * 4 * told["parameters"] * (ranks - 1) / ranks
            one = figures.get(f"{shape}, 1 rank", told)
            told["times_one"] = told["tokens_a_second"] / one["tokens_a_second"]
            figures[f"{shape}, {ranks} rank" + "s" * (ranks > 1)] = told
            sent, reckoned = told["communication_bytes_a_step"] / 1e6, told["bytes_by_formula"] / 1e6
            print(
                f"{shape:6} {ranks} ranks  {told['tokens_a_second']:9,.0f} tokens/s  {told['times_one']:.2f} of one  "
                f"{sent:8,.1f} MB a step (by formula {reckoned:,.1f})  "
                f"{told['communication_seconds_a_step']:.3f} of {told['seconds_a_step']:.3f} s",
                flush=True,
            )
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        name = f"{given.parallel}{'-weak' if given.weak else ''}.json"
        (given.out / name).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
