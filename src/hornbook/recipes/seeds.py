"""The systems that came before, as they were published.

In: nothing.  Out: a RunConfig with a published run's figures. What a page left open is marked `ours`.
"""

from __future__ import annotations

from typing import Any

from hornbook.infer.config import SamplerConfig
from hornbook.model.config import ModelConfig, classic
from hornbook.shards.order import OrderConfig
from hornbook.shards.prepare import ShardsConfig
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import OptimConfig, RunConfig, SampleConfig, ScheduleConfig, TrainConfig

GPT2_ENTRIES = 50_257
GREEDY = SamplerConfig(temperature=0.0, top_p=None)
CONSTANT = ScheduleConfig(kind="constant", warmup_steps=0)
GRID = OrderConfig(kind="windows", drop_last=True)


def the_verdict() -> RunConfig:
    """A book's GPT on a short story, ten epochs: learned by heart, as the book shows."""
    return RunConfig(
        recipe="the-verdict",
        data="the-verdict",
        seed=123,
        tokenizer=TokenizerConfig(kind="gpt2"),
        # A tenth of 20,479 characters: 18,431 are left to train on, which makes 18 windows.
        shards=ShardsConfig(val_fraction=0.1),
        order=GRID,
        model=_book_model(),
        optim=_torch_adamw(4e-4, weight_decay=0.1),
        schedule=CONSTANT,
        sample=SampleConfig(prompts=("Every effort moves you",), tokens=50, rules=GREEDY),
        # Its step 0 was evaluated after the first update, and is step 1 here.
        train=TrainConfig(
            epochs=10,
            batch_tokens=512,
            eval_every_steps=5,
            eval_from_step=1,
            eval_batches=5,
            sample_every_steps=9,
            dtype="float32",
        ),
    )


def _book_model(**changes: Any) -> ModelConfig:
    knobs: dict[str, Any] = {
        "vocab_size": GPT2_ENTRIES,
        "context": 256,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "biases": ("norm", "out", "mlp"),
        "tied": False,
        "dropout": 0.1,
        "init": "torch",
    }
    return classic(**(knobs | changes))


def _torch_adamw(lr: float, weight_decay: float = 0.01) -> OptimConfig:
    """AdamW as torch sets it up where a program says no more: every parameter shrinks, and nothing is clipped."""
    return OptimConfig(
        kind="adamw", lr=lr, weight_decay=weight_decay, decay="all", beta1=0.9, beta2=0.999, eps=1e-8, clip=None
    )
