"""A model on disk.

In: a GPT and its tokenizer.  Out: a Hugging Face folder, and back.
`config.json` names a model type of transformers where there is one of exactly this shape, so that
AutoModelForCausalLM loads the folder by its path alone; our own ModelConfig stands in it under "hornbook", where
transformers keeps and ignores it. A shape that has no such type is saved as model type `hornbook`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hornbook.base import files
from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT
from hornbook.text.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
RUN = "run.json"
CHECKPOINTS = "checkpoints"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tensor:
    """One of their tensors: some of ours laid one below the other, and turned where they store (in, out)."""

    name: str
    ours: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class Shape:
    """A model type that transformers knows."""

    architecture: str
    fits: Callable[[ModelConfig], bool]
    describe: Callable[[ModelConfig], dict[str, Any]]
    tensors: Callable[[ModelConfig], Iterator[Tensor]]


def save_model(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer into a staged folder."""
    config = model.config
    kind = next((kind for kind, shape in SHAPES.items() if shape.fits(config)), "hornbook")
    end = tokenizer.end_of_text
    ids = {"bos_token_id": end, "eos_token_id": end}
    description: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": config.known_vocab_size,
        "dtype": "float32",
    }
    if kind in SHAPES:
        description |= {"architectures": [SHAPES[kind].architecture], "tie_word_embeddings": config.tied}
        description |= SHAPES[kind].describe(config)
    files.write_json(folder / CONFIG, description | ids | {"hornbook": config.model_dump()})
    # Not in config.json: there, some types never train the embedding of the padding, which is the end of text here.
    files.write_json(folder / "generation_config.json", ids | {"pad_token_id": end})
    safetensors.torch.save_file(_to_theirs(kind, config, model.state_dict()), folder / WEIGHTS, {"format": "pt"})
    tokenizer.save(folder, config.context)


def load_config(folder: Path) -> ModelConfig:
    description = files.read_json(folder / CONFIG)
    ours = description.get("hornbook")
    if not isinstance(ours, dict):
        raise UserError(f"{folder}: not a model that Hornbook saved ({CONFIG} has no hornbook section)")
    try:
        return build(ModelConfig, ours)
    except UserError as error:
        raise UserError(*(f"{folder / CONFIG}: {mistake}" for mistake in error.mistakes)) from None


