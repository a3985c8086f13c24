"""From files to GPT-2 shards: hornbook beside tiktoken, turn by turn, in one process.

    python bench/prepare.py --ranks r50k_base.tiktoken [--megabytes 300] [--rounds 5] [--out FILE.json]

Needs hornbook with gigatoken, and tiktoken. The text is the Python sources of the installed packages and the standard
library, over and over with another first line, until it is long enough; a file is a document. Both sides read the same
files, warm in the page cache, and leave the same ids, with an end of text after each document, safely on the disk as
uint16: hornbook with everything that a preparation does (split, hashes, checks, manifest), tiktoken by
`encode_ordinary_batch` with two threads. The ids are compared. Both may use two processors, the first two of the
machine where it has more.
"""

from __future__ import annotations

import os

# Before any library counts the processors.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.environ["RAYON_NUM_THREADS"] = "2"

import argparse
import base64
import json
import platform
import shutil
import statistics
import sysconfig
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig

PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END = 50256
BATCH_BYTES = 32_000_000


def write_corpus(folder: Path, wanted: int) -> int:
    sources = sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
    texts = []
    for path in sorted({path for source in sources for path in source.rglob("*.py")}):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError):
            continue
    written = number = 0
    while written < wanted:
        for text in filter(None, texts):
            data = f"# text {number}\n{text}".encode()
            place = folder / f"{number // 1000:04}" / f"{number:07}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            written += len(data)
            number += 1
            if written >= wanted:
                break
    return written


def by_tiktoken(encoding: tiktoken.Encoding, folder: Path, out: Path) -> None:
    def flush() -> None:
        for ids in encoding.encode_ordinary_batch(texts, num_threads=2):
            ids.append(END)
            file.write(np.array(ids, dtype=np.uint16))

    texts: list[str] = []
    size = 0
    with open(out, "wb") as file:
        for path in sorted(folder.rglob("*.txt")):
            data = path.read_bytes()
            texts.append(data.decode().replace("\r\n", "\n"))
            size += len(data)
            if size >= BATCH_BYTES:
                flush()
                texts, size = [], 0
        flush()
        file.flush()
        os.fsync(file.fileno())


def by_hornbook(ranks: Path, folder: Path, out: Path) -> Shards:
    config = TokenizerConfig(kind="gpt2", ranks_file=str(ranks))
    return prepare(source_from_path(folder), config, ShardsConfig(), out)


def documents(ids: np.ndarray[Any, Any]) -> set[bytes]:
    ends = np.flatnonzero(ids == END) + 1
    return {piece.tobytes() for piece in np.split(ids, ends)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, required=True, help="r50k_base.tiktoken")
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    lines = [line.split() for line in given.ranks.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("r50k", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": END})
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_corpus(folder / "text", given.megabytes * 1_000_000)
        by_tiktoken(encoding, folder / "text", folder / "theirs.bin")  # and warm the page cache
        for number in range(given.rounds):
            began, theirs = time.perf_counter(), time.process_time()
            by_tiktoken(encoding, folder / "text", folder / "theirs.bin")
            between, ours = time.perf_counter(), time.process_time()
            shards = by_hornbook(given.ranks, folder / "text", folder / "ours")
            ended = time.perf_counter()
            cpu = {"tiktoken_cpu": ours - theirs, "hornbook_cpu": time.process_time() - ours}
            rates = {"tiktoken": size / (between - began) / 1e6, "hornbook": size / (ended - between) / 1e6}
            rounds.append(rates | cpu | {"ratio": rates["hornbook"] / rates["tiktoken"], "load": os.getloadavg()[0]})
            print(json.dumps({name: round(value, 2) for name, value in rounds[-1].items()}), flush=True)
            if number == 0:
                arrays = [np.fromfile(path, np.uint16) for path in sorted((folder / "ours").glob("*.bin"))]
                same = documents(np.concatenate(arrays)) == documents(np.fromfile(folder / "theirs.bin", np.uint16))
                encoder = shards.manifest["report"]["encoder"]
            shutil.rmtree(folder / "ours")
    figures = {
        "machine": platform.processor() or platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: version(name) for name in ("gigatoken", "tiktoken", "tokenizers", "numpy")},
        "bytes_of_text": size,
        "encoder": encoder,
        "same_documents": same,
        "rounds": rounds,
        "median": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
    }
    print(json.dumps({"median": figures["median"], "same_documents": same, "encoder": encoder}))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
