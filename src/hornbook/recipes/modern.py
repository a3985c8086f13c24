"""Our own best settings.

In: nothing, or the amount of text that a user brings.  Out: a RunConfig.
"""

from __future__ import annotations

from hornbook.model.config import classic, modern
from hornbook.text.documents import TextConfig
from hornbook.text.tokenizer import TokenizerConfig, vocab_size_for
from hornbook.train.config import STOPS, OptimConfig, RunConfig, SampleConfig, ScheduleConfig, TrainConfig

# The smallest text (in tokens) for a size: layers, heads, width, context, tokens a step.
LADDER = (
    (0, (3, 2, 128, 128, 2048)),
    (200_000, (4, 3, 192, 128, 2048)),
    (2_000_000, (4, 4, 256, 256, 4096)),
    (50_000_000, (8, 8, 512, 512, 32_768)),
    (500_000_000, (12, 12, 768, 1024, 262_144)),
)
ON_CPU = LADDER[:3]
BYTE_TEXT = 100_000
TOKENS_TO_SEE = 10_000_000


def demo() -> RunConfig:
    """Three minutes on a laptop, on Python's own sources: the modern shape."""
    return RunConfig(
        recipe="demo",
        data="python-stdlib",
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        # In a short budget, many small steps: a wider model and longer windows reached less (records/).
        model=modern(n_layer=4, n_head=2, n_kv_head=1, head_width=64, n_embd=256, mlp_width=768, context=128),
        optim=_muon(weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=40),
        train=TrainConfig(minutes=3, batch_tokens=2048),
        sample=SampleConfig(prompts=("class",)),
    )


def demo_classic() -> RunConfig:
    """The same three minutes with GPT-2's shape and AdamW, for comparison."""
    return demo().with_(
        recipe="demo-classic",
        model=classic(n_layer=4, n_head=4, n_embd=256, context=128).model_dump(),
        optim=OptimConfig(kind="adamw", lr=2e-3).model_dump(),
    )


def modern_small() -> RunConfig:
    """Our settings for two million tokens of Wikipedia: the third size of the ladder."""
    return _rung(2, "modern-small", "wikitext-2", 8192, TrainConfig(epochs=4, batch_tokens=4096), dropout=0.1)


def modern_medium() -> RunConfig:
    """Our settings for half a billion tokens of children's stories: the fourth size."""
    return _rung(3, "modern-medium", "tinystories", 16_384, TrainConfig(epochs=1, batch_tokens=32_768))


def modern_large() -> RunConfig:
    """Our settings for billions of tokens of pages that teach: GPT-2's smallest size, in today's shape."""
    end = TrainConfig(tokens=2_500_000_000, batch_tokens=262_144)
    return _rung(4, "modern-large", "fineweb-edu", 32_768, end)


def _rung(place: int, name: str, data: str, vocab_size: int, end: TrainConfig, dropout: float = 0.0) -> RunConfig:
    """A size of the ladder on a corpus of the length that it is for."""
    n_layer, n_head, n_embd, context, _ = LADDER[place][1]
    return RunConfig(
        recipe=name,
        data=data,
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=vocab_size),
        model=modern(n_layer=n_layer, n_head=n_head, n_embd=n_embd, context=context, dropout=dropout),
        optim=_muon(weight_decay=0.1 if dropout else 0.0),
        schedule=ScheduleConfig(warmup_steps=40),
        train=end,
    )


def own_text(data: str, text_bytes: int, accelerated: bool) -> RunConfig:
    """Sizes from the amount of text: a vocabulary, a model about as large as the text can fill, and so many readings
    that ten million tokens are seen, but no more than twenty. Without an accelerator the model stays at the third
    size."""
    small = text_bytes < BYTE_TEXT
    vocabulary = TokenizerConfig(kind="byte") if small else TokenizerConfig(vocab_size=vocab_size_for(text_bytes))
    tokens = text_bytes if small else text_bytes // 3
    ladder = LADDER if accelerated else ON_CPU
    n_layer, n_head, n_embd, context, batch = [sizes for least, sizes in ladder if tokens >= least][-1]
    context = max(min(context, tokens // 16), 8)
    epochs = min(max(TOKENS_TO_SEE / max(tokens, 1), 1.0), 20.0)
    many = epochs > 4
    return RunConfig(
        recipe="own-text",
        data=data,
        tokenizer=vocabulary,
        model=modern(n_layer=n_layer, n_head=n_head, n_embd=n_embd, context=context, dropout=0.1 if many else 0.0),
        optim=_muon(weight_decay=0.1 if many else 0.0),
        schedule=ScheduleConfig(warmup_steps=40),
        train=TrainConfig(epochs=round(epochs, 1), batch_tokens=min(batch, max(tokens // 8, context))),
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


def _muon(weight_decay: float) -> OptimConfig:
    return OptimConfig(lr=4e-3, embedding_lr=1e-2, matrix_lr=0.02, weight_decay=weight_decay)


def why_these_sizes(config: RunConfig) -> str:
    """What `own_text` chose, in one line."""
    model, tokenizer = config.model, config.tokenizer
    vocabulary = f"{tokenizer.kind} vocabulary" + (f" of {tokenizer.vocab_size:,}" if tokenizer.vocab_size else "")
    given = [(stop, value) for stop in STOPS if (value := getattr(config.train, stop)) is not None]
    ends = [
        f"{value:g} {stop.removesuffix('s') if value == 1 and stop != 'target_loss' else stop}" for stop, value in given
    ]
    return (
        f"sizes chosen from the amount of text: {vocabulary}, {model.n_layer} layers of width {model.n_embd}, "
        f"context {model.context}, {', '.join(ends)}; any --knob changes any of it"
    )
