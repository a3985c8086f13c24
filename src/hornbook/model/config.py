"""The shape of a model, and what it implies.

In: knobs.  Out: a `ModelConfig`, its parameter count and its FLOPs per token, without building anything.
Two presets: `classic` is GPT-2 as transformers' `gpt2` knows it, `modern` is the shape that it calls `qwen3`. They
differ only in the values of these fields; nothing else asks which one a model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from hornbook.base.settings import Settings

# MLP widths and vocabularies that fill the hardware's tiles.
WIDTH_MULTIPLE = 64


class ModelConfig(Settings):
    vocab_size: int | None = Field(None, ge=2)
    """Ids that the model knows: those of its tokenizer, from which a run takes it."""
    context: int = Field(256, ge=2)
    """The most tokens that the model sees at once."""
    n_layer: int = Field(4, ge=1)
    """Blocks, one after another."""
    n_head: int = Field(4, ge=1)
    """Attention heads in each block."""
    n_kv_head: int | None = Field(None, ge=1)
    """Heads of keys and values, shared among the attention heads; as many as these when not given."""
    n_embd: int = Field(256, ge=2)
    """Width of the residual stream."""
    head_width: int | None = Field(None, ge=2)
    """Width of a head; n_embd / n_head when not given."""
    mlp_width: int | None = Field(None, ge=1)
    """Width inside the MLP; what makes it cost as much as four times n_embd without a gate when not given."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """How the stream is normalised before each part."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added under the root of a norm, against division by zero."""
    activation: Literal["gelu_tanh", "swiglu"] = "swiglu"
    """The bend in the MLP; swiglu has a gate."""
    positions: Literal["learned", "rotary"] = "rotary"
    """How a token knows its place."""
    rope_theta: float = Field(10_000.0, gt=1)
    """Base of the rotary wavelengths; larger for longer contexts."""
    qk_norm: bool = True
    """Normalise queries and keys before they are rotated, which keeps attention calm at high learning rates."""
    bias: bool = False
    """Biases in projections and norms."""
    tied: bool = False
    """One matrix for embedding and head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations dropped in training; for text that is read many times over."""
    init: Literal["gpt2", "modern"] = "modern"
    """How weights begin; modern starts output projections at zero, so that a block first does nothing."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        # Rotary positions turn the numbers of a head in pairs.
        pair, even = (2, "even ") if self.positions == "rotary" else (1, "")
        if self.head_width is not None:
            if self.head_width % pair:
                yield "head_width", f"rotary positions need an even head width, not {self.head_width}"
        elif self.n_embd % pair:
            yield "n_embd", f"rotary positions need an even head width, so an even n_embd, not {self.n_embd}"
        elif self.n_embd % (self.n_head * pair):
            possible = [n for n in range(1, self.n_embd + 1) if self.n_embd % (n * pair) == 0]
            near = min(possible, key=lambda n: abs(n - self.n_head))
            yield "n_head", f"{self.n_head} heads of equal {even}width do not make up n_embd {self.n_embd}; take {near}"
        if self.n_head % self.kv_heads:
            yield "n_kv_head", f"{self.kv_heads} does not divide the {self.n_head} attention heads"

    @property
    def known_vocab_size(self) -> int:
        assert self.vocab_size is not None, "a run fills in its tokenizer's vocabulary"
        return self.vocab_size

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def width_of_head(self) -> int:
        return self.head_width or self.n_embd // self.n_head

    @property
    def width_of_mlp(self) -> int:
        if self.mlp_width is not None:
            return self.mlp_width
        if self.activation == "swiglu":
            return -(-self.n_embd * 8 // 3 // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        return 4 * self.n_embd

    def n_params(self, embeddings: bool = True) -> int:
        """Parameters, each counted once; without embeddings, what the blocks and the last norm hold."""
        width, head, mlp = self.n_embd, self.width_of_head, self.width_of_mlp
        queries, keys_values = self.n_head * head, 2 * self.kv_heads * head
        per_norm = 2 if self.norm == "layernorm" and self.bias else 1
        norm, head_norms = width * per_norm, 2 * head * per_norm if self.qk_norm else 0
        attention = width * (queries + keys_values) + queries * width
        matrices = 3 if self.activation == "swiglu" else 2
        block = attention + matrices * width * mlp + 2 * norm + head_norms
        if self.bias:
            block += queries + keys_values + width + (matrices - 1) * mlp + width
        total = self.n_layer * block + norm
        if embeddings:
            total += self.known_vocab_size * width * (1 if self.tied else 2)
            total += self.context * width if self.positions == "learned" else 0
        return total

    def flops_per_token(self, context: int | None = None) -> int:
        """Forward and backward of one token in training: 6 for each parameter that multiplies, and the attention's
        own 12 x layers x heads' width x context."""
        multiplied = self.n_params(embeddings=False) + self.known_vocab_size * self.n_embd
        return 6 * multiplied + 12 * self.n_layer * self.n_head * self.width_of_head * (context or self.context)


def classic(**changes: Any) -> ModelConfig:
    """GPT-2's shape."""
    knobs: dict[str, Any] = {
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "positions": "learned",
        "qk_norm": False,
        "bias": True,
        "tied": True,
        "init": "gpt2",
    }
    return ModelConfig(**(knobs | changes))


def modern(**changes: Any) -> ModelConfig:
    """The shape that transformers calls qwen3."""
    return ModelConfig(**changes)
