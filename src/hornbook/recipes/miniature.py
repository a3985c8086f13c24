"""Any run, so small that it takes seconds on a laptop.

In: a RunConfig.  Out: one of the same shape of model, kind of tokenizer, order and schedule, that takes the same path;
its sizes are cut, and where its text would have to be fetched, another stands in. For trying things, and for tests.
"""

from __future__ import annotations

from typing import Any

from hornbook.model.config import ModelConfig
from hornbook.text.corpora import find_corpus, is_corpus
from hornbook.text.tokenizer import RANKED
from hornbook.train.config import STOPS, RunConfig, ScheduleConfig, TrainConfig, override

LAYERS, HEADS, WIDTH, CONTEXT = 2, 4, 64, 32
STEPS, SEQUENCES, OFTEN = 8, 4, 4
VOCABULARY = 512
DOCUMENTS = 8
STAND_IN = "python-stdlib"


def miniature(config: RunConfig) -> RunConfig:
    """The run in small."""
    model, to_fetch = _model(config.model), _is_to_fetch(config.data)
    small: dict[str, Any] = {
        "recipe": f"{config.recipe}-tiny",
        "data": STAND_IN if to_fetch else config.data,
        "text": {"max_documents": min(config.text.max_documents or DOCUMENTS, DOCUMENTS)},
        "model": model,
        "schedule": _schedule(config),
        "sample": {"tokens": min(config.sample.tokens, 8)},
        "train": _train(config, model["context"]),
    }
    if to_fetch:  # how that text lies in its files says nothing about this one
        small["text"] |= {"format": None, "field": None, "document": None}
    kind = config.tokenizer.kind
    if kind in RANKED:  # byte-level BPE too; its vocabulary would be most of the model, and may have to be fetched
        small["tokenizer"] = {"kind": "bpe", "vocab_size": VOCABULARY}
    elif kind in ("bpe", "wordpiece"):
        small["tokenizer"] = {"vocab_size": min(config.tokenizer.vocab_size or VOCABULARY, VOCABULARY)}
    return override(config, small)


def what_is_small(config: RunConfig, whole: RunConfig) -> str:
    """What became of a run, in one line."""
    model = config.model
    text = f", trained on {config.data} instead of {whole.data}" if config.data != whole.data else ""
    return (
        f"a miniature that keeps the shape of {whole.recipe}: {model.n_layer} layers of width {model.n_embd}, "
        f"context {model.context}, {config.train.steps} steps{text}; any --knob changes any of it"
    )


def _is_to_fetch(data: str) -> bool:
    if not is_corpus(data):
        return False
    corpus, choice = find_corpus(data)
    return corpus.local is None and bool(corpus.missing(choice))


def _model(config: ModelConfig) -> dict[str, Any]:
    heads, width = config.n_head, config.n_embd
    small: dict[str, Any] = {
        "vocab_size": None,  # that of the tokenizer, which is another one
        "context": min(config.context, CONTEXT),
        "n_layer": min(config.n_layer, LAYERS),
        "bigram_embeddings": min(config.bigram_embeddings, VOCABULARY),
    }
    if width > WIDTH:
        few = min(heads, HEADS)
        small |= {"n_head": few, "n_embd": few * (WIDTH // HEADS), "head_width": None}
        if config.n_kv_head is not None:
            small["n_kv_head"] = max(few * config.n_kv_head // heads, 1)
        if config.mlp_width is not None:
            small["mlp_width"] = max(config.mlp_width * small["n_embd"] // width, 8)
    return small


def _schedule(config: RunConfig) -> dict[str, Any]:
    schedule: ScheduleConfig = config.schedule
    small: dict[str, Any] = {"warmup_steps": min(schedule.warmup_steps, 2)}
    for name in ("drop_step", "decay_steps"):
        if (steps := getattr(schedule, name)) is not None:
            small[name] = max(STEPS * steps // (config.train.steps or steps), 1)
    return small


def _train(config: RunConfig, context: int) -> dict[str, Any]:
    train: TrainConfig = config.train
    window = max(train.context * context // config.model.context, 4) if train.context is not None else context
    small: dict[str, Any] = dict.fromkeys(STOPS)
    small |= {
        "steps": min(train.steps or STEPS, STEPS),
        "batch_tokens": min(config.sequences, SEQUENCES) * window,
        "context": window if train.context is not None else None,
        "eval_every_steps": min(train.eval_every_steps or OFTEN, OFTEN),
        "save_every_steps": min(train.save_every_steps or OFTEN, OFTEN),
    }
    for name, most in (("sample_every_steps", OFTEN), ("eval_from_step", 1), ("eval_batches", 2)):
        given = getattr(train, name)
        small[name] = None if given is None else min(given, most)
    return small