def load_model(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a folder, ready to speak; every tensor must be there, of the right shape, and no other."""
    config = load_config(folder)
    with torch.device("meta"):
        model = GPT(config)
    load_weights(model, folder)
    return model.to(device=device, dtype=dtype).eval()


def load_weights(model: GPT, folder: Path) -> None:
    """Put a folder's weights into a model of the same sizes, also one that is still on the meta device."""
    path = folder / WEIGHTS
    kind = files.read_json(folder / CONFIG).get("model_type", "")
    theirs = read_tensors(path)
    expected = _to_theirs(str(kind), model.config, {k: v.to("meta") for k, v in model.state_dict().items()})
    mistakes = [f"{path}: tensor {name} is missing" for name in sorted(expected.keys() - theirs.keys())]
    mistakes += [f"{path}: tensor {name} is not of this model" for name in sorted(theirs.keys() - expected.keys())]
    for name in sorted(expected.keys() & theirs.keys()):
        has, wants = tuple(theirs[name].shape), tuple(expected[name].shape)
        if has != wants:
            mistakes.append(f"{path}: tensor {name} is {has}, the model has {wants}")
        elif theirs[name].dtype not in (torch.float32, torch.bfloat16, torch.float16):
            mistakes.append(f"{path}: tensor {name} holds {theirs[name].dtype}, not floating-point numbers")
    if mistakes:
        raise UserError(*mistakes[:8])
    ours = {name: tensor.float() for name, tensor in _to_ours(str(kind), model.config, theirs).items()}
    if next(model.parameters()).is_meta:
        model.load_state_dict(ours | _tied(model.config, ours), assign=True)
        if model.config.tied:
            model.head.weight = model.embedding.weight
    else:
        model.load_state_dict(ours | _tied(model.config, ours))


def read_tensors(path: Path) -> Tensors:
    """A safetensors file, or a UserError."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def resolve(path: Path, at: str = "best") -> Path:
    """The model folder that is meant: `path` itself, or of a run the best, the newest, or the checkpoint of a
    step."""
    if not path.exists():
        raise UserError(f"{path}: no such model or run; hornbook train makes one")
    if (path / CONFIG).is_file():
        return path
    if not (path / RUN).is_file():
        raise UserError(f"{path}: neither a model (no {CONFIG}) nor a run (no {RUN})")
    steps = checkpoint_folders(path)
    if at == "best":
        candidates = sorted(steps, key=_validation_loss)
    elif at == "newest":
        candidates = steps
    else:
        candidates = [each for each in steps if each.name.removeprefix("step-").lstrip("0") == at.lstrip("0")]
        if not candidates:
            kept = ", ".join(str(step_of(each)) for each in reversed(steps)) or "none"
            raise UserError(f"{path}: no checkpoint of step {at}; kept are {kept}, and best and newest")
    return first_good(path, candidates)


def first_good(run: Path, candidates: list[Path], wrong_with: Callable[[Path], str | None] = files.damage) -> Path:
    """The first checkpoint that nothing is wrong with; each before it is named in one line."""
    for folder in candidates:
        wrong = wrong_with(folder)
        if wrong is None:
            return folder
        warn(f"{folder}: {wrong}; taking the next one")
    if candidates:
        raise UserError(f"{run}: every checkpoint is damaged; train again into another --out")
    raise UserError(f"{run}: has no checkpoint yet; begin it anew: hornbook train --out {run}")


def checkpoint_folders(run: Path) -> list[Path]:
    """A run's finished checkpoints, newest first."""
    found = [each for each in (run / CHECKPOINTS).glob("step-*") if each.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _validation_loss(checkpoint: Path) -> float:
    try:
        loss = float(files.manifest_notes(checkpoint)["val_loss"])
    except (UserError, KeyError, ValueError, TypeError):
        return math.inf
    return math.inf if math.isnan(loss) else loss  # nothing sorts beside a NaN


def _to_theirs(kind: str, config: ModelConfig, state: Tensors) -> Tensors:
    state = {name: tensor for name, tensor in state.items() if not (config.tied and name == "head.weight")}
    if kind not in SHAPES:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    theirs = {}
    for tensor in SHAPES[kind].tensors(config):
        whole = torch.cat([state[name] for name in tensor.ours])
        theirs[tensor.name] = (whole.T if tensor.turned else whole).contiguous()
    return theirs


def _to_ours(kind: str, config: ModelConfig, theirs: Tensors) -> Tensors:
    if kind not in SHAPES:
        return dict(theirs)
    with torch.device("meta"):
        sizes = {name: tensor.shape[0] for name, tensor in GPT(config).state_dict().items()}
    state: Tensors = {}
    for tensor in SHAPES[kind].tensors(config):
        whole = theirs[tensor.name].T if tensor.turned else theirs[tensor.name]
        parts = whole.split([sizes[name] for name in tensor.ours])
        state |= {name: part.contiguous() for name, part in zip(tensor.ours, parts, strict=True)}
    return state


def _tied(config: ModelConfig, state: Tensors) -> Tensors:
    return {"head.weight": state["embedding.weight"]} if config.tied else {}


def _fits_gpt2(config: ModelConfig) -> bool:
    parts = (config.norm, config.activation, config.positions, config.qk_norm, config.bias)
    heads = config.kv_heads == config.n_head and config.width_of_head * config.n_head == config.n_embd
    return parts == ("layernorm", "gelu_tanh", "learned", False, True) and heads


def _describe_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": config.context,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.width_of_mlp,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
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


def _fits_qwen3(config: ModelConfig) -> bool:
    parts = (config.norm, config.activation, config.positions, config.qk_norm, config.bias)
    return parts == ("rmsnorm", "swiglu", "rotary", True, False)


def _describe_qwen3(config: ModelConfig) -> dict[str, Any]:
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
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
    }


def _qwen3_tensors(config: ModelConfig) -> Iterator[Tensor]:
    names = {
        "input_layernorm": "attention_norm",
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.out",
        "self_attn.q_norm": "attention.query_norm",
        "self_attn.k_norm": "attention.key_norm",
        "post_attention_layernorm": "mlp_norm",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    }
    yield Tensor("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.n_layer):
        for theirs, ours in names.items():
            yield Tensor(f"model.layers.{layer}.{theirs}.weight", (f"blocks.{layer}.{ours}.weight",))
    yield Tensor("model.norm.weight", ("norm.weight",))
    if not config.tied:
        yield Tensor("lm_head.weight", ("head.weight",))


SHAPES = {
    "gpt2": Shape("GPT2LMHeadModel", _fits_gpt2, _describe_gpt2, _gpt2_tensors),
    "qwen3": Shape("Qwen3ForCausalLM", _fits_qwen3, _describe_qwen3, _qwen3_tensors),
}
