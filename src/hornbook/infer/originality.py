"""What a model merely recites.

In: a run.  Out: of what it writes after openings of its validation text, or wrote as it trained, how much stands in its
training text word for word, where its longest passages stand, and how much of the validation text itself does, which is
what fresh text of the kind has by chance; and one sentence that says what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError
from hornbook.infer.speaker import load_speaker
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import read_log
from hornbook.shards.format import Shards
from hornbook.shards.openings import openings
from hornbook.shards.recited import LEAST, WORDS, Passage, Recited, recited
from hornbook.shards.twins import Twins

SAMPLES, TOKENS = 32, 256
HELD_OUT_PIECES, HELD_OUT_TOKENS = 64, 512
LISTED, SHOWN = 5, 240
MOST_OF_IT, MUCH, TIMES = 0.5, 0.05, 3.0
FEWEST = 100  # sequences, of which less than one in a hundred can be told from none


@dataclass(frozen=True)
class Share:
    """Of sequences of eight words."""

    found: int
    sequences: int

    @classmethod
    def of(cls, parts: Sequence[Recited]) -> Share:
        return cls(sum(part.found for part in parts), sum(part.sequences for part in parts))

    @property
    def value(self) -> float:
        return self.found / max(self.sequences, 1)

    def __str__(self) -> str:
        return f"{self.value:.1%} of {self.sequences:,} sequences of {WORDS} words"


@dataclass(frozen=True)
class Originality:
    run: str
    samples: int
    of_samples: Share
    of_held_out: Share
    covered: float
    """Share of the samples' bytes in passages of LEAST bytes or more."""
    passages: tuple[dict[str, Any], ...]
    twins: Twins
    training_bytes: int

    @property
    def verdict(self) -> str:
        mine, fresh = self.of_samples, self.of_held_out
        beside = f"of fresh text of the kind {fresh.value:.1%}"
        if mine.sequences < FEWEST:
            return f"It wrote too little to tell: {mine.sequences:,} sequences of {WORDS} words."
        if mine.value >= MOST_OF_IT:
            return f"It mostly recites: {mine.value:.0%} of what it writes stands in its training text, {beside}."
        if mine.value > max(MUCH, TIMES * fresh.value):
            return f"It recites in part: {mine.value:.1%} of what it writes stands in its training text, {beside}."
        return f"It writes its own: {mine.value:.1%} of what it writes stands in its training text, {beside}."

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "verdict": self.verdict,
            "samples": self.samples,
            "words": WORDS,
            "of_samples": asdict(self.of_samples) | {"share": self.of_samples.value},
            "of_held_out": asdict(self.of_held_out) | {"share": self.of_held_out.value},
            "share_in_passages": self.covered,
            "least_bytes_of_a_passage": LEAST,
            "passages": list(self.passages),
            "near_duplicates": asdict(self.twins),
            "training_bytes": self.training_bytes,
        }


def originality(
    path: Path,
    at: str = "best",
    device: str | None = None,
    dtype: str | None = None,
    from_log: bool = False,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Originality:
    run = RunFolder(path)
    if not run.has_record():
        raise UserError(f"{path}: not a run, whose training text is known; name a folder with a run.json")
    shards = Shards.open(run.record().shards)
    if not shards.split_facts("val")["tokens"]:
        raise UserError(f"{shards.folder}: holds no validation text, beside which to hold what the model writes")
    samples = _logged(run) if from_log else _written(path, shards, at, device, dtype)
    held_out = _held_out(shards)
    total = len(shards.split("train"))
    found = recited(shards, [*samples, *held_out], progress=lambda done: progress(done, total))
    mine = found[: len(samples)]
    return Originality(
        run=str(path),
        samples=len(samples),
        of_samples=Share.of(mine),
        of_held_out=Share.of(found[len(samples) :]),
        covered=sum(part.covered for part in mine) / max(sum(part.bytes for part in mine), 1),
        passages=_longest(mine),
        twins=Twins.told_in(shards.manifest),
        training_bytes=shards.bytes_of_text("train"),
    )


def _longest(parts: Sequence[Recited]) -> tuple[dict[str, Any], ...]:
    """Each place of the training text once."""
    chosen: list[tuple[int, Passage]] = []
    found = [(number, each) for number, part in enumerate(parts) for each in part.passages]
    for number, each in sorted(found, key=lambda pair: -pair[1].bytes):
        if len(chosen) < LISTED and not any(each.overlaps(other) for _, other in chosen):
            chosen.append((number, each))
    return tuple({"sample": number} | asdict(each) for number, each in chosen)


def _written(path: Path, shards: Shards, at: str, device: str | None, dtype: str | None) -> list[str]:
    """What it writes after words with which validation text begins."""
    speaker = load_speaker(path, at, device, dtype)
    prompts = [f"{each} " if not each.endswith(" ") else each for each in openings(shards, SAMPLES)]
    return [each.text for each in speaker.generate_batch(prompts, max_tokens=TOKENS, seed=0)]


def _logged(run: RunFolder) -> list[str]:
    """Those of the newest step that has any."""
    log = [each for each in read_log(run.samples) if isinstance(each.get("text"), str)]
    if not log:
        raise UserError(f"{run.samples}: holds no samples; leave --log out, and the model writes some")
    last = max(each["step"] for each in log)
    return [each["text"] for each in log if each["step"] == last]


def _held_out(shards: Shards) -> list[str]:
    """Pieces of the validation text from all over it, of a small one the whole."""
    tokens = shards.split("val")
    pieces = min(HELD_OUT_PIECES, max(len(tokens) // HELD_OUT_TOKENS, 1))
    length = min(HELD_OUT_TOKENS, len(tokens))
    starts = [number * (len(tokens) - length) // max(pieces - 1, 1) for number in range(pieces)]
    return [shards.tokenizer.decode(tokens.read(start, length).tolist()) for start in starts]
