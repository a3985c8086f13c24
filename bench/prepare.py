"""From files to GPT-2 shards: hornbook beside tiktoken, turn by turn, each in a process of its own. Row 9.

    python bench/prepare.py [--ranks r50k_base.tiktoken] [--megabytes 300] [--rounds 5] [--out FOLDER]
        [--cases small-files jsonl large-files]

Needs hornbook with gigatoken, and tiktoken. The text is the Python sources of the installed packages and the standard
library, over and over with another first line, until it is long enough. It lies on the disk in three ways, a case each:

- small-files: a file for each source, and it is a document; most are a few kilobytes;
- jsonl: the same documents, a line each, in files of 100 MB;
- large-files: 10 MB of them, one after another, are a file, and it is a document.

Both sides read the same files, warm in the page cache and after a first turn that is not counted, and leave the same
ids, with an end of text after each document, safely on the disk as uint16: hornbook with everything that a preparation
does (split, hashes, checks, manifest), tiktoken by `encode_ordinary_batch` with a thread for each core.

The documents' ids are compared. Of large-files hornbook holds the text's tail back, since they are few, and so makes
two documents of the one that is cut; every other is the same.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RANKS, Claim, Found, medians, run, texts_at_hand, times_faster, turns

from hornbook.base.machine import cores_to_use
from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig

PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END = 50256
BATCH_CHARACTERS = 32_000_000


def sources(wanted: int) -> Iterator[str]:
    folders = sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
    paths = sorted({path for folder in folders for path in folder.rglob("*.py")})
    numbers = itertools.count()
    while True:
        for text in filter(None, map(text_of, paths)):
            document = f"# text {next(numbers)}\n{text}"
            yield document
            wanted -= len(document.encode())
            if wanted <= 0:
                return


def text_of(path: Path) -> str:
    """Nothing where it is no text."""
    with contextlib.suppress(UnicodeDecodeError, OSError):
        return path.read_text(encoding="utf-8")
    return ""


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
def tiktoken_encoding(ranks: Path) -> Any:
    import tiktoken

    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    table = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("r50k", pat_str=PIECES, mergeable_ranks=table, special_tokens={"<|endoftext|>": END})


def by_tiktoken(case: str, ranks: Path, text: Path, out: Path) -> None:
    encoding, read = tiktoken_encoding(ranks), CASES[case][1]
    threads = int(os.environ["RAYON_NUM_THREADS"])
    with open(out, "wb") as file:
        for batch in in_parts(read(text), BATCH_CHARACTERS):
            for ids in encoding.encode_ordinary_batch(batch, num_threads=threads):
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


def compete(case: str, given: argparse.Namespace, with_peer: bool) -> dict[str, Any]:
    alone = functools.partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, alone() as theirs, alone() as ours:
        text, ids, shards = (Path(name, part) for part in ("text", "theirs.bin", "ours"))
        text.mkdir()
        CASES[case][0](text, int(given.megabytes * 1_000_000))

        def by(program: str, process: ProcessPoolExecutor, work: Callable[..., None], out: Path) -> float:
            if out == shards:
                shutil.rmtree(shards, ignore_errors=True)
            seconds, of_the_cores = process.submit(timed, work, case, given.ranks, text, out).result()
            cpu.setdefault(program, []).append(of_the_cores)
            return seconds

        entering = {"hornbook": functools.partial(by, "hornbook", ours, by_hornbook, shards)}
        if with_peer:
            entering["tiktoken"] = functools.partial(by, "tiktoken", theirs, by_tiktoken, ids)
        seconds = turns(entering, given.rounds)
        report = Shards.open(shards).manifest["report"]
        size = report["bytes_of_text"]
        found: dict[str, Any] = {"bytes_of_text": size, "encoder": report["encoder"], "seconds": seconds}
        found |= {"seconds_of_the_cores": {name: each[1:] for name, each in cpu.items()}}
        if with_peer:
            flat = np.concatenate([np.fromfile(path, np.uint16) for path in sorted(shards.glob("*.bin"))])
            our_documents, their_documents = documents(flat), documents(np.fromfile(ids, np.uint16))
            only = [len(our_documents - their_documents), len(their_documents - our_documents)]
            found["documents_only_ours_only_theirs"] = only
    found["megabytes_per_second"] = {name: size / each / 1e6 for name, each in medians(seconds).items()}
    return found


def measure(given: argparse.Namespace) -> Found:
    found = Found()
    os.environ["RAYON_NUM_THREADS"] = str(cores_to_use())
    if not given.ranks.is_file():
        found.pass_over(f"GPT-2's vocabulary: no {given.ranks.name} (--ranks)")
        return found
    if not (with_peer := find_spec("tiktoken") is not None):
        found.pass_over("tiktoken, which is not installed")
    for case in given.cases:
        found.figures[case] = each = compete(case, given, with_peer)
        rates = each["megabytes_per_second"]
        ratio = times_faster(each["seconds"], "hornbook", "tiktoken") if with_peer else None
        what = f"{case} to shards, {each['bytes_of_text'] / 1e6:.0f} MB"
        peer = rates.get("tiktoken")
        found.claims.append(Claim(9, what, rates["hornbook"], "MB/s", peer, "tiktoken", "10", ratio))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=Path, default=texts_at_hand() / RANKS, help="GPT-2's vocabulary")
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))


if __name__ == "__main__":
    run(__doc__, measure, options)
