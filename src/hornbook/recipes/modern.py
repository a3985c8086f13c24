"""Our own best settings, small to large.

In: nothing, or the text that a user brings.  Out: a RunConfig. A recipe is one function and its entry in RECIPES.
"""

from __future__ import annotations

from hornbook.model.config import modern
from hornbook.shards.order import OrderConfig
from hornbook.train.config import OptimConfig, RunConfig, SampleConfig, ScheduleConfig, TrainConfig
from hornbook.text.tokenizer import TokenizerConfig


def demo() -> RunConfig:
    """Three minutes on a laptop: the standard library of Python."""
    return RunConfig(
        recipe="demo",
        data="python-stdlib",
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        model=modern(n_layer=4, n_head=3, n_embd=192, context=256),
        optim=OptimConfig(),
        train=TrainConfig(minutes=3, batch_tokens=4096),
        sample=SampleConfig(prompts=("def ",)),
    )


RECIPES = {"demo": demo}
