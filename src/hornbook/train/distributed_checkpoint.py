"""A checkpoint that all processes write, each what it owns.

In: of each of several processes the weights and moments that are its own.  Out: one checkpoint, whole or absent, its
tensors in several files with the index that `transformers` reads; and to each process that goes on, on any number of
them, the moments that are its own then.
The first makes the folder and says where; each writes and hashes its files there; the first seals it when all have, and
says so. Where one fails, all are told, and what was saved before is what is there. It is done in threads beside
training, so they speak through the store alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hornbook.base import files
from hornbook.base.errors import HornbookError, MachineError
from hornbook.base.world import Meeting, ToldElsewhereError
from hornbook.model.config import INDEX, WEIGHTS, ModelConfig
from hornbook.model.folder import read_tensors, shards_of, tensors_on_disk
from hornbook.runs.folder import OPTIMIZER

# Of a smaller model the first process writes all of it into one file.
PARTS_FROM = 500_000_000  # parameters
MOMENTS_INDEX = f"{OPTIMIZER}.index.json"
Tensors = Mapping[str, torch.Tensor]


def write_in_parts(
    meeting: Meeting,
    final: Path,
    notes: Mapping[str, Any],
    config: ModelConfig,
    weights: Tensors,
    moments: Tensors,
    describe: Callable[[Path], None],
) -> None:
    """`describe` writes what is beside the tensors; the first process alone does."""
    if not meeting.is_first:
        _write_mine(meeting, Path(_unless_failed(meeting.hear("place"))), config, weights, moments)
        _unless_failed(meeting.hear("sealed"))
        return
    try:
        known: dict[str, dict[str, Any]] = {}
        with files.staged_folder(final, dict(notes), aside=True, known=known) as staging:
            meeting.say("place", {"value": str(staging)})
            _write_mine(meeting, staging, config, weights, moments)
            heard = [meeting.hear(f"part/{rank}") for rank in range(meeting.size)]
            for rank, part in enumerate(heard):
                if "mistakes" in part:
                    raise MachineError(*(f"rank {rank}: {mistake}" for mistake in part["mistakes"]))
                known |= part["value"]["files"]
            _write_index(staging / INDEX, (part["value"]["weights"] for part in heard))
            _write_index(staging / MOMENTS_INDEX, (part["value"]["moments"] for part in heard))
            describe(staging)
    except HornbookError as error:
        for told in ("place", "sealed"):
            meeting.say(told, {"mistakes": error.mistakes})
        raise
    meeting.say("sealed", {"value": ""})


def read_moments(checkpoint: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Those by the names that are wanted, from one file or from several."""
    index = checkpoint / MOMENTS_INDEX
    names = shards_of(index) if index.is_file() else [OPTIMIZER]
    return {name: each for file in names for name, each in read_tensors(checkpoint / file, wanted).items()}


def _write_mine(meeting: Meeting, folder: Path, config: ModelConfig, weights: Tensors, moments: Tensors) -> None:
    key = f"part/{meeting.rank}"
    try:
        written, told = {}, {}
        for what, stem, tensors in (
            ("weights", WEIGHTS.removesuffix(".safetensors"), tensors_on_disk(config, weights)),
            ("moments", OPTIMIZER.removesuffix(".safetensors"), moments),
        ):
            name = f"{stem}-{meeting.rank + 1:05}-of-{meeting.size:05}.safetensors"
            with files.disk_trouble_named(folder / name):
                held = {each: tensor.contiguous() for each, tensor in tensors.items()}
                safetensors.torch.save_file(held, folder / name, {"format": "pt"})
                files.sync_file(folder / name)
            written[name] = {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
            told[what] = {each: [name, tensor.numel() * tensor.element_size()] for each, tensor in held.items()}
        meeting.say(key, {"value": {"files": written, **told}})
    except HornbookError as error:
        meeting.say(key, {"mistakes": error.mistakes})
        if not meeting.is_first:
            raise


def _write_index(path: Path, parts: Iterable[dict[str, tuple[str, int]]]) -> None:
    places = {name: place for part in parts for name, place in part.items()}
    total = sum(size for _, size in places.values())
    weight_map = {name: file for name, (file, _) in sorted(places.items())}
    files.write_json(path, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _unless_failed(told: dict[str, Any]) -> str:
    if "mistakes" in told:
        raise ToldElsewhereError(*told["mistakes"])
    return str(told["value"])
