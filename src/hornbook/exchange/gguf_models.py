"""A model folder as llama.cpp wants it.

In: a folder with config.json of type gpt2, qwen3 or llama, model.safetensors with transformers' tensor names, and
tokenizer.json.  Out: one GGUF file, read back and compared before it gets its name.
llama.cpp knows an architecture by `general.architecture`, its sizes by keys that begin with that, its tensors by names
of its own, and a vocabulary by the tokens, their kinds and the merges. It rotates pairs that lie side by side in
`llama`, and halves as transformers does in `qwen3`; so rows of the former's queries and keys change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hornbook.base import files
from hornbook.base.errors import MachineError, UserError
from hornbook.exchange.gguf import BLOCK, Tensor, Value, read_gguf, write_gguf
from hornbook.exchange.gguf_vocabulary import vocabulary_of
from hornbook.model.folder import CONFIG, WEIGHTS, read_tensors

# By what it is called here: the kind of matrices, and llama.cpp's number for a file of that kind.
DTYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "q8_0": ("Q8_0", 7), "bf16": ("BF16", 32)}
# A block of Q8_0 is off by half a step of its scale, and the scale, of half precision, by a little.
Q8_0_STEP = 0.51 / 127
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Renamed:
    """One of their tensors: its name and shape there, its name here, and what is done to it."""

    theirs: str
    shape: tuple[int, ...]
    name: str
    change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor


class _Config:
    """config.json, of which every entry that matters is looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = files.read_json(path)
        self.type = str(self._held.get("model_type"))

    def size(self, name: str, otherwise: int | None = None) -> int:
        value = self._held.get(name)
        value = otherwise if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{self.path}: {name} should be a whole number above 0, not {str(value)[:40]}")
        return value

    def number(self, name: str, section: str = "") -> float:
        inner = self.inner(section, name)
        value = self._held.get(name) if inner is None else inner
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise UserError(f"{self.path}: {name} should be a number above 0, not {str(value)[:40]}")
        return float(value)

    def inner(self, section: str, name: str) -> Any:
        held = self._held.get(section)
        return held.get(name) if isinstance(held, dict) else None

    def must_be(self, name: str, *allowed: Any) -> None:
        """For llama.cpp knows no other; the first is meant where nothing is said."""
        value = self._held.get(name, allowed[0])
        if value not in allowed:
            raise UserError(f"{self.path}: {name} is {str(value)[:40]}; llama.cpp's {self.type} has only {allowed[0]}")

    def token(self, name: str) -> int:
        value = self._held.get(name)
        if type(value) is not int or not 0 <= value < self.size("vocab_size"):
            raise UserError(f"{self.path}: {name} should be the id of a token, not {str(value)[:40]}")
        return value

    @property
    def is_tied(self) -> bool:
        return bool(self._held.get("tie_word_embeddings", self.type == "gpt2"))


def export_gguf(folder: Path, out: Path, dtype: str = "f16") -> None:
    """Write the model of a folder to one file."""
    config = _Config(folder / CONFIG)
    if config.type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder}: llama.cpp knows no model of type {config.type[:40]}; only {known} become GGUF")
    if dtype not in DTYPES:
        raise UserError(f"GGUF is written as {', '.join(DTYPES)}, not as {dtype[:40]}")
    describe, names_of = ARCHITECTURES[config.type]
    kind, file_type = DTYPES[dtype]
    metadata: dict[str, Value] = {
        "general.architecture": config.type,
        "general.name": out.stem,
        "general.file_type": file_type,
        **({"general.quantization_version": 2} if kind == "Q8_0" else {}),
        **{f"{config.type}.{key}": value for key, value in describe(config).items()},
        f"{config.type}.vocab_size": config.size("vocab_size"),
        **vocabulary_of(folder, config.size("vocab_size")),
        "tokenizer.ggml.bos_token_id": config.token("bos_token_id"),
        "tokenizer.ggml.eos_token_id": config.token("eos_token_id"),
        "tokenizer.ggml.padding_token_id": config.token("eos_token_id"),
        "tokenizer.ggml.add_bos_token": False,
    }
    theirs = read_tensors(folder / WEIGHTS)
    renamed = list(islice(names_of(config), len(theirs) + 20))  # config.json may claim a billion layers
    _check_names(folder / WEIGHTS, theirs, renamed)
    tensors = [_tensor(each, theirs, kind) for each in renamed]
    with files.staged_file(out) as staging:
        write_gguf(staging, metadata, tensors)
        _compare(staging, metadata, tensors)


