"""What a GPU makes of the demo's recipe, of GPT-2's 124M shape, and of two published runs.

    PYTHONPATH=src python bench/gpu.py [--out FILE.json] [--seconds 60] [--texts FOLDER] [--only NAME] [--tiny]

Needs torch with CUDA, numpy, pydantic, tokenizers and safetensors; not the command line. Each case is a real run
through the real loop, compiled and not: tokens a second and MFU over its last steps, peak memory, losses. With a
folder that holds tinyshakespeare.txt and r50k_base.tiktoken also `shakespeare-124m` as published, until its target
loss, and 50 steps of `pile-2b`. `--tiny` shrinks every case, so that the script itself can be tried on a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hornbook.base.logs import read_log
from hornbook.model.config import classic
from hornbook.recipes.miniature import miniature
from hornbook.recipes.modern import demo
from hornbook.recipes.seeds import pile_2b, shakespeare_124m
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import OptimConfig, RunConfig, TrainConfig, override
from hornbook.train.start import fit


def published(texts: Path, tiny: bool) -> dict[str, RunConfig]:
    ranks = {"tokenizer": {"ranks_file": str(texts / "r50k_base.tiktoken")}}
    shakespeare = override(shakespeare_124m(), ranks, {"data": str(texts / "tinyshakespeare.txt")})
    pile = override(pile_2b(), ranks, {"data": "python-stdlib"}, {"train": {"steps": 50, "eval_every_steps": 50}})
    found = {"shakespeare-124m": shakespeare, "pile-2b, 50 steps": pile}
    return {name: miniature(config) for name, config in found.items()} if tiny else found


def cases(seconds: float, tiny: bool) -> dict[str, RunConfig]:
    gpt2 = classic(n_layer=12, n_head=12, n_embd=768, context=1024)
    steps, batch_tokens, vocab_size = 20, 491_520, 50257
    if tiny:
        gpt2 = classic(n_layer=2, n_head=2, n_embd=64, context=64)
        steps, batch_tokens, vocab_size = 3, 512, 600
    small = {"minutes": seconds / 60} if not tiny else {"steps": 3}
    plain = RunConfig(
        recipe="gpt2-124m",
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=vocab_size),
        model=gpt2,
        optim=OptimConfig(kind="adamw", lr=6e-4),
        train=TrainConfig(steps=steps, batch_tokens=batch_tokens, eval_every_steps=10**6),
    )
    result = {}
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        result[f"demo {name}"] = override(demo(), {"train": small | {"compile": compiled}})
        result[f"gpt2-124m {name}"] = override(plain, {"train": {"compile": compiled}})
    return result


def measure(config: RunConfig) -> dict[str, Any]:
    """Train it for real, and tell what it took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(config, Path(folder) / "run")
        log = read_log(Path(folder) / "run" / "metrics.jsonl")
        samples = read_log(Path(folder) / "run" / "samples.jsonl")
    return {
        "ended": outcome.reason,
        "steps": outcome.step,
        "tokens_per_second": round(outcome.tokens_per_second),
        "mfu": None if outcome.mfu is None else round(outcome.mfu, 4),
        "peak_memory_gb": round(outcome.peak_memory_bytes / 1e9, 2),
        "first_loss": next(each["loss"] for each in log if "loss" in each),
        "last_loss": [each["loss"] for each in log if "loss" in each][-1],
        "val_bits_per_byte": [each["val_bits_per_byte"] for each in log if "val_loss" in each][-1],
        "samples": [each["text"] for each in samples][-2:],
        "seconds_in_all": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, after every case")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the demo's runs")
    parser.add_argument("--texts", type=Path, help="tinyshakespeare.txt and r50k_base.tiktoken, for the published runs")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--tiny", action="store_true", help="try the script itself, on any machine")
    given = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    figures: dict[str, Any] = {"device": device, "torch": torch.__version__, "cases": {}}
    chosen = cases(given.seconds, given.tiny) | (published(given.texts, given.tiny) if given.texts else {})
    for name, config in {name: each for name, each in chosen.items() if given.only in name}.items():
        print(f"\n== {name}", flush=True)
        try:
            figures["cases"][name] = measure(config)
        except Exception as error:  # one case that fails must not lose the others' figures
            figures["cases"][name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(figures["cases"][name]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
