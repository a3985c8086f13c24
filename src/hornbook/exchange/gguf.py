"""A model folder as llama.cpp wants it.

In: a folder with a model of shape gpt2, qwen3 or llama.  Out: one GGUF file, which llama.cpp's own library writes.
llama.cpp knows an architecture by `general.architecture`, its sizes by keys that begin with that, its tensors by names
of its own, and a vocabulary by the tokens, their kinds and the merges.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.exchange.gguf_vocabulary import Value, vocabulary_of
from hornbook.model.config import CONFIG, ModelConfig
from hornbook.model.folder import load_model
from hornbook.model.layouts import QKV, Arrangement, Layout, to_theirs
from hornbook.model.shapes import GPT2, shape_of

# By what it is called here: the kind of matrices, and llama.cpp's number for a file of that kind. The first is usual.
DTYPES = {
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
BLOCK, _ = gguf.GGML_QUANT_SIZES[Kind.Q8_0]  # weights that share a scale
# What rounds to more than the kind can hold; not a number is above all of them.
LARGEST = {Kind.F32: math.inf, Kind.F16: 65520.0, Kind.Q8_0: 127 * 65504.0, Kind.BF16: 3.39e38}


def _in_pairs(config: ModelConfig) -> Arrangement:
    """What is rotated together lies side by side, and not half a head apart."""
    half = config.width_of_head // 2
    return Arrangement(
        lambda tensor: tensor.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2),
        lambda tensor: tensor.unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2),
    )


QWEN3 = Layout(
    outside={"embedding": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output"},
    block="blk.{}.",
    inside={
        "attention_norm": "attn_norm",
        "attention.query": "attn_q",
        "attention.key": "attn_k",
        "attention.value": "attn_v",
        "attention.out": "attn_output",
        "attention.query_norm": "attn_q_norm",
        "attention.key_norm": "attn_k_norm",
        "mlp_norm": "ffn_norm",
        "mlp.gate": "ffn_gate",
        "mlp.up": "ffn_up",
        "mlp.down": "ffn_down",
    },
)
THREE_IN_ONE = {QKV: "attn_qkv"} | {ours: theirs for ours, theirs in QWEN3.inside.items() if ours not in QKV}
ARCHITECTURES = {
    "gpt2": replace(QWEN3, inside=THREE_IN_ONE, biased=GPT2.biased),
    "qwen3": QWEN3,
    "llama": replace(QWEN3, arrange=dict.fromkeys(("attention.query", "attention.key"), _in_pairs)),
}


def export_gguf(folder: Path, out: Path, dtype: str = "f16") -> None:
    """Write the model of a folder to one file."""
    if dtype not in DTYPES:
        raise UserError(f"GGUF is written as {', '.join(DTYPES)}, not as {dtype[:40]}")
    kind, file_type = DTYPES[dtype]
    model = load_model(folder)
    config, shape = model.config, shape_of(model.config) or "hornbook"
    _refuse_what_it_lacks(folder, shape, config)
    metadata: dict[str, Value] = {
        "general.name": out.stem,
        "general.file_type": int(file_type),
        **({"general.quantization_version": gguf.GGML_QUANT_VERSION} if kind is Kind.Q8_0 else {}),
        **{f"{shape}.{key}": value for key, value in _sizes(shape, config).items()},
        **vocabulary_of(folder, config.known_vocab_size),
        **_special_tokens(folder / CONFIG, config),
    }
    tensors = to_theirs(ARCHITECTURES[shape], config, model.state_dict())
    kinds = {name: _kind(name, tensor, kind) for name, tensor in tensors.items()}
    with files.staged_file(out) as staging:
        writer = _Writer(None, shape)
        with contextlib.closing(writer):
            for key, value in metadata.items():
                writer.add(key, value)
            for name, tensor in tensors.items():
                size = math.prod(gguf.quant_shape_to_byte_shape(tensor.shape, kinds[name]))
                writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kinds[name])
            writer.write_header_to_file(staging)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():  # one at a time is in memory twice
                writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), kinds[name]))


def _refuse_what_it_lacks(folder: Path, shape: str, config: ModelConfig) -> None:
    if shape not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder}: llama.cpp knows no model of type {shape}; only {known} become GGUF")
    if shape == "gpt2" and config.activation != "gelu_tanh":
        raise UserError(f"{folder}: the activation is {config.activation}; llama.cpp's gpt2 has only gelu_tanh")
    if shape != "gpt2" and config.biases:
        raise UserError(f"{folder}: has biases ({', '.join(config.biases)}); llama.cpp's {shape} has none")


def _sizes(shape: str, config: ModelConfig) -> dict[str, Value]:
    sizes: dict[str, Value] = {
        "context_length": config.context,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.width_of_mlp,
        "vocab_size": config.known_vocab_size,
        "attention.head_count": config.n_head,
    }
    if shape == "gpt2":
        return sizes | {"attention.layer_norm_epsilon": config.norm_eps}
    return sizes | {
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.width_of_head,
        "attention.value_length": config.width_of_head,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.width_of_head,
    }


def _special_tokens(path: Path, config: ModelConfig) -> dict[str, Value]:
    described = files.read_json(path)

    def id_of(name: str) -> int:
        value = described.get(name)
        if type(value) is not int or not 0 <= value < config.known_vocab_size:
            raise UserError(f"{path}: {name} should be the id of a token, not {str(value)[:40]}")
        return value

    return {
        "tokenizer.ggml.bos_token_id": id_of("bos_token_id"),
        "tokenizer.ggml.eos_token_id": id_of("eos_token_id"),
        "tokenizer.ggml.padding_token_id": id_of("eos_token_id"),
        "tokenizer.ggml.add_bos_token": False,
    }


def _kind(name: str, tensor: torch.Tensor, kind: Kind) -> Kind:
    if tensor.ndim == 1 or name.startswith("position_embd"):
        kind = Kind.F32  # added to activations, which ggml does in float32 only
    elif kind is Kind.Q8_0 and tensor.shape[-1] % BLOCK:
        kind = Kind.F16
    largest = float(tensor.abs().max())
    if not largest < LARGEST[kind]:
        raise UserError(f"tensor {name} holds {largest:.3g}, which {kind.name} cannot hold; export as f32")
    return kind


class _Writer(gguf.GGUFWriter):
    def add(self, key: str, value: Value) -> None:
        add: dict[type, Callable[[str, Any], None]] = {
            bool: self.add_bool,
            int: self.add_uint32,
            float: self.add_float32,
            str: self.add_string,
        }
        if type(value) in add:
            add[type(value)](key, value)
        else:
            self.add_key_value(key, value, gguf.GGUFValueType.ARRAY)

    def _pack_val(self, val: Any, vtype: gguf.GGUFValueType, *rest: Any, **named: Any) -> bytes:
        """llama.cpp wants a list of merges also where it is empty, which its library does not write."""
        if isinstance(val, Sequence) and vtype is gguf.GGUFValueType.ARRAY and not val:
            return self._pack("I", vtype) + self._pack("I", gguf.GGUFValueType.STRING) + self._pack("Q", 0)
        return super()._pack_val(val, vtype, *rest, **named)
