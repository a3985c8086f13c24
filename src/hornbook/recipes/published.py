"""The systems that came before, as they were published, and GPT-2 from scratch.

In: nothing.  Out: a RunConfig with a published run's figures. What a page leaves open is marked `ours`; what it only
lets guess, `inferred`. docs/recipes.md tells where a run of ours differs.
"""

from __future__ import annotations

from typing import Any

from hornbook.infer.config import SamplerConfig
from hornbook.model.config import ModelConfig, classic
from hornbook.shards.order import OrderConfig
from hornbook.shards.prepare import ShardsConfig
from hornbook.text.documents import TextConfig
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import OptimConfig, RunConfig, SampleConfig, ScheduleConfig, TrainConfig

GPT2_ENTRIES = 50_257
GPT2 = TokenizerConfig(kind="gpt2")
CONSTANT = ScheduleConfig(kind="constant", warmup_steps=0)
GRID = OrderConfig(kind="windows", drop_last=True)
GREEDY = SamplerConfig(temperature=0.0, top_p=None)
AS_LIKELY = SamplerConfig(temperature=1.0, top_p=None)
TENTH_HELD_BACK = ShardsConfig(val_fraction=0.1)


def the_verdict() -> RunConfig:
    """A book's GPT on a short story of 20,479 characters, ten epochs, until it knows it by heart."""
    return RunConfig(
        recipe="the-verdict",
        data="the-verdict",
        seed=123,
        tokenizer=GPT2,
        # 18,431 characters are left to train on, which make 18 windows.
        shards=TENTH_HELD_BACK,
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


def julius_caesar() -> RunConfig:
    """The same GPT on one play of Shakespeare's, fifty epochs."""
    return RunConfig(
        recipe="julius-caesar",
        data="julius-caesar:frame=yes",
        seed=123,
        tokenizer=GPT2,
        # Context, batch and split are inferred: those of the-verdict make the 76 steps an epoch that it reports.
        shards=TENTH_HELD_BACK,
        order=GRID,
        model=_book_model(),
        optim=_torch_adamw(4e-4, weight_decay=0.1),
        schedule=CONSTANT,
        sample=SampleConfig(prompts=("He said we came here",), tokens=50, rules=GREEDY),
        train=TrainConfig(
            epochs=50,
            batch_tokens=512,
            eval_every_steps=5,
            eval_from_step=1,
            eval_batches=1,
            sample_every_steps=76,
            dtype="float32",
        ),
    )


def julius_caesar_small() -> RunConfig:
    """A GPT of four layers on the same play, whose learning rate rises to the end."""
    return RunConfig(
        recipe="julius-caesar-small",
        data="julius-caesar:frame=yes",
        tokenizer=GPT2,
        shards=TENTH_HELD_BACK,
        order=OrderConfig(kind="places"),  # ours
        # That the head is tied, is inferred.
        model=classic(vocab_size=GPT2_ENTRIES, context=128, n_layer=4, n_head=4, n_embd=768, dropout=0.01),
        # Decay, betas and clipping are ours.
        optim=OptimConfig(kind="adamw", lr=1e-4, weight_decay=0.1, beta2=0.95, eps=1e-8, clip=1.0),
        # As published: its "min lr" of 5e-4 is above its learning rate, so half a wave leads up to it.
        schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_share=5.0),
        sample=SampleConfig(prompts=("He said we came here",)),
        # Its curves go on to step 20,000, beyond its own end. Fifty batches are the whole play: ours.
        train=TrainConfig(steps=10_000, batch_tokens=8 * 128, eval_every_steps=500, eval_from_step=0, eval_batches=50),
    )


def wikitext_wordpiece() -> RunConfig:
    """A GPT of 48 million parameters on Wikipedia's good articles, in word pieces learned from them."""
    return RunConfig(
        recipe="wikitext-wordpiece",
        # Trained on the train split alone; to validate on its validation split is ours.
        data="wikitext-103:raw=no:clean=yes",
        # It asked for 40,000 entries, learned them from each split anew and kept the last, the smallest: hence 28,144.
        # Ours are as many, and of the text that is trained on. --tokenizer.as-published takes its patterns as printed.
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=28_144),
        order=OrderConfig(kind="places"),
        model=classic(
            context=512,
            n_layer=6,
            n_head=8,
            n_embd=512,
            activation="relu",
            biases=("norm", "out", "mlp"),
            tied=False,
            dropout=0.1,
            dropout_at=("attention", "mlp"),
            init="torch",
        ),
        optim=_torch_adamw(5e-4),
        schedule=CONSTANT,
        sample=SampleConfig(tokens=100, rules=SamplerConfig(temperature=1.0, top_k=50, top_p=None)),
        train=TrainConfig(
            steps=30_000,
            batch_tokens=8 * 512,
            eval_every_steps=1000,  # ours
            save_every_steps=10_000,
            keep_checkpoints=3,
            dtype="float32",
        ),
    )


