"""How many tokens a second a server gives to one client, and to sixteen at once: over HTTP, beside transformers.

    python bench/serving.py [--ranks r50k_base.tiktoken] [--rounds 5] [--tokens 64] [--streams 16] [--out FOLDER]

The model is that of bench/generation.py: GPT-2's shape, random weights. `hornbook serve` runs as a process of its own,
one for each number type, of which one has work at a time; this process is the client, and streams. transformers answers
one request after the other, in this process, without a server. Every token is drawn at temperature 0.8 with top-p 0.95.
All of it, clients included, shares the cores.
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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from generation import PROMPT, WAYS, by_transformers, number_types, transformers_models, write_model
from measuring import RANKS, Claim, Found, run, texts_at_hand, timed

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


def measure(given: argparse.Namespace) -> Found:
    found = Found()
    rounds = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        write_model(folder, TokenizerConfig(kind="gpt2", ranks_file=str(given.ranks)), given.tiny)
        theirs = transformers_models(folder, ("float32", "bfloat16"))
        servers = {dtype: running.enter_context(serving(folder, dtype)) for dtype in number_types(found)}
        for number in range(given.rounds + 1):  # the first is not counted
            rates = {}
            for dtype, model in theirs.items():
                one_by_one = timed(partial(by_transformers, model, RULES, given.tokens))
                rates[f"transformers {dtype}"] = given.tokens / one_by_one()
            for dtype, url in servers.items():
                for many in (1, given.streams):
                    rates[f"hornbook {dtype} x{many}"] = asyncio.run(tokens_per_second(url, many, given.tokens))
            if number:
                rounds.append(rates)
    found.figures = {"tokens": given.tokens, "rounds": rounds}
    found.figures["median_tokens_per_second"] = {key: median(each[key] for each in rounds) for key in rounds[0]}
    for dtype in servers:
        one, many = (f"hornbook {dtype} x{streams}" for streams in (1, given.streams))
        for key, peer in ((one, "transformers float32"), (many, one)):
            rate, beside = (median(each[name] for each in rounds) for name in (key, peer))
            ratio = median(each[key] / each[peer] for each in rounds)
            found.claims.append(Claim(8, f"over HTTP, {key}", rate, "tokens/s", beside, peer, ratio=ratio))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=Path, default=texts_at_hand() / RANKS, help="GPT-2's vocabulary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)


if __name__ == "__main__":
    run(__doc__, measure, options)
