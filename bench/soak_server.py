"""A server under load for an hour: rows 14 to 16 of the promise on reliability.

    python bench/soak_server.py runs/NAME|MODEL [--minutes 60] [--out FILE.json] [--distinct 200] [--seed 0]

Starts `hornbook serve` in fp32 on the CPU, with 8 rows and a queue of 32, as a process of its own, and lets come

- for nine tenths of the time 64 clients, of whom 30 % vanish: while they stream, while they wait for an answer, or
  while they wait in the queue; each asks for one of `--distinct` completions, whose texts are computed offline before;
- during the middle quarter of that, besides, 200 connections that send their headers byte by byte, bodies of 10 MB,
  wrong Hosts, wrong Origins, and what is no HTTP;
- then, for the last tenth, 2,000 cancellations an hour, one after another, alone on the server: how long until no row
  is in use;
- and at the very end SIGTERM.

The record holds what every client saw, what the server says of how requests ended, texts that differ from those
offline, and the server's memory and open files every 10 seconds. It exits with 1 where one of `holds` does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch

from hornbook.base.machine import choose_machine
from hornbook.infer.speaker import Speaker, load_speaker

CLIENTS, ROWS, QUEUE = 64, 8, 32
VANISH = 0.3
RULES = ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 1.2, "top_k": 40})
SLOW_CONNECTIONS = 200
LARGE_BODY = 10_000_000
CANCELLATIONS_AN_HOUR = 2000
WATCH_EVERY_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 5  # uvicorn's
FREE_WITHIN_SECONDS = 0.1  # beyond a step: the way of a TCP packet, and of a look at /metrics
MEMORY_MAY_GROW = 0.05
FILES_MAY_GROW = 4
COMPLETIONS = "/v1/completions"
WORDS = ("the", "a", "king", "said", "once", "upon", "time", "little", "and", "ran", "home", "day", "of", "night")


def begin(model: Path) -> tuple[subprocess.Popen[str], str]:
    """The server, and its address."""
    words = ["serve", str(model), "--port", "0", "--rows", str(ROWS), "--queue", str(QUEUE)]
    command = [sys.executable, "-m", "hornbook", *words, "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("API"):
            return server, line.split()[1].removesuffix("/v1")
    raise SystemExit("the server did not start")


def questions(count: int, context: int, draw: random.Random) -> list[dict[str, Any]]:
    """Short and long ones, some beyond the context."""
    found = []
    for number in range(count):
        words = draw.choice([0, 1, 5, 20, context // 2])
        rules = draw.choice(
            [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 1.2, "top_k": 40}]
        )
        prompt = " ".join(draw.choices(WORDS, k=words))
        found.append({"prompt": prompt, "seed": number, "max_tokens": draw.choice([1, 8, 32, 96]), **rules})
    return found


def offline(speaker: Speaker, asked: list[dict[str, Any]]) -> list[str]:
    """What each completion should be, computed alone."""
    return [speaker.generate(each["prompt"], **{"top_p": None} | _without_prompt(each)) for each in asked]


def _without_prompt(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name != "prompt"}


class Soak:
    def __init__(self, address: str, asked: list[dict[str, Any]], texts: list[str], seed: int) -> None:
        self.address, self.asked, self.texts, self.seed = address, asked, texts, seed
        self.seen: Counter[str] = Counter()
        self.wrong: list[dict[str, Any]] = []
        self.seconds: list[float] = []  # of answered requests
        self.abuse: Counter[str] = Counter()

    def client(self, seconds: float = 120) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.address, timeout=seconds)

    async def visitor(self, number: int, until: float) -> None:
        draw = random.Random(self.seed * 1000 + number)
        while time.monotonic() < until:
            async with self.client() as client:
                for _ in range(draw.randint(1, 20)):
                    if time.monotonic() > until:
                        return
                    try:
                        saw = await self.ask(client, draw)
                    except httpx2.HTTPError as error:
                        saw = f"broken: {type(error).__name__}"
                    self.seen[saw] += 1
                    if saw in ("left", "429"):
                        break

    async def ask(self, client: httpx2.AsyncClient, draw: random.Random) -> str:
        number = draw.randrange(len(self.asked))
        body = self.asked[number] | {"stream": draw.random() < 0.5}
        patience = draw.random() * 0.5 if draw.random() < VANISH else None
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                status, text = await self.answer(client, body)
        except TimeoutError:
            return "left"
        if status == 429:
            await asyncio.sleep(draw.random())
        if status == 200:
            self.seconds.append(time.monotonic() - began)
            if text != self.texts[number]:
                self.wrong.append({"asked": body, "got": text, "offline": self.texts[number]})
        return str(status)

    async def answer(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> tuple[int, str]:
        async with client.stream("POST", COMPLETIONS, json=body) as answer:
            if answer.status_code != 200 or not body["stream"]:
                content = json.loads(await answer.aread())
                return answer.status_code, content["choices"][0]["text"] if answer.status_code == 200 else ""
            data = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
            whole = data[-1] == "[DONE]"
            return 200, "".join(json.loads(each)["choices"][0]["text"] for each in data[:-1]) if whole else "cut off"

    async def abuser(self, kind: str, start: float, until: float) -> None:
        await asyncio.sleep(max(start - time.monotonic(), 0))
        while time.monotonic() < until:
            with contextlib.suppress(httpx2.HTTPError, OSError):
                self.abuse[f"{kind}: {await self.abused(kind)}"] += 1
            await asyncio.sleep(0.05)

    async def abused(self, kind: str) -> str:
        """One act, and what came of it."""
        if kind == "slow headers":
            port = int(self.address.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while not writer.is_closing():
                    writer.write(b"X")
                    await writer.drain()
                    await asyncio.sleep(1)
                return "closed"
            except ConnectionError:
                return "closed"
            finally:
                writer.close()
        async with self.client(30) as client:
            if kind == "large body":
                return str((await client.post(COMPLETIONS, content=b"a" * LARGE_BODY)).status_code)
            if kind == "wrong Host":
                return str((await client.get("/v1/models", headers={"host": "rebound.example"})).status_code)
            if kind == "wrong Origin":
                return str((await client.get("/v1/models", headers={"origin": "https://evil.example"})).status_code)
            return str((await client.post(COMPLETIONS, content=b"{" * 1000)).status_code)

    async def metrics(self, client: httpx2.AsyncClient) -> dict[str, float]:
        lines = (await client.get("/metrics")).text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.removeprefix("hornbook_"): float(value) for name, _, value in pairs}

    async def cancellations(self, until: float, most: int) -> list[float]:
        """Seconds from a client's leaving until no row is in use, polled."""
        took: list[float] = []
        long = max(self.asked, key=lambda each: each["max_tokens"]) | {"max_tokens": 4096, "stream": True}
        async with self.client() as watcher:
            while len(took) < most and time.monotonic() < until:
                async with self.client() as client, client.stream("POST", COMPLETIONS, json=long) as answer:
                    await anext(answer.aiter_lines())
                left = time.monotonic()
                while (await self.metrics(watcher))["rows_in_use"]:
                    if time.monotonic() - left > 10:
                        return [*took, 10.0]
                took.append(time.monotonic() - left)
        return took

    async def look(self, process: psutil.Process, began: float) -> dict[str, float]:
        asked = time.monotonic()
        async with self.client() as client:
            found = await self.metrics(client)
        entry = {"second": asked - began, "rss": process.memory_info().rss, "files": process.num_fds()}
        entry |= {"metrics_seconds": time.monotonic() - asked}
        return entry | {name: found[name] for name in ("rows_in_use", "queue_length")}

    async def watch(self, process: psutil.Process, began: float, series: list[dict[str, float]]) -> None:
        while True:
            series.append(await self.look(process, began))
            await asyncio.sleep(WATCH_EVERY_SECONDS)


