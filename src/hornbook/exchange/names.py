"""How other programs' state dicts name the parts of a GPT.

In: tensors by their names.  Out: which program's they are, the ModelConfig that their shapes tell, and the same tensors
under our names. A program is one Layout: for each of our modules, theirs. Where one of theirs is several of ours, or
several of theirs one of ours, rows lie one below the other. Each tensor must be there, of its shape, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT

Tensors = Mapping[str, torch.Tensor]
MOST_MISTAKES = 8
ROLES = {
    **dict.fromkeys(("attention_norm", "mlp_norm", "norm"), "norm"),
    **{f"attention.{part}": "qkv" for part in ("query", "key", "value")},
    **{"attention.out": "out", "mlp.up": "mlp", "mlp.down": "mlp", "head": "head"},
}
QKV = ("attention.query", "attention.key", "attention.value")
Pairs = Mapping[str | tuple[str, ...], str]


@dataclass(frozen=True)
class Layout:
    """One program's names. In `block`, {} is the number of a layer; in `inside`, {} is that of a head."""

    program: str
    mark: str
    """A tensor that its files have, and no other program's."""
    outside: Pairs
    block: str
    inside: Pairs
    endings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What weight and bias are called, by role; .weight and .bias where nothing is said."""
    turned: bool = False
    """Matrices of the blocks are stored (in, out)."""
    ignored: tuple[str, ...] = ()
    """Endings of what is no weight: masks, and numbers of places."""
    ties: bool = False
    """A file without a head, or with the embedding in its place, has one matrix for both."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """What its files do not tell and its code does."""

    def ending(self, module: str) -> tuple[str, str]:
        return self.endings.get(ROLES.get(module, "embedding"), (".weight", ".bias"))

    def name(self, module: str, layer: int = 0) -> str:
        """Theirs, of one of our weights that is one of theirs."""
        theirs = (self.outside if module in self.outside else self.inside)[module]
        return (theirs if module in self.outside else self.block.format(layer) + theirs) + self.ending(module)[0]


@dataclass(frozen=True)
class Tensor:
    """Some of theirs, one below the other, are some of ours, one below the other."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    turned: bool


def _gpt2(program: str, body: str, norms: str, turned: bool) -> Layout:
    return Layout(
        program,
        mark=f"{body}h.0.{norms.format(1)}.weight",
        outside={"embedding": f"{body}wte", "positions": f"{body}wpe", "norm": f"{body}ln_f", "head": "lm_head"},
        block=f"{body}h.{{}}.",
        inside={
            "attention_norm": norms.format(1),
            QKV: "attn.c_attn",
            "attention.out": "attn.c_proj",
            "mlp_norm": norms.format(2),
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        },
        turned=turned,
        # With its dot: the bias of c_attn is none of them.
        ignored=(".attn.bias", ".attn.masked_bias"),
        ties=True,
        knobs={"activation": "gelu_tanh" if turned else "gelu"},
    )


BOOK = Layout(
    "the book's GPTModel",
    mark="tok_emb.weight",
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
    knobs={"activation": "gelu_tanh"},
)
WIKITEXT = Layout(
    "Implementing-GPT-From-Scratch",
    mark="shared.weight",
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
    knobs={"activation": "relu"},
)
PILE = Layout(
    "train-llm-from-scratch",
    mark="token_embed.weight",
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
    knobs={"activation": "relu"},
)
OPENAI = Layout(
    "OpenAI's TensorFlow code",
    mark="model/wte",
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
    endings={"norm": ("/g", "/b"), "embedding": ("", ""), **dict.fromkeys(("qkv", "out", "mlp", "head"), ("/w", "/b"))},
    turned=True,
    ties=True,
    knobs={"activation": "gelu_tanh"},
)
NOTEBOOK = "a notebook after nanoGPT"
LAYOUTS = (BOOK, WIKITEXT, PILE, OPENAI)
CLASSIC: dict[str, Any] = {
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "positions": "learned",
    "qk_norm": "none",
    "init": "gpt2",
}


