"""How large, how often, how fast to learn: from a text, a machine and so many minutes.

In: how much text there is, how fast the machine learns, how long it may take.  Out: the RunConfig of our own settings
in that measure. The demo is this dial at its text and three minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hornbook.model.config import WIDEST, ModelConfig, modern
from hornbook.text.encodings import ENCODINGS
from hornbook.text.tokenizer import WORDPIECE_ENTRIES, TokenizerConfig, vocab_size_for
from hornbook.train.config import STOPS, OptimConfig, RunConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class Size:
    """A step of the ladder. Batches are as small as the machine is still quick at: in little time, many small steps
    learn more than few large ones. With windows of up to 256 tokens a step takes no longer, and heads that look back
    find more (records/2026-11-28-zen3-2-cores-first-heads)."""

    n_layer: int
    n_embd: int
    context: int
    batch_tokens: int
    narrow: bool = False
    """With half of the heads, one of keys and values, and a small MLP: so that more of the width can be afforded, which
    in little time is worth more."""

    def model(self, context: int, dropout: float) -> ModelConfig:
        inside = inside_of(self.n_embd, self.narrow)
        return modern(n_layer=self.n_layer, n_embd=self.n_embd, context=context, dropout=dropout, **inside)


def inside_of(n_embd: int, narrow: bool) -> dict[str, int]:
    """The heads and the MLP of a model so wide."""
    if narrow:
        return {"n_head": max(n_embd // 128, 1), "n_kv_head": 1, "head_width": 64, "mlp_width": 2 * n_embd}
    return {"n_head": next(heads for heads in range(max(n_embd // 64, 1), 0, -1) if n_embd % heads == 0)}


def of_another_width(chosen: RunConfig, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """What goes with the width that somebody gives in place of the chosen one."""
    model = knobs.get("model")
    n_embd = model.get("n_embd") if isinstance(model, Mapping) else None
    if chosen.recipe not in MADE_BY_IT or not isinstance(n_embd, int) or not 1 <= n_embd <= WIDEST:
        return {}  # what is wrong with it is told by its knob
    return {"model": inside_of(n_embd, narrow=chosen.model.mlp_width is not None)}


LADDER = (
    Size(2, 128, 128, 512),
    Size(2, 192, 256, 1024, narrow=True),
    Size(2, 256, 256, 1024, narrow=True),
    Size(3, 256, 256, 1024, narrow=True),
    Size(4, 256, 256, 2048, narrow=True),
    Size(4, 384, 256, 2048, narrow=True),
    Size(6, 384, 256, 4096),
    Size(8, 512, 512, 16_384),
    Size(12, 768, 1024, 131_072),
)
# Seconds that a step of a size takes, with so many entries in the vocabulary.
Pace = Callable[[Size, int], float]
MINUTES = 10.0
MADE_BY_IT = ("demo", "own-text")
# Steps that a model needs to be worth its size: with fewer, a smaller one learns more.
LEAST_STEPS = 1000
# Parameters that a token of the text can fill, read again and again.
MOST_PARAMETERS_A_TOKEN = 10.0
# As a model is read over the whole run, more often than this it only learns by heart.
MOST_READINGS = 40.0
MANY_READINGS, VERY_MANY_READINGS = 4.0, 20.0
# Of so little text a vocabulary learns no more than the text itself (records/2026-11-27-h200-recipes).
FEW_BYTES = 50_000
BYTES_OF_A_TOKEN = 3.0
OF_SINGLE_SIGNS = ("byte", "char")
# Which say less than pieces do, so up to so many of them are seen at once, in windows twice as long.
SIGNS_AT_ONCE = 256
# Entries of vocabularies whose size is not chosen; of characters there are about as many as here.
KNOWN_VOCABULARIES = {"byte": 257, "gpt2": 50_257, "wordpiece": WORDPIECE_ENTRIES}
KNOWN_VOCABULARIES |= {name: encoding.entries for name, encoding in ENCODINGS.items()}
CHARACTERS = 128
# Of a run's time, what is learned in.
LEARNING = 0.93
# On a CPU: of the speed of a large product, what those of a step come to; Muon's, times width and parameters; and the
# seconds that a step takes besides. Fitted on steps of 47 to 980 ms, 13 % off at most.
EFFICIENCY, MUON, BESIDES = 0.6, 2.7, 0.02


def as_fast_as_products(flops: float) -> Pace:
    """Of a CPU, on which a step costs about what its products cost."""

    def pace(size: Size, vocabulary: int) -> float:
        muon = MUON * size.n_embd * size.model(size.context, 0.0).n_params(embeddings=False)
        return BESIDES + (flops_of_step(size, vocabulary) / EFFICIENCY + muon) / flops

    return pace


# A machine that nobody has measured: two cores without bf16. Runs that are bounded by something else than time must not
# depend on how fast a machine is.
PLAIN_CPU = as_fast_as_products(1.2e11)


def own_text(
    data: str, text_bytes: int, minutes: float | None = None, pace: Pace = PLAIN_CPU, kind: str | None = None
) -> RunConfig:
    """Our settings for a text that a user brings. Without minutes, MINUTES, or as few as it takes to read a short text
    as often as helps."""
    kind = kind or ("byte" if text_bytes < FEW_BYTES else "bpe")
    vocabulary = KNOWN_VOCABULARIES.get(kind) or (CHARACTERS if kind == "char" else vocab_size_for(text_bytes))
    tokens = max(text_bytes / bytes_of_a_token(kind), 1.0)
    seconds = 60 * (MINUTES if minutes is None else minutes)
    size, step = LADDER[0], 0.0
    for size in reversed(LADDER):
        if size.model(size.context, 0.0).n_params(embeddings=False) <= MOST_PARAMETERS_A_TOKEN * tokens:
            step = pace(size, vocabulary)
            if LEAST_STEPS * step <= LEARNING * seconds:
                break
    step = step or pace(size, vocabulary)  # where even the smallest is too large for the text
    longest = size.context
    if kind in OF_SINGLE_SIGNS:
        longest = max(longest, min(2 * longest, SIGNS_AT_ONCE))
    context = max(min(longest, int(tokens) // 16), 8)
    batch = min(size.batch_tokens, max(int(tokens) // 8, context))
    readings = min(LEARNING * seconds / step * batch / tokens, MOST_READINGS)
    many = readings > MANY_READINGS
    dropout = 0.2 if readings > VERY_MANY_READINGS else 0.1 if many else 0.0
    return RunConfig(
        recipe="own-text",
        data=data,
        tokenizer=TokenizerConfig(kind=kind, vocab_size=vocabulary if kind == "bpe" else None),
        model=size.model(context, dropout),
        optim=muon(weight_decay=0.1 if many else 0.0),
        schedule=ScheduleConfig(warmup_steps=10),
        train=TrainConfig(minutes=seconds / 60, epochs=MOST_READINGS, batch_tokens=batch),
    )


def bytes_of_a_token(kind: str) -> float:
    """About, before a tokenizer is there."""
    return 1.0 if kind in OF_SINGLE_SIGNS else BYTES_OF_A_TOKEN


def a_step_of(size: Size, vocabulary: int) -> RunConfig:
    return RunConfig(
        model=size.model(size.context, 0.0).with_(vocab_size=vocabulary),
        optim=muon(weight_decay=0.0),
        train=TrainConfig(steps=1, batch_tokens=size.batch_tokens),
    )


def flops_of_step(size: Size, vocabulary: int) -> float:
    """Forwards and backwards."""
    return size.batch_tokens * a_step_of(size, vocabulary).model.flops_per_token()


def muon(weight_decay: float) -> OptimConfig:
    return OptimConfig(lr=4e-3, embedding_lr=1e-2, matrix_lr=0.02, weight_decay=weight_decay)


def why_these_sizes(config: RunConfig) -> str:
    """What `own_text` chose, in one line."""
    model, tokenizer = config.model, config.tokenizer
    vocabulary = f"{tokenizer.kind} vocabulary" + (f" of {tokenizer.vocab_size:,}" if tokenizer.vocab_size else "")
    given = [(stop, value) for stop in STOPS if (value := getattr(config.train, stop)) is not None]
    ends = [
        f"{value:g} {stop.removesuffix('s') if value == 1 and stop != 'target_loss' else stop}" for stop, value in given
    ]
    timed = config.train.minutes is not None
    fitted_to = "the text, this machine and its time" if timed else "the text and a plain machine"
    return (
        f"sizes chosen for {fitted_to}: {vocabulary}, {model.n_layer} layers of width "
        f"{model.n_embd}, context {model.context}, {' or '.join(ends)}; --minutes, or any --knob, changes any of it"
    )