def _check_names(path: Path, theirs: Tensors, renamed: list[Renamed]) -> None:
    wanted = {each.theirs: each.shape for each in renamed}
    mistakes = [f"{path}: tensor {name} is missing" for name in sorted(wanted.keys() - theirs.keys())]
    mistakes += [f"{path}: llama.cpp has no place for tensor {name}" for name in sorted(theirs.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & theirs.keys()):
        if tuple(theirs[name].shape) != wanted[name]:
            mistakes.append(f"{path}: tensor {name} is {tuple(theirs[name].shape)}, config.json says {wanted[name]}")
        elif not theirs[name].is_floating_point():
            mistakes.append(f"{path}: tensor {name} holds {theirs[name].dtype}, not floating-point numbers")
    if mistakes:
        raise UserError(*mistakes)


def _tensor(renamed: Renamed, theirs: Tensors, kind: str) -> Tensor:
    def make() -> torch.Tensor:
        return renamed.change(theirs[renamed.theirs])

    shape = tuple(renamed.change(torch.empty(renamed.shape, device="meta")).shape)
    if len(shape) == 1 or renamed.name.startswith("position_embd"):
        kind = "F32"  # added to activations, which ggml does in float32 only
    elif kind == "Q8_0" and shape[-1] % BLOCK:
        kind = "F16"
    return Tensor(renamed.name, shape, kind, make)


def _compare(path: Path, metadata: Mapping[str, Value], tensors: list[Tensor]) -> None:
    """Read back what was written: no line of it is taken on trust."""
    notes, read = read_gguf(path)
    as_meant = notes.keys() == metadata.keys() and list(read) == [tensor.name for tensor in tensors]
    for key, value in metadata.items() if as_meant else ():
        as_meant &= math.isclose(notes[key], value, rel_tol=1e-6) if isinstance(value, float) else notes[key] == value
    for tensor in tensors if as_meant else ():
        wanted, found = tensor.make(), read[tensor.name]
        if tensor.kind == "Q8_0":
            blocks = wanted.float().reshape(-1, BLOCK)
            off = (found.reshape(-1, BLOCK) - blocks).abs()
            as_meant &= bool((off <= blocks.abs().amax(1, keepdim=True) * Q8_0_STEP * 1.2 + 1e-7).all())
        else:
            as_meant &= torch.equal(found, wanted.to(found.dtype))
    if not as_meant:
        raise MachineError(f"{path.name}: what was read back is not what was written; is the disk sound? Try again")


def _describe_gpt2(config: _Config) -> dict[str, Value]:
    config.must_be("activation_function", "gelu_new", "gelu_pytorch_tanh")
    config.must_be("scale_attn_weights", True)
    config.must_be("scale_attn_by_inverse_layer_idx", False)
    config.must_be("add_cross_attention", False)
    width = config.size("n_embd")
    return {
        "context_length": config.size("n_positions"),
        "embedding_length": width,
        "block_count": config.size("n_layer"),
        "feed_forward_length": config.size("n_inner", 4 * width),
        "attention.head_count": config.size("n_head"),
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon"),
    }


def _names_of_gpt2(config: _Config) -> Iterator[Renamed]:
    width, words = config.size("n_embd"), config.size("vocab_size")
    inner = config.size("n_inner", 4 * width)
    yield Renamed("transformer.wte.weight", (words, width), "token_embd.weight")
    yield Renamed("transformer.wpe.weight", (config.size("n_positions"), width), "position_embd.weight")
    for layer in range(config.size("n_layer")):
        theirs, ours = f"transformer.h.{layer}", f"blk.{layer}"
        for part in ("weight", "bias"):
            yield Renamed(f"{theirs}.ln_1.{part}", (width,), f"{ours}.attn_norm.{part}")
            yield Renamed(f"{theirs}.ln_2.{part}", (width,), f"{ours}.ffn_norm.{part}")
        for name, wide, out, called in (
            ("attn.c_attn", width, 3 * width, "attn_qkv"),
            ("attn.c_proj", width, width, "attn_output"),
            ("mlp.c_fc", width, inner, "ffn_up"),
            ("mlp.c_proj", inner, width, "ffn_down"),
        ):
            yield Renamed(f"{theirs}.{name}.weight", (wide, out), f"{ours}.{called}.weight", _turned)
            yield Renamed(f"{theirs}.{name}.bias", (out,), f"{ours}.{called}.bias")
    for part in ("weight", "bias"):
        yield Renamed(f"transformer.ln_f.{part}", (width,), f"output_norm.{part}")
    if not config.is_tied:
        yield Renamed("lm_head.weight", (words, width), "output.weight")


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T


def _describe_rotary(config: _Config) -> dict[str, Value]:
    config.must_be("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        config.must_be(name, False)
    config.must_be("rope_scaling", None)
    rotation = config.inner("rope_parameters", "rope_type")
    if rotation not in (None, "default"):
        raise UserError(f"{config.path}: rope_type {str(rotation)[:40]} is not carried to GGUF, only default")
    heads, width = config.size("num_attention_heads"), config.size("hidden_size")
    head = config.size("head_dim", width // heads)
    return {
        "context_length": config.size("max_position_embeddings"),
        "embedding_length": width,
        "block_count": config.size("num_hidden_layers"),
        "feed_forward_length": config.size("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.size("num_key_value_heads", heads),
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps"),
        "rope.freq_base": config.number("rope_theta", "rope_parameters"),
        "rope.dimension_count": head,
    }


def _names_of_rotary(config: _Config) -> Iterator[Renamed]:
    width, words = config.size("hidden_size"), config.size("vocab_size")
    heads = config.size("num_attention_heads")
    groups = config.size("num_key_value_heads", heads)
    head, inner = config.size("head_dim", width // heads), config.size("intermediate_size")
    yield Renamed("model.embed_tokens.weight", (words, width), "token_embd.weight")
    for layer in range(config.size("num_hidden_layers")):
        theirs, ours = f"model.layers.{layer}", f"blk.{layer}"
        parts = {
            "input_layernorm": ((width,), "attn_norm"),
            "self_attn.q_proj": ((heads * head, width), "attn_q"),
            "self_attn.k_proj": ((groups * head, width), "attn_k"),
            "self_attn.v_proj": ((groups * head, width), "attn_v"),
            "self_attn.o_proj": ((width, heads * head), "attn_output"),
            "post_attention_layernorm": ((width,), "ffn_norm"),
            "mlp.gate_proj": ((inner, width), "ffn_gate"),
            "mlp.up_proj": ((inner, width), "ffn_up"),
            "mlp.down_proj": ((width, inner), "ffn_down"),
        }
        if config.type == "qwen3":
            parts |= {f"self_attn.{part}_norm": ((head,), f"attn_{part}_norm") for part in "qk"}
        for name, (shape, called) in parts.items():
            change = _side_by_side(head) if config.type == "llama" and called in ("attn_q", "attn_k") else _unchanged
            yield Renamed(f"{theirs}.{name}.weight", shape, f"{ours}.{called}.weight", change)
    yield Renamed("model.norm.weight", (width,), "output_norm.weight")
    if not config.is_tied:
        yield Renamed("lm_head.weight", (words, width), "output.weight")


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _side_by_side(head: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows of each head from two halves, of which one is rotated into the other, to pairs."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).reshape(tensor.shape)

    return change


ARCHITECTURES: dict[str, tuple[Callable[[_Config], dict[str, Value]], Callable[[_Config], Iterator[Renamed]]]] = {
    "gpt2": (_describe_gpt2, _names_of_gpt2),
    "qwen3": (_describe_rotary, _names_of_rotary),
    "llama": (_describe_rotary, _names_of_rotary),
}
