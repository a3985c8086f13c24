"""Models that other programs know by name.

In: a ModelConfig.  Out: how transformers describes a model of exactly this shape, and where it keeps each tensor; and
from its description back to a ModelConfig. A model type is one entry in SHAPES. Logits are the same numbers in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT, outline

Tensors = dict[str, torch.Tensor]
Description = Mapping[str, Any]
# Their name for an activation, and ours.
PLAIN_BENDS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}


@dataclass(frozen=True)
class Tensor:
    """One of their tensors: some of ours laid one below the other, and turned where they store (in, out). Where the
    halves of each head are swapped, they rotate the other way round. A bias that ours lacks is zero in theirs."""

    name: str
    ours: tuple[str, ...]
    turned: bool = False
    swapped_heads: int = 0


@dataclass(frozen=True)
class Shape:
    """A model type that transformers knows."""

    architecture: str
    fits: Callable[[ModelConfig], bool]
    describe: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Description], dict[str, Any]]  # the other way round: what ModelConfig's knobs are
    tensors: Callable[[ModelConfig], Iterator[Tensor]]


def shape_of(config: ModelConfig) -> str | None:
    """The model type of exactly this shape, if there is one."""
    beyond = config.value_embeddings or config.bigram_embeddings or config.embedding_skip
    if beyond or "head" in config.biases or not config.out_projection or config.scale_of_attention != _usual(config):
        return None
    return next((kind for kind, shape in SHAPES.items() if shape.fits(config)), None)


def read_description(kind: str, description: Description) -> ModelConfig:
    """The ModelConfig of a folder that another program wrote, or a UserError that says what we do not have."""
    if kind not in SHAPES:
        known = ", ".join(SHAPES)
        raise UserError(f"model_type {kind!r}: not a shape that Hornbook knows; it reads {known}")
    knobs = SHAPES[kind].read(description)
    ids = {
        "vocab_size": description.get("vocab_size"),
        "tied": bool(description.get("tie_word_embeddings", kind == "gpt2")),
    }
    return build(ModelConfig, {"init": "gpt2"} | knobs | ids)


def to_theirs(kind: str | None, config: ModelConfig, state: Tensors) -> Tensors:
    """Our tensors under their names."""
    state = {name: tensor for name, tensor in state.items() if not (config.tied and name == "head.weight")}
    if kind is None:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    sizes, like = _sizes(config), state["embedding.weight"]
    theirs = {}
    for tensor in SHAPES[kind].tensors(config):
        parts = [state[name] if name in state else like.new_zeros(sizes[name]) for name in tensor.ours]
        whole = torch.cat([_swapped(part, tensor.swapped_heads) for part in parts])
        theirs[tensor.name] = (whole.T if tensor.turned else whole).contiguous()
    return theirs


def as_transformers_names_them(kind: str | None, config: ModelConfig, found: Tensors) -> Tensors:
    """Tensors as files of this type hold them: older ones without the prefix of the body, with masks that nobody
    needs, or with a head beside the embedding that it is tied to."""
    if kind == "gpt2":
        found = {
            name: tensor for name, tensor in found.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
    if kind is not None and config.tied:
        found = {name: tensor for name, tensor in found.items() if name != "lm_head.weight"}
    body = {"gpt2": "transformer."}.get(kind or "", "model.")
    if kind is None or any(name.startswith(body) for name in found):
        return found
    return {name if name == "lm_head.weight" else body + name: tensor for name, tensor in found.items()}


def to_ours(kind: str | None, config: ModelConfig, theirs: Tensors) -> Tensors:
    """Their tensors under our names."""
    if kind is None:
        return dict(theirs)
    sizes, wanted = _sizes(config), _names(config)
    state: Tensors = {}
    for tensor in SHAPES[kind].tensors(config):
        whole = theirs[tensor.name].T if tensor.turned else theirs[tensor.name]
        for name, part in zip(tensor.ours, whole.split([sizes[name] for name in tensor.ours]), strict=True):
            if name in wanted:
                state[name] = _swapped(part, tensor.swapped_heads).contiguous()
            elif part.any():
                raise UserError(f"tensor {tensor.name} is not zero, but the model's config has no such bias")
    return state


def _usual(config: ModelConfig) -> float:
    return float(config.width_of_head**-0.5)


def _outline(config: ModelConfig) -> GPT:
    """Without the angles of a long context, which no file holds."""
    return outline(config.with_(context=2) if config.positions == "rotary" else config)


def _names(config: ModelConfig) -> set[str]:
    return set(_outline(config).state_dict())


def _sizes(config: ModelConfig) -> dict[str, int]:
    """Rows of every tensor, those of biases that the model lacks as well."""
    biases = ("qkv", "out", "mlp", *(("norm",) if config.norm == "layernorm" else ()))
    return {name: len(tensor) for name, tensor in _outline(config.with_(biases=biases)).state_dict().items()}


def _swapped(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The halves of each head, exchanged: rotating by an angle becomes rotating back by it."""
    return tensor.unflatten(0, (heads, 2, -1)).flip(1).flatten(0, 2) if heads else tensor