def pile_13m() -> RunConfig:
    """A GPT of one block on the Pile, without an output projection."""
    return _pile("pile-13m", context=128, n_layer=1, n_head=8, n_embd=128)


def pile_2b() -> RunConfig:
    """The same with 64 blocks of width 2048, printed as 2.1 billion parameters and in truth 3.2."""
    return _pile("pile-2b", context=512, n_layer=64, n_head=16, n_embd=2048)


def shakespeare_124m() -> RunConfig:
    """GPT-2's smallest model on tiny Shakespeare, until the training loss is 0.0882."""
    return RunConfig(
        recipe="shakespeare-124m",
        data="shakespeare",
        tokenizer=GPT2,
        # Nothing was held back as published: its 82 batches an epoch are the whole text. So little is, that ours has as
        # many.
        shards=ShardsConfig(val_fraction=0.005),
        order=GRID,  # ours
        model=classic(vocab_size=GPT2_ENTRIES, context=1024, n_layer=12, n_head=12, n_embd=768),
        # Ours, as is the schedule: a rate that stays as it is fits an end that nobody knows beforehand.
        optim=OptimConfig(kind="adamw", lr=3e-4, weight_decay=0.1, beta2=0.95, eps=1e-8, clip=1.0),
        schedule=ScheduleConfig(kind="constant", warmup_steps=100),
        sample=SampleConfig(prompts=("Once upon a time",)),
        # It got there in step 8,251. The limit is ours.
        train=TrainConfig(target_loss=0.0882, steps=20_000, batch_tokens=4 * 1024, eval_every_steps=500),
    )


def gpt2() -> RunConfig:
    """GPT-2 of 124 million parameters from scratch, on an open copy of the text that it learned from."""
    return _gpt2("gpt2", 6e-4, n_layer=12, n_head=12, n_embd=768)


def gpt2_medium() -> RunConfig:
    """GPT-2 of 355 million parameters from scratch."""
    return _gpt2("gpt2-medium", 3e-4, n_layer=24, n_head=16, n_embd=1024)


def gpt2_large() -> RunConfig:
    """GPT-2 of 774 million parameters from scratch."""
    return _gpt2("gpt2-large", 2.5e-4, n_layer=36, n_head=20, n_embd=1280)


def gpt2_xl() -> RunConfig:
    """GPT-2 of 1.6 billion parameters from scratch."""
    return _gpt2("gpt2-xl", 2e-4, n_layer=48, n_head=25, n_embd=1600)


def _gpt2(name: str, lr: float, **sizes: int) -> RunConfig:
    """OpenAI told the models, not how they were trained: this is how others have come to their losses since, with
    GPT-3's learning rates by size."""
    return RunConfig(
        recipe=name,
        data="openwebtext",
        tokenizer=GPT2,
        model=classic(vocab_size=GPT2_ENTRIES, context=1024, **sizes),
        optim=OptimConfig(kind="adamw", lr=lr, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, clip=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_share=0.1),
        train=TrainConfig(steps=600_000, batch_tokens=480 * 1024, eval_every_steps=1000),
    )


def _pile(name: str, **sizes: int) -> RunConfig:
    return RunConfig(
        recipe=name,
        data="pile:files=0",
        text=TextConfig(max_documents=1000),
        tokenizer=GPT2,
        order=GRID,
        # Its later code has an output projection with a bias and scales by the head's width:
        # --model.out-projection --model.biases norm,out,mlp,head --model.attention-scale head
        model=classic(
            vocab_size=50_304,
            activation="relu",
            biases=("norm", "mlp", "head"),
            out_projection=False,
            attention_scale="width",
            tied=False,
            init="torch",
            **sizes,
        ),
        optim=_torch_adamw(5e-4),
        schedule=ScheduleConfig(kind="drop", warmup_steps=0, drop_step=50_000, final_share=0.1),
        sample=SampleConfig(tokens=100, rules=AS_LIKELY),
        # As published: positions past 16 are never trained.
        train=TrainConfig(
            steps=200_000,
            batch_tokens=32 * 16,
            context=16,
            eval_every_steps=1000,
            eval_from_step=0,
            eval_batches=250,
            dtype="float32",
        ),
    )


def _book_model() -> ModelConfig:
    return classic(
        vocab_size=GPT2_ENTRIES,
        context=256,
        n_layer=12,
        n_head=12,
        n_embd=768,
        biases=("norm", "out", "mlp"),
        tied=False,
        dropout=0.1,
        init="torch",
    )


def _torch_adamw(lr: float, **knobs: Any) -> OptimConfig:
    """AdamW as torch sets it up where a program says no more: every parameter shrinks, and nothing is clipped."""
    as_it_is: dict[str, Any] = {"weight_decay": 0.01, "decay": "all", "beta2": 0.999, "eps": 1e-8, "clip": None}
    return OptimConfig(kind="adamw", lr=lr, **(as_it_is | knobs))
