"""Texts that are one word, or of which nothing comes twice, prepared beside English of the same size; and Ctrl-C.

    python bench/pathological.py ENGLISH.txt... [--rounds 3] [--kind bpe] [--out FILE.json]

Each is 5 MB: the English texts one after another, over again where they are shorter; one character; newlines; DNA;
base64, in lines and in none; Chinese without a sign or blank. A turn prepares each once, with `hornbook prepare` in a
process of its own. Then each is interrupted at eight moments, from its start to its end, and how long it took to end is
told, with what it left behind.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZE = 5_000_000
MOMENTS = 8


def texts(english: list[Path]) -> dict[str, bytes]:
    chance = random.Random(7)
    whole = b"".join(path.read_bytes() for path in english)
    common = [chr(code) for code in range(0x4E00, 0x4E00 + 3_000)]
    weights = [1 / place for place in range(1, 3_001)]
    data = chance.randbytes(SIZE)
    return {
        "english": (whole * (SIZE // len(whole) + 1))[:SIZE].decode(errors="ignore").encode(),
        "one character": b"a" * SIZE,
        "newlines": b"\n" * SIZE,
        "dna": "".join(chance.choices("ACGT", k=SIZE)).encode(),
        "base64": base64.b64encode(data)[:SIZE],
        "base64 in lines": base64.encodebytes(data)[:SIZE],
        "chinese": "".join(chance.choices(common, weights, k=SIZE // 3)).encode(),
    }


def prepare(path: Path, kind: str, folder: Path, stop_after: float | None = None) -> dict[str, Any]:
    """Seconds by the clock and of the processors; where it is stopped, seconds until it ended."""
    out = folder / "out"
    command = [sys.executable, "-m", "hornbook", "prepare", str(path), "--out", str(out / "shards")]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    env = {**os.environ, "HORNBOOK_HOME": str(folder / "home")}
    with subprocess.Popen([*command, "--tokenizer.kind", kind], env=env, stdout=subprocess.DEVNULL) as child:
        if stop_after is not None:
            time.sleep(stop_after)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
        code = child.wait(600)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    left = sorted({each.name for each in out.iterdir()} - {"shards"}) if out.exists() else []
    subprocess.run(["rm", "-rf", str(out)], check=True)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": cpu, "code": code, "left": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("english", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="bpe")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would children
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text, data in texts(given.english).items():
            (folder / f"{text}.txt").write_bytes(data)
            found[text] = []
        prepare(folder / "english.txt", given.kind, folder)  # not counted
        for _ in range(given.rounds):
            for text, turns in found.items():
                turns.append(prepare(folder / f"{text}.txt", given.kind, folder))
        medians = {
            text: {key: statistics.median(turn[key] for turn in turns) for key in ("seconds", "processor_seconds")}
            for text, turns in found.items()
        }
        stopped = {
            text: [
                prepare(folder / f"{text}.txt", given.kind, folder, medians[text]["seconds"] * (place + 0.5) / MOMENTS)
                for place in range(MOMENTS)
            ]
            for text in found
        }
    for text, median in medians.items():
        ratios = [median[key] / medians["english"][key] for key in median]
        longest = max(each["seconds"] for each in stopped[text])
        left = sorted({name for each in stopped[text] for name in each["left"]})
        print(
            f"{text:16} {median['seconds']:6.2f} s {ratios[0]:5.2f}   {median['processor_seconds']:6.2f} s of the "
            f"processors {ratios[1]:5.2f}   Ctrl-C at most {longest:.2f} s, left {left}"
        )
    if given.out:
        figures = {"platform": platform.platform(), "turns": found, "medians": medians, "stopped": stopped}
        given.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