def _need(description: Description, *names: str) -> list[Any]:
    missing = [name for name in names if description.get(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is missing, without which the model's shape is not known")
    return [description[name] for name in names]


def _refuse(description: Description, usual: Mapping[str, Any]) -> None:
    """What changes the numbers and has no counterpart here must stand as it usually does."""
    for name, value in usual.items():
        if description.get(name, value) not in (value, None):
            raise UserError(f"{name} is {description[name]!r}; only {value!r} is known here")


def _fits_gpt2(config: ModelConfig) -> bool:
    heads = config.kv_heads == config.n_head and config.width_of_head * config.n_head == config.n_embd
    parts = (config.norm, config.norm_weight, config.positions, config.qk_norm)
    plain = config.activation in PLAIN_BENDS.values() and not config.embedding_norm and config.logit_cap is None
    return parts == ("layernorm", True, "learned", "none") and plain and heads


def _describe_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": config.context,
        "n_ctx": config.context,  # llama.cpp's converter looks for it
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.width_of_mlp,
        "activation_function": next(theirs for theirs, ours in PLAIN_BENDS.items() if ours == config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.drops("embedding"),
        "attn_pdrop": config.drops("attention"),
        "resid_pdrop": config.drops("residual"),
    }


def _read_gpt2(description: Description) -> dict[str, Any]:
    context, width, layers, heads = _need(description, "n_positions", "n_embd", "n_layer", "n_head")
    bend = description.get("activation_function", "gelu_new")
    if not isinstance(bend, str) or bend not in PLAIN_BENDS:
        raise UserError(f"activation_function is {bend!r}; known are {', '.join(PLAIN_BENDS)}")
    _refuse(
        description,
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    )
    places = {"embedding": "embd_pdrop", "attention": "attn_pdrop", "residual": "resid_pdrop"}
    rates = {place: description.get(name, 0.1) for place, name in places.items()}
    if not all(isinstance(rate, int | float) for rate in rates.values()):
        raise UserError(f"{', '.join(places.values())}: should be numbers, not {list(rates.values())!r}")
    return {
        "context": context,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "mlp_width": description.get("n_inner") or None,
        "norm": "layernorm",
        "norm_eps": description.get("layer_norm_epsilon", 1e-5),
        "activation": PLAIN_BENDS[bend],
        "positions": "learned",
        "qk_norm": "none",
        "biases": ["norm", "qkv", "out", "mlp"],
        "dropout": max(rates.values()),
        "dropout_at": [place for place, rate in rates.items() if rate] or list(rates),
    }


def _gpt2_tensors(config: ModelConfig) -> Iterator[Tensor]:
    yield Tensor("transformer.wte.weight", ("embedding.weight",))
    yield Tensor("transformer.wpe.weight", ("positions.weight",))
    for layer in range(config.n_layer):
        theirs, ours = f"transformer.h.{layer}", f"blocks.{layer}"
        for kind in ("weight", "bias"):
            turned = kind == "weight"
            attention = tuple(f"{ours}.attention.{part}.{kind}" for part in ("query", "key", "value"))
            yield Tensor(f"{theirs}.ln_1.{kind}", (f"{ours}.attention_norm.{kind}",))
            yield Tensor(f"{theirs}.attn.c_attn.{kind}", attention, turned)
            yield Tensor(f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.out.{kind}",), turned)
            yield Tensor(f"{theirs}.ln_2.{kind}", (f"{ours}.mlp_norm.{kind}",))
            yield Tensor(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.up.{kind}",), turned)
            yield Tensor(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.down.{kind}",), turned)
    yield Tensor("transformer.ln_f.weight", ("norm.weight",))
    yield Tensor("transformer.ln_f.bias", ("norm.bias",))
    if not config.tied:
        yield Tensor("lm_head.weight", ("head.weight",))


def _is_rotary(config: ModelConfig, activation: str, qk_norm: str) -> bool:
    parts = (config.norm, config.positions, config.activation, config.qk_norm)
    return parts == ("rmsnorm", "rotary", activation, qk_norm)


def _is_plain_llama(config: ModelConfig) -> bool:
    return config.norm_weight and not config.embedding_norm and config.logit_cap is None


def _fits_qwen3(config: ModelConfig) -> bool:
    return _is_rotary(config, "swiglu", "before") and _is_plain_llama(config) and "mlp" not in config.biases


def _fits_llama(config: ModelConfig) -> bool:
    return _is_rotary(config, "swiglu", "none") and _is_plain_llama(config)


def _fits_nanochat(config: ModelConfig) -> bool:
    weightless = config.embedding_norm and not config.norm_weight and "mlp" not in config.biases
    whole = config.width_of_head * config.n_head == config.n_embd
    return _is_rotary(config, "relu2", "after") and weightless and whole


def _describe_rotary(config: ModelConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": config.context,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_of_head,
        "intermediate_size": config.width_of_mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        # Older readers look for the base here, newer ones in rope_parameters.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": _has_attention_bias(config),
        "attention_dropout": config.drops("attention"),
    }


def _describe_qwen3(config: ModelConfig) -> dict[str, Any]:
    return _describe_rotary(config) | {"use_sliding_window": False}


def _describe_llama(config: ModelConfig) -> dict[str, Any]:
    return _describe_rotary(config) | {"mlp_bias": "mlp" in config.biases}


def _describe_nanochat(config: ModelConfig) -> dict[str, Any]:
    described = {name: value for name, value in _describe_rotary(config).items() if name != "head_dim"}
    return described | {"hidden_act": "relu2", "final_logit_softcapping": config.logit_cap}


def _has_attention_bias(config: ModelConfig) -> bool:
    return not {"qkv", "out"}.isdisjoint(config.biases)


def _read_rotary(description: Description, bend: str) -> dict[str, Any]:
    names = ("max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    context, width, layers, heads, mlp = _need(description, *names)
    rope = description.get("rope_parameters") or description.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"rope_parameters is {rope!r}; it should be a table")
    _refuse({"rope_type": rope.get("rope_type", rope.get("type"))}, {"rope_type": "default"})
    _refuse(rope, {"partial_rotary_factor": 1.0})
    _refuse(description, {"hidden_act": bend, "use_sliding_window": False})
    rate = description.get("attention_dropout") or 0.0
    return {
        "context": context,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": description.get("num_key_value_heads"),
        "head_width": description.get("head_dim"),
        "mlp_width": mlp,
        "norm": "rmsnorm",
        "norm_eps": description.get("rms_norm_eps", 1e-6),
        "activation": "swiglu",
        "positions": "rotary",
        "rope_theta": rope.get("rope_theta") or description.get("rope_theta") or 10_000.0,
        "biases": ["qkv", "out"] if description.get("attention_bias") else [],
        "dropout": rate,
        "dropout_at": ["attention"],
    }


def _read_qwen3(description: Description) -> dict[str, Any]:
    # Where the file does not say, this is the width that transformers takes.
    return _read_rotary({"head_dim": 128} | dict(description), "silu") | {"qk_norm": "before"}


def _read_llama(description: Description) -> dict[str, Any]:
    knobs = _read_rotary(description, "silu")
    return knobs | {"qk_norm": "none", "biases": knobs["biases"] + ["mlp"] * bool(description.get("mlp_bias"))}


def _read_nanochat(description: Description) -> dict[str, Any]:
    knobs = _read_rotary({"hidden_act": "relu2"} | dict(description), "relu2")
    cap = description.get("final_logit_softcapping", 15.0)
    weightless = {"norm_weight": False, "embedding_norm": True, "qk_norm": "after"}
    return knobs | weightless | {"activation": "relu2", "logit_cap": cap}


def _rotary_tensors(config: ModelConfig, mlp: Mapping[str, str], rotates_back: bool = False) -> Iterator[Tensor]:
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
    swapped = {"q_proj": config.n_head, "k_proj": config.kv_heads} if rotates_back else {}
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    if config.qk_norm == "before":
        norms |= {"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"}
    yield Tensor("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.n_layer):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        for name, part in parts.items():
            for kind in ("weight", "bias")[: 1 + _has_attention_bias(config)]:
                yield Tensor(
                    f"{theirs}.self_attn.{name}.{kind}",
                    (f"{ours}.attention.{part}.{kind}",),
                    swapped_heads=swapped.get(name, 0),
                )
        for name, part in mlp.items():
            for kind in ("weight", "bias")[: 1 + ("mlp" in config.biases)]:
                yield Tensor(f"{theirs}.mlp.{name}.{kind}", (f"{ours}.mlp.{part}.{kind}",))
        if config.norm_weight:
            for name, part in norms.items():
                yield Tensor(f"{theirs}.{name}.weight", (f"{ours}.{part}.weight",))
    if config.norm_weight:
        yield Tensor("model.norm.weight", ("norm.weight",))
    if not config.tied:
        yield Tensor("lm_head.weight", ("head.weight",))


def _llama_tensors(config: ModelConfig) -> Iterator[Tensor]:
    return _rotary_tensors(config, {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"})


def _nanochat_tensors(config: ModelConfig) -> Iterator[Tensor]:
    return _rotary_tensors(config, {"fc1": "up", "fc2": "down"}, rotates_back=True)


SHAPES = {
    "gpt2": Shape("GPT2LMHeadModel", _fits_gpt2, _describe_gpt2, _read_gpt2, _gpt2_tensors),
    "qwen3": Shape("Qwen3ForCausalLM", _fits_qwen3, _describe_qwen3, _read_qwen3, _llama_tensors),
    "llama": Shape("LlamaForCausalLM", _fits_llama, _describe_llama, _read_llama, _llama_tensors),
    "nanochat": Shape("NanoChatForCausalLM", _fits_nanochat, _describe_nanochat, _read_nanochat, _nanochat_tensors),
}
