"""How many tokens a second a server gives to one client, and to sixteen at once: over HTTP, beside transformers.

    python bench/serving.py --ranks r50k_base.tiktoken [--rounds 5] [--tokens 64] [--streams 16] [--out FILE.json]

The model is that of bench/generation.py: GPT-2's shape, random weights. `hornbook serve` runs as a process of its own,
one for each number type, of which one has work at a time; this process is the client, and streams. transformers answers
one request after the other, in this process, without a server. Every token is drawn at temperature 0.8 with top-p 0.95.
All of it, clients included, shares two processors.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import torch
import transformers
from generation import PROMPT, WAYS, by_transformers, number_types, rate, write_model

from hornbook.text.tokenizer import TokenizerConfig

RULES = WAYS["drawn"]


@contextlib.contextmanager
def serving(folder: Path, dtype: str) -> Iterator[str]:
    words = [sys.executable, "-m", "hornbook", "serve", str(folder), "--port", "0", "--dtype", dtype]
    process = subprocess.Popen([*words, "--device", "cpu"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(line.split()[1].rstrip("/") for line in process.stdout if line.startswith("page"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def stream(client: httpx2.AsyncClient, seed: int, tokens: int) -> int:
    """How many tokens came."""
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": tokens, "seed": seed, "stream": True}
    asked |= {"temperature": RULES.temperature, "top_p": RULES.top_p, "stream_options": {"include_usage": True}}
    came = 0
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                came = (json.loads(line[6:]).get("usage") or {"completion_tokens": came})["completion_tokens"]
    return came


async def tokens_per_second(url: str, streams: int, tokens: int) -> float:
    limits = httpx2.Limits(max_connections=streams)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        began = time.perf_counter()
        came = await asyncio.gather(*(stream(client, seed, tokens) for seed in range(streams)))
        return sum(came) / (time.perf_counter() - began)


def measure(folder: Path, number_of_rounds: int, tokens: int, streams: int) -> list[dict[str, float]]:
    theirs = {
        name: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name)).eval()
        for name in ("float32", "bfloat16")
    }
    rounds = []
    with contextlib.ExitStack() as running:
        servers = {dtype: running.enter_context(serving(folder, dtype)) for dtype in number_types()}
        for number in range(number_of_rounds + 1):  # the first is not counted
            found = {}
            for name, model in theirs.items():
                found[f"transformers {name}"] = rate(by_transformers, model, RULES, tokens, tokens=tokens)
            for dtype, url in servers.items():
                for many in (1, streams):
                    found[f"hornbook {dtype} x{many}"] = asyncio.run(tokens_per_second(url, many, tokens))
            if number:
                rounds.append(found)
                print(json.dumps({key: round(value, 1) for key, value in found.items()}), flush=True)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", required=True, help="GPT-2's vocabulary, for text to come")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), TokenizerConfig(kind="gpt2", ranks_file=given.ranks))
        rounds = measure(Path(name), given.rounds, given.tokens, given.streams)
    figures = {
        "tokens": given.tokens,
        "rounds": rounds,
        "median_tokens_per_second": {key: median(each[key] for each in rounds) for key in rounds[0]},
        "median_of_many_over_one": {
            dtype: median(each[f"hornbook {dtype} x{given.streams}"] / each[f"hornbook {dtype} x1"] for each in rounds)
            for dtype in ("float32", "bfloat16", "int8")
            if f"hornbook {dtype} x1" in rounds[0]
        },
    }
    print(json.dumps({key: value for key, value in figures.items() if key != "rounds"}, indent=2))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
