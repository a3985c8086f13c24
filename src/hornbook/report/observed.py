"""What the doctor has before it.

In: a run folder, at its end or while it grows, and the shards that it reads.  Out: `Observed`: the run's settings, its
steps as columns, its evaluations, and facts of its text, as far as they are there. Only read; a log is read on from
where the last look ended.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hornbook.base.errors import UserError
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import Following
from hornbook.shards.format import Shards, TokenArray

Numbers = NDArray[np.float64]
COLUMNS = ("step", "tokens", "epochs", "loss", "grad_norm", "lr_factor", "seconds", "update_ratio", "left_out")
# Of a text that is looked at for its entries: so many ids, in pieces from all over it; and to be read as text.
LOOKED_AT, PIECES, READ = 1 << 19, 16, 1 << 15
# What ends documents in other programs' files, where it was to be read as a sign and not as its characters.
MARKS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "</s>", "[SEP]", "<eos>", "[EOS]")
UNKNOWN = ("[UNK]", "<unk>")


@dataclass(frozen=True)
class TextFacts:
    """Of the shards that a run reads."""

    folder: Path
    kind: str
    """Of the tokenizer."""
    vocab_size: int
    tokens: int
    bytes_of_text: int
    documents: int
    looked_at: int
    """Ids, of which these are the next two."""
    used: int
    """Different ones."""
    unknown: int
    ends: int
    """Documents' ends among them."""
    marks: Mapping[str, int]
    """Ends of documents that stand there as characters."""
    twins: Mapping[str, Any]
    """What was found when it was prepared: validation documents compared, and of them those in the training text."""
    yardsticks: Mapping[str, float]

    @property
    def bytes_per_token(self) -> float:
        return self.bytes_of_text / max(self.tokens, 1)

    @classmethod
    def of(cls, shards: Shards) -> TextFacts:
        facts, tokenizer = shards.split_facts("train"), shards.tokenizer
        ids, text = _looked_at(shards.split("train"), LOOKED_AT), _looked_at(shards.split("train"), READ)
        counts = np.bincount(ids, minlength=shards.vocab_size)
        read = tokenizer.decode(text.tolist()) if tokenizer.keeps_text else ""
        unknown = [number for number in range(min(shards.vocab_size, 1000)) if tokenizer.name(number) in UNKNOWN]
        return cls(
            folder=shards.folder,
            kind=str(shards.manifest["tokenizer"]),
            vocab_size=shards.vocab_size,
            tokens=int(facts["tokens"]),
            bytes_of_text=int(facts["bytes_of_text"]),
            documents=int(facts["documents"]),
            looked_at=len(ids),
            used=int(np.count_nonzero(counts)),
            unknown=int(sum(counts[number] for number in unknown)),
            ends=int(counts[tokenizer.end_of_text]),
            marks={mark: times for mark in MARKS if (times := read.count(mark))},
            twins=shards.manifest.get("report", {}).get("twins", {}),
            yardsticks=shards.split_facts("val").get("yardsticks", {}),
        )


def _looked_at(tokens: TokenArray, at_most: int) -> NDArray[np.int64]:
    """All of a text's ids, or as many, in pieces from all over it."""
    if len(tokens) <= at_most:
        return tokens.read(0, len(tokens))
    piece = at_most // PIECES
    starts = [(len(tokens) - piece) * number // (PIECES - 1) for number in range(PIECES)]
    return np.concatenate([tokens.read(start, piece) for start in starts])


@dataclass
class Observed:
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    """As run.json has it."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    text: TextFacts | None = None
    parameters: int = 0
    """Without those of the embedding and the head."""
    over: bool = True
    """Whether the run has come to its end."""
    rows: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in COLUMNS})
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] | None = None

    def add(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if "loss" in entry:
                for name, column in self.rows.items():
                    value = entry.get(name)
                    column.append(float(value) if isinstance(value, int | float) else math.nan)
            elif _is_number(entry.get("val_loss")):
                self.evaluations.append(entry)
            elif _is_number(entry.get("final_val_loss")):
                self.final = {name.removeprefix("final_"): value for name, value in entry.items()}
        self.__dict__.pop("columns", None)

    @cached_property
    def columns(self) -> dict[str, Numbers]:
        return {name: np.array(column) for name, column in self.rows.items()}

    def __getitem__(self, name: str) -> Numbers:
        """A column of the steps; nan where a step has none."""
        return self.columns[name]

    @property
    def steps(self) -> int:
        return len(self.rows["step"])

    @property
    def step(self) -> int:
        """The last."""
        return int(self.rows["step"][-1]) if self.steps else 0

    @property
    def epochs(self) -> float:
        return self.rows["epochs"][-1] if self.steps else 0.0

    def knob(self, dotted: str) -> Any:
        value: Any = self.config
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def mean_loss(self, begin: float, end: float) -> float:
        """Of the steps from one share of the run to another; nan of none."""
        losses = self["loss"][int(begin * self.steps) : max(int(end * self.steps), int(begin * self.steps) + 1)]
        return float(np.nanmean(losses)) if np.isfinite(losses).any() else math.nan


class Observing:
    """A run folder, of which more is seen each time."""

    def __init__(self, run: Path, from_byte: int = 0) -> None:
        self._folder = RunFolder(run)
        self._metrics = Following(self._folder.metrics, from_byte)
        self._known = Observed(run)
        self._asked = False

    def look(self, over: bool) -> Observed:
        anew, entries = self._metrics.more()
        if anew:
            known = self._known
            self._known = Observed(known.folder, known.config, known.machine, known.text, known.parameters)
        known = self.asked()
        known.over = over
        known.add(entries)
        return known

    def asked(self) -> Observed:
        """With what does not change; a run may have lost its text, or have metrics alone."""
        if self._asked:
            return self._known
        self._asked = True
        with contextlib.suppress(UserError, OSError, KeyError, ValueError):
            record = self._folder.record()
            machine = record.more.get("machine")
            self._known.config, self._known.machine = record.config, machine if isinstance(machine, dict) else {}
            self._known.parameters = self._folder.model().n_params(embeddings=False)
            self._known.text = TextFacts.of(Shards.open(record.shards))
        return self._known


def observed(run: Path, entries: list[dict[str, Any]]) -> Observed:
    """A run whose log was read, as it is at its end."""
    seen = Observing(run).asked()
    seen.add(entries)
    return seen


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