def layout_of(found: Tensors) -> Layout | None:
    """Whose names they are."""
    for layout in LAYOUTS:
        if layout.mark in found:
            return layout
    for body in ("transformer.", ""):
        for norms in ("ln_{}", "ln{}"):
            if f"{body}h.0.{norms.format(1)}.weight" in found and f"{body}wte.weight" in found:
                return _gpt2_by_shape(body, norms, found)
    return None


def _gpt2_by_shape(body: str, norms: str, found: Tensors) -> Layout:
    """Conv1D of transformers stores what Linear stores, turned; c_fc and c_attn are not square and show which."""
    matrix = found.get(f"{body}h.0.attn.c_attn.weight", found.get(f"{body}h.0.mlp.c_fc.weight"))
    turned = matrix is not None and matrix.ndim == 2 and matrix.shape[0] < matrix.shape[1]
    program = "transformers' gpt2" if turned else "nanoGPT" if norms == "ln_{}" else NOTEBOOK
    return _gpt2(program, body, norms, turned)


def without_buffers(layout: Layout, found: Tensors) -> dict[str, torch.Tensor]:
    """What is learned; the head left out where it is the embedding once more."""
    kept = {name: tensor for name, tensor in found.items() if not name.endswith(layout.ignored)}
    embedding, head = kept.get(layout.name("embedding")), kept.get(layout.name("head"))
    if layout.ties and are_the_same(embedding, head):
        del kept[layout.name("head")]
    return kept


def are_the_same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return one.shape == other.shape and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))


def heads_in(layout: Layout, found: Tensors) -> int | None:
    """How many there are, where each has tensors of its own."""
    if "{}" not in layout.inside.get("attention.query", ""):
        return None
    pattern = re.escape(layout.block.format(0)) + r"attn\.heads\.(\d{1,6})\.query\.weight"
    numbers = {int(match[1]) for name in found if (match := re.fullmatch(pattern, name))}
    return len(numbers) or None


def width_of(layout: Layout, found: Tensors) -> int:
    return _matrix(found, layout.name("embedding"))[1]


def has_projection(layout: Layout, found: Tensors) -> bool:
    """Attention without is known of one program only; anywhere else, it is missing."""
    return layout is not PILE or any(name.endswith(".attn.proj.weight") for name in found)


def config_of(layout: Layout, found: Tensors, knobs: Mapping[str, Any]) -> ModelConfig:
    """What the tensors' shapes tell, with what they do not: `knobs`, n_head among them."""
    vocab_size, width = _matrix(found, layout.name("embedding"))
    context, _ = _matrix(found, layout.name("positions"))
    inner = _matrix(found, layout.name("mlp.up"))[1 if layout.turned else 0]
    return build(
        ModelConfig,
        CLASSIC
        | {
            "vocab_size": vocab_size,
            "context": context,
            "n_embd": width,
            "n_layer": _layers(layout, found),
            "mlp_width": None if inner == 4 * width else inner,
            "biases": sorted(_roles_with_bias(layout, found)),
            "tied": layout.ties and layout.name("head") not in found,
            "out_projection": has_projection(layout, found),
        }
        | {**layout.knobs, **knobs},
    )


def _matrix(found: Tensors, name: str) -> tuple[int, int]:
    if name not in found:
        raise UserError(f"tensor {name} is missing")
    shape = tuple(found[name].shape)
    if len(shape) == 3 and shape[0] == 1:  # as TensorFlow has them
        shape = shape[1:]
    if len(shape) != 2:
        raise UserError(f"tensor {name} is {tuple(shape)}, which should be a matrix")
    return int(shape[0]), int(shape[1])


