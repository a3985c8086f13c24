"""From files to GPT-2 shards: hornbook beside tiktoken, turn by turn, each in a process of its own.

    python bench/prepare.py --ranks r50k_base.tiktoken [--megabytes 300] [--rounds 5] [--out FILE.json]
        [--cases small-files jsonl large-files]

Needs hornbook with gigatoken, and tiktoken. The text is the Python sources of the installed packages and the standard
library, over and over with another first line, until it is long enough. It lies on the disk in three ways, a case each:

- small-files: a file for each source, and it is a document; most are a few kilobytes;
- jsonl: the same documents, a line each, in files of 100 MB;
- large-files: 10 MB of them, one after another, are a file, and it is a document.

Both sides read the same files, warm in the page cache and after a first turn that is not counted, and leave the same
ids, with an end of text after each document, safely on the disk as uint16: hornbook with everything that a preparation
does (split, hashes, checks, manifest), tiktoken by `encode_ordinary_batch` with two threads. Both may use two
processors, the first two of the machine where it has more.

The documents' ids are compared. Of large-files hornbook holds the text's tail back, since they are few, and so makes
two documents of the one that is cut; every other is the same.
"""

from __future__ import annotations

import os

# Before any library counts the processors.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.environ["RAYON_NUM_THREADS"] = "2"

import argparse
import base64
import contextlib
import functools
import itertools
import json
import multiprocessing
import platform
import shutil
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
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
BATCH_CHARACTERS = 32_000_000


def sources(wanted: int) -> Iterator[str]:
    folders = sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
    texts = []
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        with contextlib.suppress(UnicodeDecodeError, OSError):
            texts.append(path.read_text(encoding="utf-8"))
    numbers = itertools.count()
    while True:
        for text in filter(None, texts):
            document = f"# text {next(numbers)}\n{text}"
            yield document
            wanted -= len(document.encode())
            if wanted <= 0:
                return


def write_small_files(folder: Path, wanted: int) -> None:
    for number, text in enumerate(sources(wanted)):
        place = folder / f"{number // 1000:04}" / f"{number:07}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8", newline="")


def write_jsonl(folder: Path, wanted: int) -> None:
    for number, texts in enumerate(in_parts(sources(wanted), 100_000_000)):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (folder / f"{number:04}.jsonl").write_text("".join(lines), encoding="utf-8", newline="")


def write_large_files(folder: Path, wanted: int) -> None:
    for number, texts in enumerate(in_parts(sources(wanted), 10_000_000)):
        (folder / f"{number:04}.txt").write_text("".join(texts), encoding="utf-8", newline="")


def in_parts(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    part: list[str] = []
    left = size
    for text in texts:
        part.append(text)
        left -= len(text)
        if left <= 0:
            yield part
            part, left = [], size
    yield part


def texts_of_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.txt")):
        yield path.read_bytes().decode().replace("\r\n", "\n")


def texts_of_lines(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                yield json.loads(line)["text"].replace("\r\n", "\n")


CASES: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], Iterator[str]]]] = {
    "small-files": (write_small_files, texts_of_files),
    "jsonl": (write_jsonl, texts_of_lines),
    "large-files": (write_large_files, texts_of_files),
}


@functools.cache
def tiktoken_encoding(ranks: Path) -> tiktoken.Encoding:
    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    table = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("r50k", pat_str=PIECES, mergeable_ranks=table, special_tokens={"<|endoftext|>": END})


def by_tiktoken(case: str, ranks: Path, text: Path, out: Path) -> None:
    encoding, read = tiktoken_encoding(ranks), CASES[case][1]
    with open(out, "wb") as file:
        for batch in in_parts(read(text), BATCH_CHARACTERS):
            for ids in encoding.encode_ordinary_batch(batch, num_threads=2):
                ids.append(END)
                file.write(np.array(ids, dtype=np.uint16))
        file.flush()
        os.fsync(file.fileno())


def by_hornbook(_case: str, ranks: Path, text: Path, out: Path) -> None:
    prepare(source_from_path(text), TokenizerConfig(kind="gpt2", ranks_file=str(ranks)), ShardsConfig(), out)


def timed(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Seconds by the clock, and of the processors."""
    began, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - began, time.process_time() - cpu


def documents(ids: np.ndarray[Any, Any]) -> set[bytes]:
    ends = np.flatnonzero(ids == END) + 1
    return {piece.tobytes() for piece in np.split(ids, ends)}


def measure(case: str, ranks: Path, megabytes: int, number_of_rounds: int) -> dict[str, Any]:
    rounds: list[dict[str, float]] = []
    alone = functools.partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as name, alone() as theirs, alone() as ours:
        text, ids, shards = (Path(name, part) for part in ("text", "theirs.bin", "ours"))
        text.mkdir()
        CASES[case][0](text, megabytes * 1_000_000)
        theirs.submit(timed, by_tiktoken, case, ranks, text, ids).result()
        ours.submit(timed, by_hornbook, case, ranks, text, shards).result()
        report = Shards.open(shards).manifest["report"]
        size, encoder = report["bytes_of_text"], report["encoder"]
        flat = np.concatenate([np.fromfile(path, np.uint16) for path in sorted(shards.glob("*.bin"))])
        our_documents, their_documents = documents(flat), documents(np.fromfile(ids, np.uint16))
        only = [len(our_documents - their_documents), len(their_documents - our_documents)]
        del flat, our_documents, their_documents
        for _ in range(number_of_rounds):
            shutil.rmtree(shards)
            seconds, cpu = theirs.submit(timed, by_tiktoken, case, ranks, text, ids).result()
            our_seconds, our_cpu = ours.submit(timed, by_hornbook, case, ranks, text, shards).result()
            rates = {"tiktoken": size / seconds / 1e6, "hornbook": size / our_seconds / 1e6}
            cpus = {"tiktoken_cpu": cpu, "hornbook_cpu": our_cpu}
            rounds.append(rates | cpus | {"ratio": seconds / our_seconds, "load": os.getloadavg()[0]})
            print(case, json.dumps({name: round(value, 2) for name, value in rounds[-1].items()}), flush=True)
    return {
        "bytes_of_text": size,
        "encoder": encoder,
        "documents_only_ours_only_theirs": only,
        "rounds": rounds,
        "median": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, required=True, help="r50k_base.tiktoken")
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: version(name) for name in ("gigatoken", "tiktoken", "tokenizers", "numpy")},
        "cases": {},
    }
    for case in given.cases:
        found = measure(case, given.ranks, given.megabytes, given.rounds)
        figures["cases"][case] = found
        print(
            case,
            json.dumps({name: found[name] for name in ("median", "documents_only_ours_only_theirs", "encoder")}),
            flush=True,
        )
        if given.out:
            given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
