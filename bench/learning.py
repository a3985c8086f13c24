"""What is learned in so much time, by the commands as a user gives them: wall time of the whole command, what it does
before and after training included, in a home that knows no text. Rows 1, 2, 3 and 6.

    python bench/learning.py [--rows 1 2] [--peer NANOGPT] [--texts FOLDER] [--out FOLDER]

- 1: how soon `hornbook train --data tinyshakespeare.txt --tokenizer.kind char --minutes M` ends at the loss at which
  nanoGPT's demo for a processor ends. M grows until it does; of nanoGPT its own program runs, with the flags that its
  page gives. Its text is prepared beforehand, ours is not.
- 2: which loss the same command ends at in the seconds that nanoGPT's takes.
- 3: when ten minutes of it first reach what nanoGPT reaches on an A100.
- 6: bits per byte after `hornbook train demo`, three minutes.

A loss is in nats a character: nanoGPT's of 20 batches, as it prints; ours of all of the validation text, at the end.
Both hold back the last tenth of the text.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Claim, Found, run, texts_at_hand
from nanogpt import ITS_LOSS_ON_A_PROCESSOR, ITS_LOSS_ON_AN_A100, ON_A_PROCESSOR, trained

from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import evaluations, read_log

GROWING_SECONDS = (2, 4, 6, 8, 11, 15, 20, 30, 45, 60, 90)
SECONDS_OF_ITS_DEMO = 107.7  # where nanoGPT is absent: on two Zen 3 cores, AVX2, float32
TINY_PEER = ("--max_iters=1", "--eval_iters=1", "--n_layer=1", "--eval_interval=1")


def hornbook(*words: str) -> dict[str, Any]:
    """A run by command line, in a home of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name) / "run")
        command = [sys.executable, "-m", "hornbook", "train", *words, "--out", str(folder.path)]
        began = time.perf_counter()
        home = {"HORNBOOK_HOME": str(Path(name) / "home")}
        done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"hornbook train ended with {done.returncode}: {done.stderr[-500:]}")
        log = read_log(folder.metrics)
        config = folder.record().config
    evaluated = evaluations(log)
    steps = [each for each in log if "loss" in each]
    return {
        "command": " ".join(["hornbook", "train", *(Path(word).name if os.sep in word else word for word in words)]),
        "seconds": round(seconds, 1),
        "in_training": round(steps[-1]["seconds"], 1),
        "steps": steps[-1]["step"],
        "val_loss": evaluated[-1]["val_loss"],
        "bits_per_byte": evaluated[-1]["val_bits_per_byte"],
        "on_the_way": [(round(each["seconds"], 1), each["val_loss"]) for each in evaluated if "seconds" in each],
        "model": {name: config["model"][name] for name in ("n_layer", "n_head", "n_embd", "context")},
    }


def on_shakespeare(given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    text = str((given.texts / "tinyshakespeare.txt").resolve())
    tiny = ("--tiny",) if given.tiny else ()
    until = ("--train.steps", "2") if given.tiny else ("--minutes", f"{seconds / 60:.4g}")
    found = hornbook("--data", text, "--tokenizer.kind", "char", *until, *tiny)
    print({name: found[name] for name in ("command", "seconds", "steps", "val_loss", "model")}, flush=True)
    return found


def measure(given: argparse.Namespace) -> Found:
    found = Found()
    wanted = set(given.rows)
    if wanted & {1, 2, 3} and not (given.texts / "tinyshakespeare.txt").is_file():
        found.pass_over(f"tiny Shakespeare: no tinyshakespeare.txt in {given.texts.name} (--texts)")
        wanted &= {6}
    if wanted & {1, 2}:
        beside_its_demo(found, wanted, given)
    if 3 in wanted:
        ten = on_shakespeare(given, 600)
        soonest = next((each[0] for each in ten["on_the_way"] if each[1] <= ITS_LOSS_ON_AN_A100), None)
        found.figures["ten minutes"] = ten | {"reached_after": soonest}
        found.claims.append(
            Claim(
                3,
                "tiny Shakespeare by characters, ten minutes"
                + (f"; there after {soonest:.0f} s" if soonest is not None else "; not reached"),
                ten["val_loss"],
                "nats a character",
                ITS_LOSS_ON_AN_A100,
                "nanoGPT on an A100",
                f"{ITS_LOSS_ON_AN_A100}",
            )
        )
    if 6 in wanted:
        demo = hornbook("demo", *(("--tiny",) if given.tiny else ()))
        found.figures["demo"] = demo
        found.claims.append(
            Claim(6, "the demo, three minutes", demo["bits_per_byte"], "bits a byte", aim="1.50, AMX 1.25")
        )
    return found


def beside_its_demo(found: Found, wanted: set[int], given: argparse.Namespace) -> None:
    loss, seconds, peer = ITS_LOSS_ON_A_PROCESSOR, SECONDS_OF_ITS_DEMO, "nanoGPT, published"
    if given.peer is None:
        found.pass_over("nanoGPT: no --peer; beside its published loss and a time measured elsewhere")
    else:
        words = [*ON_A_PROCESSOR, *(TINY_PEER if given.tiny else ())]
        with tempfile.TemporaryDirectory() as work:
            reached, seconds = trained(given.peer, words, given.texts / "tinyshakespeare.txt", Path(work))
        loss, peer = reached[-1][1], "nanoGPT"
        found.figures["nanoGPT"] = {"reached": reached, "seconds": round(seconds, 1)}
        print(found.figures["nanoGPT"], flush=True)
    tries: list[dict[str, Any]] = []
    for each in GROWING_SECONDS:
        tries.append(on_shakespeare(given, each))
        if tries[-1]["val_loss"] <= max(loss, ITS_LOSS_ON_A_PROCESSOR) or given.tiny:
            break
    found.figures["sooner"] = tries
    last = tries[-1]
    what = f"whole command to {ITS_LOSS_ON_A_PROCESSOR} (nanoGPT here {loss:.3f}, ours {last['val_loss']:.3f})"
    if 1 in wanted:
        found.claims.append(Claim(1, what, last["seconds"], "s", seconds, peer, "10"))
    if 2 in wanted:
        besides = last["seconds"] - last["in_training"]
        same = on_shakespeare(given, seconds - besides)
        found.figures["same time"] = same
        what = f"whole command of {same['seconds']:.0f} s, nanoGPT {seconds:.0f} s"
        found.claims.append(Claim(2, what, same["val_loss"], "nats a character", loss, peer, "1.55"))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", nargs="+", type=int, choices=(1, 2, 3, 6), default=[1, 2])
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--texts", type=Path, default=texts_at_hand(), help="with tinyshakespeare.txt")


if __name__ == "__main__":
    run(__doc__, measure, options)
