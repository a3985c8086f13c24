"""Our own best settings.

In: nothing, or the amount of text that a user brings to a model.  Out: a RunConfig. For a model from nothing see
dial.py.
"""

from __future__ import annotations

from hornbook.model.config import ModelConfig, classic, modern
from hornbook.recipes.dial import PLAIN_CPU, Pace, muon, own_text
from hornbook.text.documents import TextConfig
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import OptimConfig, RunConfig, SampleConfig, ScheduleConfig, TrainConfig

DEMO_MINUTES, DEMO_BYTES = 3.0, 12_000_000


def demo(minutes: float = DEMO_MINUTES, pace: Pace = PLAIN_CPU) -> RunConfig:
    """Three minutes on a laptop, on Python's own sources: the modern shape."""
    chosen = own_text("python-stdlib", DEMO_BYTES, minutes, pace)
    return chosen.with_(
        recipe="demo",
        train=TrainConfig(minutes=minutes, batch_tokens=chosen.train.batch_tokens).model_dump(),
        sample=SampleConfig(prompts=("class",)).model_dump(),
    )


def demo_classic() -> RunConfig:
    """The same three minutes with GPT-2's shape and AdamW, for comparison."""
    return demo().with_(
        recipe="demo-classic",
        model=classic(n_layer=4, n_head=4, n_embd=256, context=128).model_dump(),
        optim=OptimConfig(kind="adamw", lr=2e-3).model_dump(),
    )


def modern_small() -> RunConfig:
    """Our settings for two million tokens of Wikipedia."""
    end = TrainConfig(epochs=4, batch_tokens=4096)
    return _of_size("modern-small", "wikitext-2", 8192, modern(n_embd=256, dropout=0.1), end)


def modern_medium() -> RunConfig:
    """Our settings for half a billion tokens of children's stories."""
    model = modern(n_layer=8, n_head=8, n_embd=512, context=512)
    return _of_size("modern-medium", "tinystories", 16_384, model, TrainConfig(epochs=1, batch_tokens=32_768))


def modern_large() -> RunConfig:
    """Our settings for billions of tokens of pages that teach: GPT-2's smallest size, in today's shape."""
    model = modern(n_layer=12, n_head=12, n_embd=768, context=1024)
    end = TrainConfig(tokens=2_500_000_000, batch_tokens=262_144)
    return _of_size("modern-large", "fineweb-edu", 32_768, model, end)


def _of_size(name: str, data: str, vocab_size: int, model: ModelConfig, end: TrainConfig) -> RunConfig:
    return RunConfig(
        recipe=name,
        data=data,
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=vocab_size),
        model=model,
        optim=muon(weight_decay=0.1 if model.dropout else 0.0),
        schedule=ScheduleConfig(warmup_steps=40),
        train=end,
    )


def continued(data: str, text_bytes: int | None, context: int) -> RunConfig:
    """From a model that knows something already to one that knows a text as well: three readings, at a rate at which
    little is forgotten."""
    tokens = (text_bytes or 10**9) // 4
    window = max(min(context, tokens // 16), 8)
    return RunConfig(
        recipe="continued",
        data=data,
        optim=_gentle(),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=10),
        train=TrainConfig(
            epochs=3,
            batch_tokens=max(min(tokens // 64, 16_384), window),
            context=window if window < context else None,
        ),
    )


def letters() -> RunConfig:
    """Letters, to be taught to a model that knows the language: --from MODEL --data MAIL."""
    return RunConfig(
        recipe="letters",
        data="mail",
        text=TextConfig(headers=("Subject",)),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        model=modern(n_layer=4, n_head=4, n_embd=256, context=256),
        optim=_gentle(),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=10),
        train=TrainConfig(epochs=3, batch_tokens=4096),
        sample=SampleConfig(prompts=("Subject: ",), tokens=120),
    )


def _gentle() -> OptimConfig:
    """At which little is forgotten."""
    return OptimConfig(kind="adamw", lr=1e-4, weight_decay=0.01, beta2=0.999, eps=1e-8)
