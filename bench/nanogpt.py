"""nanoGPT as a peer: its model, a step of it, and its training program.

In: a checkout of it.  Out: its model's module; a step to be timed; losses and when they were reached. Nothing is
written into the checkout.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ON_A_PROCESSOR = [  # what its page gives
    "config/train_shakespeare_char.py",
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
ITS_LOSS_ON_A_PROCESSOR, ITS_LOSS_ON_AN_A100 = 1.886, 1.4697
Reached = tuple[int, float, float]  # step, validation loss, seconds since the command was given


def model_module(checkout: Path) -> Any:
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


def step_of(
    checkout: Path, shape: dict[str, Any], batch: tuple[torch.Tensor, torch.Tensor], compiled: bool
) -> Callable[[], None]:
    """Forwards, backwards, clipping and its AdamW, as its training program does."""
    theirs = model_module(checkout)
    model = theirs.GPT(theirs.GPTConfig(dropout=0.0, **shape)).train()
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    called = torch.compile(model) if compiled else model

    def step() -> None:
        called(*batch)[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def write_characters(text: Path, folder: Path) -> None:
    """What its training program reads: nine tenths to train on, the rest to validate, a number a character."""
    whole = text.read_text(encoding="utf-8")
    numbers = {sign: number for number, sign in enumerate(sorted(set(whole)))}
    ids = np.array([numbers[sign] for sign in whole], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    folder.mkdir(parents=True, exist_ok=True)
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(numbers)}))


def trained(
    checkout: Path, words: list[str], text: Path, work: Path, until: float = 0.0
) -> tuple[list[Reached], float]:
    """Its training program in a process of its own, ended when it reaches a loss; and seconds of the whole command."""
    write_characters(text, work / "characters")
    places = [f"--dataset={(work / 'characters').resolve()}", f"--out_dir={(work / 'out').resolve()}"]
    found: list[Reached] = []
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-u", "train.py", *words, *places],
        cwd=checkout,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout or []:
            lines.append(line)
            if match := re.match(r"step (\d+): train loss ([\d.]+), val loss ([\d.]+)", line):
                found.append((int(match[1]), float(match[3]), round(time.monotonic() - began, 1)))
                if found[-1][1] <= until:
                    process.terminate()
    if process.returncode > 0 or not found:
        raise RuntimeError(f"nanoGPT's training ended with {process.returncode}: {''.join(lines[-3:])}")
    return found, time.monotonic() - began