async def run(soak: Soak, process: psutil.Process, minutes: float) -> dict[str, Any]:
    began, series = time.monotonic(), list[dict[str, float]]()
    storm = minutes * 60 * 0.9
    series.append(await soak.look(process, began))  # before anybody comes
    watching = asyncio.create_task(soak.watch(process, began, series))
    kinds = ["large body", "wrong Host", "wrong Origin", "no JSON", *["slow headers"] * SLOW_CONNECTIONS]
    abusers = [soak.abuser(kind, began + storm * 0.375, began + storm * 0.625) for kind in kinds]
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(soak.visitor(number, began + storm))
        for each in abusers:
            group.create_task(each)
    async with soak.client() as client:
        while (found := await soak.metrics(client))["rows_in_use"] or found["queue_length"]:
            await asyncio.sleep(0.1)
    wanted = max(round(CANCELLATIONS_AN_HOUR * minutes / 60), 20)
    frees = await soak.cancellations(began + minutes * 60 * 1.2, wanted)
    async with soak.client() as client:
        found = await soak.metrics(client)
    watching.cancel()
    await asyncio.sleep(KEEP_ALIVE_SECONDS + 1)
    series.append(await soak.look(process, began))
    return {"series": series, "metrics": found, "frees": frees, "cancellations_wanted": wanted}


