"""What the tests of training share: the tiniest run there is, and a look at what it left on the disk."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

from hornbook.base import background, files
from hornbook.base.settings import knobs, merge
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import read_log
from hornbook.train.config import RunConfig

# Four steps of it take a few hundredths of a second.
TINIEST: dict[str, Any] = {
    "tokenizer": {"kind": "byte"},
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "mlp_width": 8, "context": 16, "dropout": 0.1},
    "schedule": {"warmup_steps": 2},
    "sample": {"tokens": 2},
    "train": {
        "steps": 4,
        "batch_tokens": 64,
        "dtype": "float32",
        "compile": False,
        "device": "cpu",
        "eval_every_steps": 2,
        "head_start": False,
        "save_every_steps": 1,
    },
}


def tiniest(text: Path, **turned: Any) -> RunConfig:
    return RunConfig.model_validate(merge(TINIEST, {"data": str(text)}, turned))


def write_short_text(path: Path) -> Path:
    """2 kB: with the tiniest run's steps, several epochs in sixty."""
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "and", "ate", "rat"], k=520)
    path.write_text(" ".join(words))
    return path


def knob_words(config: RunConfig) -> list[str]:
    """A config as it is written on a command line, every knob, so that no recipe chooses any."""
    words = []
    for name in knobs(RunConfig):
        value = reduce(getattr, name.split("."), config)
        words.append(f"--{name}={'auto' if value is None else value if isinstance(value, str) else json.dumps(value)}")
    return words


def metrics(run: Path) -> list[dict[str, Any]]:
    return read_log(run / "metrics.jsonl")


def exact(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """StepTensors to the last bit; the clock aside, which no two runs share."""
    return [
        {
            name: value.hex() if isinstance(value, float) else value
            for name, value in entry.items()
            if not name.endswith("seconds")
        }
        for entry in entries
    ]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(run) if "loss" in entry]


def learned(run: Path) -> dict[str, str]:
    """Fingerprints of what the newest checkpoint has learned."""
    newest = RunFolder(run).checkpoints()[0]
    return {name: files.sha256(newest / name) for name in ("model.safetensors", "optimizer.safetensors")}


def all_of(run: Path) -> tuple[Any, ...]:
    """All that an interrupted run must have in common with the one that was left in peace."""
    return exact(metrics(run)), read_log(run / "samples.jsonl"), learned(run), snapshots(run)


def snapshots(run: Path) -> dict[int, dict[str, str]]:
    """Fingerprints of all files of each, the run's own name aside."""
    return {
        int(each.name[5:]): {path.name: files.sha256(path) for path in each.iterdir() if path.name != files.MANIFEST}
        for each in RunFolder(run).snapshots()
    }


def good_checkpoints(run: Path) -> list[int]:
    return [int(each.name[5:]) for each in RunFolder(run).checkpoints() if files.damage(each) is None]


def settle() -> None:
    """Wait for what a run that was killed in this process left at work, and a real kill would have ended."""
    while background._left:
        background._left.pop().join()


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*") if path.name != ".lock"]
