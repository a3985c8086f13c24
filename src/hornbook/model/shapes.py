"""Models that other programs know by name.

In: a ModelConfig.  Out: how transformers describes a model of exactly this shape, and where it keeps each tensor; and
from its description back to a ModelConfig. A model type is one entry in SHAPES. Logits are the same numbers in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.model.config import ModelConfig
from hornbook.model.layouts import QKV, Layout, rotated_back, transposed

Description = Mapping[str, Any]
# Their name for an activation, and ours; of two of theirs, the first is written.
THEIR_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(frozen=True)
class Shape:
    """A model type that transformers knows."""

    architecture: str
    fits: Callable[[ModelConfig], bool]
    describe: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Description], dict[str, Any]]  # the other way round: what ModelConfig's knobs are
    layout: Layout


def shape_of(config: ModelConfig) -> str | None:
    """The model type of exactly this shape, if there is one."""
    beyond = config.value_embeddings or config.bigram_embeddings or config.embedding_skip
    if beyond or "head" in config.biases or not config.out_projection or config.scale_of_attention != _usual(config):
        return None
    return next((kind for kind, shape in SHAPES.items() if shape.fits(config)), None)


def layout_of(kind: str | None) -> Layout | None:
    """Where transformers keeps the tensors of a model type; None where they have our names."""
    return SHAPES[kind].layout if kind is not None else None


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


def _usual(config: ModelConfig) -> float:
    return float(config.width_of_head**-0.5)


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
    plain = config.activation in THEIR_ACTIVATIONS.values() and not config.embedding_norm and config.logit_cap is None
    return parts == ("layernorm", True, "learned", "none") and plain and heads


def _describe_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": config.context,
        "n_ctx": config.context,  # llama.cpp's converter looks for it
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.width_of_mlp,
        "activation_function": next(theirs for theirs, ours in THEIR_ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.drops("embedding"),
        "attn_pdrop": config.drops("attention"),
        "resid_pdrop": config.drops("residual"),
    }


def _read_gpt2(description: Description) -> dict[str, Any]:
    context, width, layers, heads = _need(description, "n_positions", "n_embd", "n_layer", "n_head")
    activation = description.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in THEIR_ACTIVATIONS:
        raise UserError(f"activation_function is {activation!r}; known are {', '.join(THEIR_ACTIVATIONS)}")
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
        "activation": THEIR_ACTIVATIONS[activation],
        "positions": "learned",
        "qk_norm": "none",
        "biases": ["norm", "qkv", "out", "mlp"],
        "dropout": max(rates.values()),
        "dropout_at": [place for place, rate in rates.items() if rate] or list(rates),
    }


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


def _read_rotary(description: Description, activation: str) -> dict[str, Any]:
    names = ("max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    context, width, layers, heads, mlp = _need(description, *names)
    rope = description.get("rope_parameters") or description.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"rope_parameters is {rope!r}; it should be a table")
    _refuse({"rope_type": rope.get("rope_type", rope.get("type"))}, {"rope_type": "default"})
    _refuse(rope, {"partial_rotary_factor": 1.0})
    _refuse(description, {"hidden_act": activation, "use_sliding_window": False})
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


def gpt2_layout(norms: str = "ln_{}", stored_in_out: bool = False, **changes: Any) -> Layout:
    """GPT-2's names, which nanoGPT took over."""
    matrices = ("attention.query", "attention.out", "mlp.up", "mlp.down")
    table = Layout(
        outside={
            "embedding": "transformer.wte",
            "positions": "transformer.wpe",
            "norm": "transformer.ln_f",
            "head": "lm_head",
        },
        block="transformer.h.{}.",
        inside={
            "attention_norm": norms.format(1),
            QKV: "attn.c_attn",
            "attention.out": "attn.c_proj",
            "mlp_norm": norms.format(2),
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        },
        arrange=dict.fromkeys(matrices, transposed) if stored_in_out else {},
        body="transformer.",
        ignored=(".attn.bias", ".attn.masked_bias"),  # with their dot: the bias of c_attn is none of them
    )
    return replace(table, **changes)


def _llama_biases(config: ModelConfig) -> Collection[str]:
    return ({"qkv", "out"} if _has_attention_bias(config) else set()) | ({"mlp"} & set(config.biases))


LLAMA = Layout(
    outside={"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    block="model.layers.{}.",
    inside={
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "attention.query_norm": "self_attn.q_norm",
        "attention.key_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
    biased=_llama_biases,
    body="model.",
)
NANOCHAT = replace(
    LLAMA,
    inside={**LLAMA.inside, "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"},
    arrange=dict.fromkeys(("attention.query", "attention.key"), rotated_back),
)
GPT2 = gpt2_layout(stored_in_out=True, biased=lambda config: ("norm", "qkv", "out", "mlp"))
SHAPES = {
    "gpt2": Shape("GPT2LMHeadModel", _fits_gpt2, _describe_gpt2, _read_gpt2, GPT2),
    "qwen3": Shape("Qwen3ForCausalLM", _fits_qwen3, _describe_qwen3, _read_qwen3, LLAMA),
    "llama": Shape("LlamaForCausalLM", _fits_llama, _describe_llama, _read_llama, LLAMA),
    "nanochat": Shape("NanoChatForCausalLM", _fits_nanochat, _describe_nanochat, _read_nanochat, NANOCHAT),
}
