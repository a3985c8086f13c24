"""How the files of other training programs name the parts of a GPT.

In: tensors by their names.  Out: which program's they are, where it keeps what, and the ModelConfig that their shapes
give. A program is one entry in PROGRAMS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.model.config import ModelConfig
from hornbook.model.layouts import QKV, ROLES, Layout, transposed
from hornbook.model.shapes import gpt2_layout

Found = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Program:
    name: str
    layout: Layout
    ties: bool = False
    """A file without a head, or with the embedding in its place, has one matrix for both."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """What its files do not say and its code does."""


BOOK = Program(
    "the book's GPTModel",
    Layout(
        outside={"embedding": "tok_emb", "positions": "pos_emb", "norm": "final_norm", "head": "out_head"},
        block="trf_blocks.{}.",
        inside={
            "attention_norm": "norm1",
            "attention.query": "att.W_query",
            "attention.key": "att.W_key",
            "attention.value": "att.W_value",
            "attention.out": "att.out_proj",
            "mlp_norm": "norm2",
            "mlp.up": "ff.layers.0",
            "mlp.down": "ff.layers.2",
        },
        endings={"norm": (".scale", ".shift")},
        ignored=(".att.mask",),
    ),
    knobs={"activation": "gelu_tanh"},
)
WIKITEXT = Program(
    "Implementing-GPT-From-Scratch",
    Layout(
        outside={
            "embedding": "shared",
            "positions": "position_embedding_table",
            "norm": "final_layer_norm",
            "head": "lm_head",
        },
        block="decoder_stack.{}.",
        inside={
            "attention_norm": "layer_norm1",
            "attention.query": "attention.to_q",
            "attention.key": "attention.to_k",
            "attention.value": "attention.to_v",
            "attention.out": "attention.to_out",
            "mlp_norm": "layer_norm2",
            "mlp.up": "feed_forward.net.0",
            "mlp.down": "feed_forward.net.3",
        },
    ),
    knobs={"activation": "relu"},
)
PILE = Program(
    "train-llm-from-scratch",
    Layout(
        outside={"embedding": "token_embed", "positions": "position_embed", "norm": "layer_norm", "head": "lm_head"},
        block="attn_blocks.{}.",
        inside={
            "attention_norm": "ln1",
            "attention.query": "attn.heads.{}.query",
            "attention.key": "attn.heads.{}.key",
            "attention.value": "attn.heads.{}.value",
            "attention.out": "attn.proj",
            "mlp_norm": "ln2",
            "mlp.up": "mlp.hidden",
            "mlp.down": "mlp.proj",
        },
        ignored=(".tril", "pos_idxs"),
    ),
    knobs={"activation": "relu"},
)
OPENAI = Program(
    "OpenAI's TensorFlow code",
    gpt2_layout(
        stored_in_out=True,
        outside={"embedding": "model/wte", "positions": "model/wpe", "norm": "model/ln_f", "head": "model/head"},
        block="model/h{}/",
        inside={
            "attention_norm": "ln_1",
            QKV: "attn/c_attn",
            "attention.out": "attn/c_proj",
            "mlp_norm": "ln_2",
            "mlp.up": "mlp/c_fc",
            "mlp.down": "mlp/c_proj",
        },
        endings={
            "norm": ("/g", "/b"),
            "embedding": ("", ""),
            **dict.fromkeys(("qkv", "out", "mlp", "head"), ("/w", "/b")),
        },
        body="",
    ),
    ties=True,
    knobs={"activation": "gelu_tanh"},
)
NANOGPT = Program("nanoGPT", gpt2_layout(), ties=True, knobs={"activation": "gelu"})
NOTEBOOK = Program("a notebook after nanoGPT", gpt2_layout("ln{}"), ties=True, knobs={"activation": "gelu"})
TRANSFORMERS = Program(
    "transformers' gpt2", gpt2_layout(stored_in_out=True), ties=True, knobs={"activation": "gelu_tanh"}
)
PROGRAMS = (BOOK, WIKITEXT, PILE, OPENAI, NANOGPT, NOTEBOOK, TRANSFORMERS)
CLASSIC: dict[str, Any] = {
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "positions": "learned",
    "qk_norm": "none",
    "init": "gpt2",
}


def program_of(found: Found) -> Program | None:
    """Whose tensors they are: whose names of the embedding and of the first norm are there, with or without the
    beginning that all of its names have."""
    for program in PROGRAMS:
        layout, marks = program.layout, [program.layout.name(each) for each in ("embedding", "attention_norm")]
        if all(mark in found for mark in marks) or all(mark.removeprefix(layout.body) in found for mark in marks):
            break
    else:
        return None
    if program is NANOGPT:
        # Conv1D of transformers stores what Linear stores, transposed; c_fc and c_attn are not square and show which.
        names = [layout.name(each) for each in ("attention.query", "mlp.up")]
        either = [each for name in names for each in (name, name.removeprefix(layout.body))]
        shapes = [found[each].shape for each in either if each in found]
        if shapes and len(shapes[0]) == 2 and shapes[0][0] < shapes[0][1]:
            return TRANSFORMERS
    return program


def learned(program: Program, found: Found) -> dict[str, torch.Tensor]:
    """A file's tensors under the program's names, without a head where it is the embedding once more."""
    kept = program.layout.learned(found)
    embedding, head = (program.layout.name(each) for each in ("embedding", "head"))
    if program.ties and are_the_same(kept.get(embedding), kept.get(head)):
        del kept[head]
    return kept


def are_the_same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return one.shape == other.shape and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))


def heads_in(program: Program, found: Found) -> int | None:
    """How many there are, where each has tensors of its own."""
    if program is not PILE:
        return None
    heads = 0
    while PILE.layout.name("attention.query", head=heads) in found:
        heads += 1
    return heads or None


def has_projection(program: Program, found: Found) -> bool:
    """Attention without is known of one program only; anywhere else, it is missing."""
    return program is not PILE or PILE.layout.name("attention.out") in found


def config_of(program: Program, found: Found, knobs: Mapping[str, Any]) -> ModelConfig:
    """What follows from the tensors' shapes, with what does not: `knobs`, n_head among them."""
    layout = program.layout
    vocab_size, width = matrix(program, found, "embedding")
    context, _ = matrix(program, found, "positions")
    inner = matrix(program, found, "mlp.up")[1 if layout.arrange.get("mlp.up") is transposed else 0]
    biased = [each for each in layout.modules if each in ROLES and layout.name(each, 1) in found]
    return build(
        ModelConfig,
        CLASSIC
        | {
            "vocab_size": vocab_size,
            "context": context,
            "n_embd": width,
            "n_layer": _layers(layout, found),
            "mlp_width": None if inner == 4 * width else inner,
            # Where the first layer has one, all have to.
            "biases": sorted({ROLES[each] for each in biased}),
            "tied": program.ties and layout.name("head") not in found,
            "out_projection": has_projection(program, found),
        }
        | {**program.knobs, **knobs},
    )


def matrix(program: Program, found: Found, module: str) -> tuple[int, int]:
    name = program.layout.name(module)
    if name not in found:
        raise UserError(f"tensor {name} is missing")
    shape = tuple(found[name].shape)
    if len(shape) != 2:
        raise UserError(f"tensor {name} is {shape}, which should be a matrix")
    return int(shape[0]), int(shape[1])


def _layers(layout: Layout, found: Found) -> int:
    pattern = re.compile(re.escape(layout.block).replace(r"\{\}", r"(\d{1,9})"))
    layers = 1 + max((int(match[1]) for name in found if (match := pattern.match(name))), default=0)
    if layers > len(found):
        raise UserError(f"a tensor of layer {layers - 1:,} is there, but {len(found):,} tensors cannot be that many")
    return layers
