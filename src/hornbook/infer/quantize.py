"""A model in fewer bits, for speaking on a CPU, where reading the weights is what a token costs.

In: a loaded GPT.  Out: the same, its matrices replaced by layers for inference; embeddings and norms stay as they are.

- int8: each row of a matrix, and each vector that goes in, is scaled so that its largest number is 127, and rounded.
  The product is exact, in whole numbers, so a row's result does not depend on its neighbours in a batch. A processor
  without instructions for it (VNNI) takes vectors in 7 bits, for its sums are 16 bits wide.
- bfloat16: read as float16, which has all of its digits, and multiplied in float32. For one text that takes half the
  time of instructions for bfloat16, save AMX's; for sixteen, a third more.
- float32: the numbers stay what they are; the matrix lies in memory in the order in which it is read.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.base.errors import UserError
from hornbook.base.machine import cpu_has_amx, cpu_has_fbgemm, cpu_multiplies_int8, cpu_packs_bf16
from hornbook.model.attention import Attention
from hornbook.model.gpt import GPT
from hornbook.model.layers import MLP

LARGEST = 127
SMALL = 2**18  # numbers, of a matrix in float32 that torch's plain product is the quickest with
ROWS_EXPECTED = 16  # of a product in bf16; in the order for 1, one token takes four times longer


def prepare_to_speak(model: GPT, dtype: str) -> GPT:
    """`dtype`: int8, of a model in float32, or the number type that it is in. Where a processor has no instructions for
    a type, it is left as it is, and int8 refused."""
    is_on_cpu = model.embedding.weight.device.type == "cpu"
    if dtype == "int8" and not is_on_cpu:
        raise UserError("--dtype int8: is for CPUs; use bfloat16 here, or --device cpu")
    kind = _kind_of_layer(dtype) if is_on_cpu else None
    if kind is not None:
        return _with_layers(model, kind)
    if dtype == "int8":
        raise UserError("--dtype int8: this processor has no instructions for it; use bfloat16 or float32")
    return model


def _kind_of_layer(dtype: str) -> type[Layer] | None:
    if dtype == "int8":
        return Int8Linear if cpu_has_fbgemm() else None
    if dtype == "bfloat16" and not cpu_has_amx():
        return HalfLinear if cpu_has_fbgemm() else None
    return PackedLinear if torch.backends.mkldnn.is_available() and cpu_has_fbgemm() else None  # as on x86


def dtype_of_cache(model: GPT, dtype: str) -> torch.dtype:
    """Of keys and values: with many texts, reading them costs as much as reading the weights."""
    return torch.bfloat16 if dtype == "int8" and cpu_packs_bf16() else model.embedding.weight.dtype


def _with_layers(model: GPT, kind: type[Layer]) -> GPT:
    for part in list(model.modules()):
        if isinstance(part, Attention):
            part.project = _joined(part, ("query", "key", "value"), kind)  # type: ignore[method-assign]
        elif isinstance(part, MLP) and part.gated:
            part.widen = _joined(part, ("gate", "up"), kind)  # type: ignore[method-assign]
    for part in list(model.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(part, name, kind([layer]))
    return model


def _joined(part: nn.Module, names: Sequence[str], kind: type[Layer]) -> Any:
    """The layers of these names as one, whose product is sooner done than theirs."""
    layers = [getattr(part, name) for name in names]
    joined, widths = kind(layers), [each.out_features for each in layers]
    for name in names:
        delattr(part, name)
    return lambda x: joined(x).split(widths, dim=-1)


class Layer(nn.Module):
    """What several layers that read the same make of it, one beside another."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        biases = [each.bias.detach() for each in layers if each.bias is not None]
        self.pack(torch.cat([each.weight.detach() for each in layers]), torch.cat(biases) if biases else None)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        raise NotImplementedError


class Int8Linear(Layer):
    """By fbgemm. What goes in has no sign there: a number in the middle stands for 0."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        scales = weight.float().abs().amax(dim=1).clamp(min=1e-30) / LARGEST
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with _fbgemm():
            whole = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(whole, None)
        self.bias = None if bias is None else bias.float()
        self.largest = LARGEST if cpu_multiplies_int8() else LARGEST // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        largest = torch.linalg.vector_norm(flat, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-30)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            flat / largest, 1 / self.largest, self.largest + 1, self.packed
        )
        product = product * largest if self.bias is None else torch.addcmul(self.bias, product, largest)
        return product.unflatten(0, x.shape[:-1])


class HalfLinear(Layer):
    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        with _fbgemm():
            self.packed = torch.ops.quantized.linear_prepack_fp16(
                weight.float(), None if bias is None else bias.float()
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed).to(x.dtype)


class PackedLinear(Layer):
    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.bias = bias
        rows = ROWS_EXPECTED if weight.dtype == torch.bfloat16 else 1
        self.is_small = weight.dtype == torch.float32 and weight.numel() < SMALL
        self.packed = weight if self.is_small else torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_small:
            return F.linear(x, self.packed, self.bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return product


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    """What is packed meanwhile, it multiplies from then on."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that torch has another place for quantisation now
            yield
    finally:
        torch.backends.quantized.engine = before