def _layers(layout: Layout, found: Tensors) -> int:
    begin, _, end = layout.block.partition("{}")
    pattern = re.compile(re.escape(begin) + r"(\d{1,9})" + re.escape(end))
    layers = 1 + max((int(match[1]) for name in found if (match := pattern.match(name))), default=0)
    if layers > len(found):
        raise UserError(f"a tensor of layer {layers - 1:,} is there, but {len(found):,} tensors cannot be that many")
    return layers


def _roles_with_bias(layout: Layout, found: Tensors) -> set[str]:
    """Where any tensor of a role has a bias, all have to."""
    roles = set()
    for modules, theirs in [*layout.outside.items(), *layout.inside.items()]:
        module = modules if isinstance(modules, str) else modules[0]
        if module not in ROLES:
            continue
        before = "" if modules in layout.outside else re.escape(layout.block).replace(r"\{\}", r"\d+")
        pattern = before + re.escape(theirs).replace(r"\{\}", r"\d+") + re.escape(layout.ending(module)[1])
        if any(re.fullmatch(pattern, name) for name in found):
            roles.add(ROLES[module])
    return roles


def tensors_of(layout: Layout, config: ModelConfig) -> Iterator[Tensor]:
    """What belongs to what."""
    places = [(modules, theirs, "", "") for modules, theirs in layout.outside.items()]
    for layer in range(config.n_layer):
        inside = layout.inside.items()
        places += [(modules, theirs, layout.block.format(layer), f"blocks.{layer}.") for modules, theirs in inside]
    for modules, theirs, before, ours in places:
        names = (modules,) if isinstance(modules, str) else modules
        role = ROLES.get(names[0])
        if (role == "head" and config.tied) or (role == "out" and not config.out_projection):
            continue
        each = [theirs.format(head) for head in range(config.n_head)] if "{}" in theirs else [theirs]
        turned = layout.turned and before != ""
        for kind, ending in zip(
            ("weight", "bias")[: 1 + (role in config.biases)], layout.ending(names[0]), strict=False
        ):
            yield Tensor(
                tuple(before + one + ending for one in each),
                tuple(f"{ours}{name}.{kind}" for name in names),
                turned and kind == "weight" and role != "norm",
            )


def to_ours(layout: Layout, config: ModelConfig, found: Tensors) -> dict[str, torch.Tensor]:
    """The tensors under our names, or a UserError that names those that are wrong."""
    with torch.device("meta"):
        wanted = GPT(config).state_dict()
    state: dict[str, torch.Tensor] = {}
    mistakes: list[str] = []
    known: set[str] = set()
    for tensor in tensors_of(layout, config):
        known |= set(tensor.theirs)
        sizes = [len(wanted[name]) for name in tensor.ours]
        shape = (sum(sizes) // len(tensor.theirs), *wanted[tensor.ours[0]].shape[1:])
        parts = []
        for name in tensor.theirs:
            part = found.get(name)
            if part is not None and part.ndim == 3 and layout is OPENAI and len(part) == 1:
                part = part[0]
            wrong = _wrong_with(part, shape[::-1] if tensor.turned else shape)
            if part is None or wrong:
                mistakes.append(f"tensor {name[:80]} {wrong}")
            else:
                parts.append(part.T if tensor.turned else part)
        if not mistakes:
            rows = torch.cat(parts).float() if len(parts) > 1 else parts[0].float()
            state |= zip(tensor.ours, (piece.contiguous() for piece in rows.split(sizes)), strict=True)
    mistakes += [f"tensor {name[:80]} is not of this model" for name in sorted(found.keys() - known)]
    if mistakes:
        raise UserError(*mistakes[:MOST_MISTAKES])
    return state


def _wrong_with(part: torch.Tensor | None, shape: tuple[int, ...]) -> str:
    if part is None:
        return "is missing"
    if tuple(part.shape) != shape:
        return f"is {tuple(part.shape)}, the model has {shape}"
    return "" if part.is_floating_point() else f"holds {part.dtype}, not floating-point numbers"
