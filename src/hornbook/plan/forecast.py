"""What a run will come to, before it is trained.

In: settings, and the text as it lies there.  Out: when it ends, how many tokens it will have seen, how much memory it
takes, and about which loss it will reach; to read, or as a dictionary. A few steps are timed on this machine; nothing
is trained or written.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hornbook.base.console import count, duration, say
from hornbook.base.errors import UserError
from hornbook.base.machine import choose_machine
from hornbook.model.init import outline
from hornbook.recipes import compose, vocabulary_of
from hornbook.recipes.dial import CHARACTERS, FEW_BYTES, LEARNING, MANY_READINGS, bytes_of_a_token
from hornbook.shards.format import Shards, is_shards
from hornbook.text.corpora import find_corpus, find_source, is_corpus
from hornbook.text.readers import STANDARD_INPUT, Source
from hornbook.train.config import RunConfig
from hornbook.train.memory import training_memory
from hornbook.train.probe import BUSY, seconds_a_step
from hornbook.train.sizing import first_micro_batch

# How hard a text is, is what gzip makes of pieces from all over it.
SAMPLE_BYTES, PIECE_BYTES, MOST_READ_BYTES = 1_000_000, 32_768, 64_000_000
YARDSTICK = "gzip -9"
# bits per byte = (A + B x gzip's) x (megabytes read) ^ -C x (millions of parameters in blocks) ^ -D. What is read again
# hardly counts: of a text, no more than 1 + AGAIN times its megabytes, however often it is read. Fitted on 32 runs of
# two seconds to twenty minutes (records/2026-11-28-zen4-1-core-dial), A, B and C on twelve more, since heads begin by
# looking back: off by 3.4 % at most of these (records/2026-11-28-zen3-1-core-dial), by more of a text that it has not
# seen, for gzip does not know how much there is to learn.
A, B, C, D, AGAIN, SPREAD = 0.92, 0.40, 0.145, 0.034, 0.336, 0.1
# Of a text that is learned in bytes the law knows little; there, it seems, every reading counts.
SPREAD_OF_LITTLE = 0.2
MORE = 3.0
# Of its minutes, what a run takes that these bring to an end.
ENDS_BY_TIME = 0.95


@dataclass(frozen=True)
class Forecast:
    """Of one run."""

    config: RunConfig
    machine: str
    seconds_a_step: float
    share_waited: float
    steps: int
    seconds: float
    tokens: int
    readings: float | None
    memory_bytes: int
    difficulty: float | None
    """The bits per byte that gzip makes of the text."""

    @property
    def bits_per_byte(self) -> float | None:
        """Of text not seen in training, most probably."""
        return self._likely_bits(1.0)

    @property
    def between(self) -> tuple[float, float] | None:
        """Where the loss lies most probably."""
        bits, spread = self.bits_per_byte, SPREAD_OF_LITTLE if self._is_of_little_text else SPREAD
        return None if bits is None else (bits * (1 - spread), bits * (1 + spread))

    def as_dict(self) -> dict[str, Any]:
        told = {"bits_per_byte": self.bits_per_byte, "between": self.between}
        return asdict(self) | told | {"config": self.config.model_dump(mode="json")}

    def with_more(self, times: float) -> float | None:
        """The bits per byte of a run of so many times the minutes; None where something else ends it first, or nothing
        is known of its text."""
        return self._likely_bits(times) if self._ends_by_time else None

    @property
    def _ends_by_time(self) -> bool:
        minutes = self.config.train.minutes
        return minutes is not None and self.seconds > ENDS_BY_TIME * 60 * minutes

    def _likely_bits(self, times: float) -> float | None:
        """Of a run of so many times the steps."""
        if self.difficulty is None:
            return None
        read, readings = times * self._megabytes, times * (self.readings or 0)
        if readings > 1 and not self._is_of_little_text:
            read = read / readings * (1 + AGAIN * (1 - math.exp((1 - readings) / AGAIN)))
        parameters = self.config.model.n_params(embeddings=False) / 1e6
        bits: float = (A + B * self.difficulty) * read**-C * parameters**-D
        return bits

    @property
    def _megabytes(self) -> float:
        """Read in the whole run."""
        return self.tokens * bytes_of_a_token(self.config.tokenizer.kind) / 1e6

    @property
    def _is_of_little_text(self) -> bool:
        return self.readings is not None and 1e6 * self._megabytes < FEW_BYTES * self.readings

    @property
    def disturbed(self) -> str | None:
        """What is to be known of a machine that was not free."""
        if self.share_waited <= BUSY:
            return None
        return (
            f"something else is at work on this machine: {self.share_waited:.0%} of a step went by in waiting for a "
            "core; alone, the run gets further in its time than is told here"
        )

    def in_a_line(self) -> str:
        """For whom it is about to be trained."""
        read = f" and {self.readings:.2g} epochs" if self.readings is not None else ""
        told = f"expected: done in {duration(self.seconds)}, after {self.steps:,} steps{read}"
        if self.between is not None:
            told += f", at {self.between[0]:.2f} to {self.between[1]:.2f} bits per byte"
        minutes = self.config.train.minutes or 0
        if (more := self.with_more(2)) is not None:
            if (self.readings or 0) > MANY_READINGS:
                return f"{told}; more time would bring next to nothing, more text would"
            return f"{told}; twice the time (--minutes {2 * minutes:g}) would bring about {more:.2f}"
        by_heart = self.config.train.epochs is not None and not self._ends_by_time
        return told + ("; more time would only learn it by heart" if by_heart else "")

    def show(self) -> None:
        config, model = self.config, self.config.model
        vocabulary = f"{config.tokenizer.kind} vocabulary of {model.known_vocab_size:,}"
        say(
            f"model     {count(model.n_params())} parameters: {model.n_layer} layers of width {model.n_embd}, context "
            f"{model.context}, {vocabulary}"
        )
        say(f"machine   {self.machine}: {self.seconds_a_step:.3g} s for a step of {config.train.batch_tokens:,} tokens")
        if self.disturbed:
            say(f"busy      {self.disturbed}")
        read = f", {self.readings:.2g} epochs" if self.readings is not None else ""
        say(f"training  {count(self.tokens)} tokens in {self.steps:,} steps{read}")
        say(f"time      {duration(self.seconds)}")
        say(f"memory    {count(float(self.memory_bytes))}B")
        if self.between is not None:
            say(f"loss      {self.between[0]:.2f} to {self.between[1]:.2f} bits per byte of text not seen in training")
        if (more := self.with_more(MORE)) is not None:
            say(f"more      {MORE:g} times the minutes: about {more:.2f}")


def forecast(named: str | None, knobs: Mapping[str, Any], tiny: bool = False) -> Forecast:
    if knobs.get("data") == STANDARD_INPUT:
        raise UserError("plan: standard input can be read only once; keep the text in a file")
    return foretold(compose(named, knobs, tiny, measured=True))


def foretold(config: RunConfig) -> Forecast:
    """Of settings that were composed."""
    text_bytes, difficulty = _of_text(config)
    config = with_likely_vocabulary(config)
    machine = choose_machine(config.train.device, config.train.dtype, config.train.threads)
    step = seconds_a_step(config, machine)
    each = step.seconds
    steps = _steps(config, each, text_bytes)
    tokens = steps * config.sequences * config.window
    seen = tokens * bytes_of_a_token(config.tokenizer.kind)
    memory = training_memory(
        config,
        outline(config.model),
        first_micro_batch(config, machine),
        machine.torch_dtype,
        machine.torch_device.type,
    )
    return Forecast(
        config=config,
        machine=f"{machine.name}, {machine.dtype}",
        seconds_a_step=each,
        share_waited=step.share_waited,
        steps=steps,
        seconds=steps * each / LEARNING,
        tokens=tokens,
        readings=seen / text_bytes if text_bytes else None,
        memory_bytes=memory.bytes,
        difficulty=difficulty,
    )


def with_likely_vocabulary(config: RunConfig) -> RunConfig:
    """With as many entries as its vocabulary has, or about as many."""
    shards = Shards.open(Path(config.data)) if is_shards(Path(config.data)) else None
    entries = shards.vocab_size if shards is not None else vocabulary_of(config)
    if entries is None and config.tokenizer.kind == "char":
        entries = CHARACTERS
    if entries is None:
        raise UserError(
            "plan: how many entries the vocabulary has is not known before the text is read; give "
            "--tokenizer.vocab-size"
        )
    return config.with_(model=config.model.with_(vocab_size=entries).model_dump())


def _steps(config: RunConfig, seconds_a_step: float, text_bytes: float) -> int:
    train, step_tokens = config.train, config.sequences * config.window
    ends = [float(train.steps)] if train.steps is not None else []
    if train.tokens is not None:
        ends.append(train.tokens / step_tokens)
    if train.epochs is not None:
        ends.append(train.epochs * text_bytes / bytes_of_a_token(config.tokenizer.kind) / step_tokens)
    if train.minutes is not None:
        ends.append(60 * train.minutes * LEARNING / seconds_a_step)
    if not ends:
        raise UserError("plan: --train.target-loss alone does not tell how long it takes; give --minutes as well")
    return max(math.ceil(min(ends)), 1)


def _of_text(config: RunConfig) -> tuple[float, float | None]:
    """How much there is, and the bits per byte that gzip makes of it; None where it is not here."""
    if is_shards(Path(config.data)):
        shards = Shards.open(Path(config.data))
        return shards.bytes_of_text("train"), shards.split_facts("val").get("yardsticks", {}).get(YARDSTICK)
    if is_corpus(config.data):
        corpus, choice = find_corpus(config.data)
        if corpus.missing(choice):
            return corpus.likely_bytes_of_text(choice), None
    source = find_source(config.data, config.text)
    text_bytes = source.likely_bytes_of_text()
    sample = b"".join(_pieces(source, SAMPLE_BYTES / max(text_bytes, 1)))
    return text_bytes, 8 * len(zlib.compress(sample, 9)) / len(sample) if sample else None  # ids are no text


def _pieces(source: Source, share: float) -> Iterator[bytes]:
    """About that share of a text, from all over it, or of the beginning of one that is very long."""
    due, read = 1.0, 0
    for document in source.documents():
        data = document.text.encode(errors="replace")
        for place in range(0, len(data), PIECE_BYTES):
            if due >= 1:
                due -= 1
                yield data[place : place + PIECE_BYTES]
            due += share
        read += len(data)
        if read > MOST_READ_BYTES:
            return