def judged(soak: Soak, found: dict[str, Any]) -> dict[str, Any]:
    metrics, series, frees = found["metrics"], found["series"], sorted(found["frees"])
    outcomes = {name: metrics[f'requests_total{{outcome="{name}"}}'] for name in ("complete", "cancelled", "full")}
    bad = {name: metrics[f'requests_total{{outcome="{name}"}}'] for name in ("closing", "failed", "impossible")}
    begun = metrics["requests_begun_total"]
    quarter = max(len(series) // 4, 1)
    early, late = series[quarter : 2 * quarter] or series, series[-quarter:]
    memory = [statistics.median(each["rss"] for each in part) for part in (early, late)]
    handles = [series[0]["files"], series[-1]["files"]]
    step = metrics["step_seconds_sum"] / max(metrics["step_seconds_count"], 1)
    free = {"count": len(frees), "median_seconds": statistics.median(frees), "most_seconds": frees[-1]}
    free["p99_seconds"] = frees[int(len(frees) * 0.99)]
    seconds = sorted(soak.seconds)
    return {
        "holds": {
            "every request ended once": sum(outcomes.values()) + sum(bad.values()) == begun,
            "none failed": not any(bad.values()),
            "no client saw another end": not any(each.startswith(("broken", "5")) for each in soak.seen),
            "answers are not more than were complete": soak.seen["200"] <= outcomes["complete"],
            "no text differs from offline": not soak.wrong,
            "memory is flat": memory[1] <= memory[0] * (1 + MEMORY_MAY_GROW),
            "open files are flat": handles[1] <= handles[0] + FILES_MAY_GROW,
            "all cancellations were tried": len(frees) >= found["cancellations_wanted"],
            "a row is free within a step of a cancellation": free["p99_seconds"] <= step + FREE_WITHIN_SECONDS,
        },
        "clients_saw": dict(soak.seen),
        "abusers_saw": dict(soak.abuse),
        "server_ended": outcomes | bad,
        "server_begun": begun,
        "texts_compared": soak.seen["200"],
        "texts_that_differ": soak.wrong[:20],
        "answer_seconds": {"median": statistics.median(seconds), "p99": seconds[int(len(seconds) * 0.99)]},
        "cancellation": free | {"mean_step_seconds": step},
        "memory_bytes": {"second_quarter": memory[0], "last_quarter": memory[1]},
        "open_files": {"first": handles[0], "most": max(each["files"] for each in series), "last": handles[1]},
        "series": series,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--distinct", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    speaker = load_speaker(given.model, device="cpu", dtype="float32")
    context = speaker.model.config.context
    asked = questions(given.distinct, context, random.Random(given.seed))
    print(f"computing {len(asked)} texts offline", flush=True)
    texts = offline(speaker, asked)
    parameters = speaker.model.config.n_params()
    del speaker
    server, address = begin(given.model)
    soak = Soak(address, asked, texts, given.seed)
    print(f"soaking {address} for {given.minutes:g} minutes", flush=True)
    try:
        found = asyncio.run(run(soak, psutil.Process(server.pid), given.minutes))
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    finally:
        server.kill()
    machine = choose_machine("cpu", "float32")
    record = {
        "minutes": given.minutes,
        "model": {"parameters": parameters, "context": context},
        "load": {"clients": CLIENTS, "vanish": VANISH, "rows": ROWS, "queue": QUEUE, "distinct": given.distinct},
        "machine": {"processor": machine.name, "cores": machine.cores, "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "fastapi", "uvicorn", "httpx2")},
        **judged(soak, found),
    }
    record["holds"]["SIGTERM ends it with 0"] = code == 0
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: value for name, value in record.items() if name not in ("series", "versions")}, indent=1))
    return 0 if all(record["holds"].values()) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
