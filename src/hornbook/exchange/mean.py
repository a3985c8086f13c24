"""The mean of a run's checkpoints, as a model of its own.

In: a run, and how many of its newest checkpoints.  Out: a model folder with the mean of their weights.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hornbook.base import files
from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.model.folder import load_model, save_model
from hornbook.runs.folder import RECORD, RunFolder, damage_of_model, step_of
from hornbook.text.tokenizer import Tokenizer


@torch.no_grad()
def average_checkpoints(path: Path, out: Path, last: int | None = None) -> list[int]:
    """Write the mean of the newest checkpoints of a run, of all that it has kept when not said how many; of which
    steps they are."""
    run = RunFolder(path)
    if not run.has_record():
        raise UserError(f"{path}: not a run (no {RECORD}); name the folder that hornbook train wrote")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; choose another --out, or delete it")
    chosen = _good_ones(run)[:last]
    if len(chosen) < max(last or 2, 2):
        raise UserError(
            f"{path}: has {len(chosen)} good checkpoints to take the mean of, {max(last or 2, 2)} are wanted; "
            f"train with --train.keep-checkpoints {max(last or 2, 2)}, or more"
        )
    model, others = load_model(chosen[0]), chosen[1:]
    sums = {name: each.double() for name, each in model.named_parameters()}
    for other in others:
        for name, each in load_model(other).named_parameters():
            sums[name] += each
    for name, each in model.named_parameters():
        each.copy_(sums[name] / len(chosen))
    steps = sorted(map(step_of, chosen))
    with files.staged_folder(out, {"mean_of": str(path), "steps": steps}) as staging:
        save_model(model, Tokenizer.load(chosen[0]), staging)
    return steps


def _good_ones(run: RunFolder) -> list[Path]:
    """Newest first; each that is not is named in one line."""
    good = []
    for folder in run.checkpoints():
        if (wrong := damage_of_model(folder)) is None:
            good.append(folder)
        else:
            warn(f"{folder}: {wrong}; left out")
    return good
