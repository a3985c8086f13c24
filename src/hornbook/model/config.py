"""The shape of a model, and what it implies.

In: knobs.  Out: a `ModelConfig`, its parameter count and its FLOPs per token, without building anything.
Two presets: `classic` is GPT-2 as transformers' `gpt2` knows it, `modern` is the shape that it calls `qwen3`. They
differ only in the values of these fields; nothing else asks which one a model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hornbook.base.settings import Settings
from hornbook.model.activations import ACTIVATIONS, ActivationName
from hornbook.model.norms import NORMS, NormName
from hornbook.model.positions import POSITIONS, PositionsName

# What a folder of a model has.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# MLP widths and vocabularies that fill the hardware's tiles.
WIDTH_MULTIPLE = 64
MOST_SPARE_IDS = 128
MOST_HEADS = 4096  # among which a better number is looked for
WIDEST = 1_000_000


Bias = Literal["norm", "qkv", "out", "mlp", "head"]
Place = Literal["embedding", "attention", "mlp", "residual"]


class ModelConfig(Settings):
    every_knob_counts: ClassVar[bool] = True

    vocab_size: int | None = Field(None, ge=2, le=2**32)
    """Ids that the model knows: those of its tokenizer, from which a run takes it."""
    context: int = Field(256, ge=2, le=10_000_000)
    """The most tokens that the model sees at once."""
    n_layer: int = Field(4, ge=1, le=10_000)
    """Blocks, one after another."""
    n_head: int = Field(4, ge=1, le=1_000_000)
    """Attention heads in each block."""
    n_kv_head: int | None = Field(None, ge=1, le=1_000_000)
    """Heads of keys and values, shared among the attention heads; as many as these when not given."""
    n_embd: int = Field(256, ge=2, le=WIDEST)
    """Width of the residual stream."""
    head_width: int | None = Field(None, ge=2, le=1_000_000)
    """Width of a head; n_embd / n_head when not given."""
    mlp_width: int | None = Field(None, ge=1, le=100_000_000)
    """Width inside the MLP; what makes it cost as much as four times n_embd without a gate when not given."""
    norm: NormName = "rmsnorm"
    """How the stream is normalised before each part."""
    norm_weight: bool = True
    """Let a norm learn a factor for each channel; without, it only normalises."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added under the root of a norm, against division by zero."""
    embedding_norm: bool = False
    """Normalise what enters the first block as well, so that embeddings of any length start alike."""
    activation: ActivationName = "swiglu"
    """The MLP's activation: gelu, or as GPT-2 approximates it (gelu_tanh); relu, or squared (relu2); swiglu has a
    gate."""
    positions: PositionsName = "rotary"
    """How a token knows its place; with none, only by whom it can see."""
    rope_theta: float = Field(10_000.0, gt=1)
    """Base of the rotary wavelengths; larger for longer contexts."""
    qk_norm: Literal["none", "before", "after"] = "before"
    """Normalise queries and keys, before or after they are rotated, which keeps attention calm at high learning
    rates."""
    attention_scale: Literal["head", "width"] | Annotated[float, Field(gt=0)] = "head"
    """What scores are multiplied by: 1 over the root of the head's width, or of n_embd, or a number."""
    out_projection: bool = True
    """A matrix that mixes what the heads found; without, each head writes to its own part of the stream."""
    biases: tuple[Bias, ...] = Field((), strict=False)
    """Which parts have biases: norm, qkv (queries, keys, values), out (attention's projection), mlp, head."""
    tied: bool = False
    """One matrix for embedding and head."""
    logit_cap: float | None = Field(None, gt=0)
    """Squash logits so that none is larger than this, which keeps a fast learner from being too sure."""
    value_embeddings: bool = False
    """Add to the values of every second layer what a table holds for the token itself: much memory, little time."""
    bigram_embeddings: int = Field(0, ge=0)
    """Rows of a table for pairs of neighbouring tokens, found by a hash and added to the embedding; 0 for none."""
    embedding_skip: bool = False
    """Mix the first embedding into the stream before each block, by shares that are learned."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations dropped in training; for text that is read many times over."""
    dropout_at: tuple[Place, ...] = Field(("embedding", "attention", "residual"), strict=False)
    """Where they are dropped: embedding, attention (its weights), mlp (inside), residual (what a block adds)."""
    init: Literal["torch", "gpt2", "modern"] = "modern"
    """How weights begin: as torch's layers do, as GPT-2's, or with output projections at zero, so that a block first
    does nothing."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        pair, even = (2, "even ") if POSITIONS[self.positions].pairs else (1, "")
        if self.head_width is not None:
            if self.head_width % pair:
                yield "head_width", f"{self.positions} positions need an even head width, not {self.head_width}"
        elif self.n_embd % pair:
            yield "n_embd", f"{self.positions} positions need an even head width, so an even n_embd, not {self.n_embd}"
        elif self.n_embd % (self.n_head * pair):
            possible = [n for n in range(1, min(self.n_embd, MOST_HEADS) + 1) if self.n_embd % (n * pair) == 0]
            near = min(possible, key=lambda n: abs(n - self.n_head))
            yield "n_head", f"{self.n_head} heads of equal {even}width do not make up n_embd {self.n_embd}; take {near}"
        if self.n_head % self.kv_heads:
            yield "n_kv_head", f"{self.kv_heads} does not divide the {self.n_head} attention heads"
        if "norm" in self.biases and not NORMS[self.norm].biased:
            yield "biases", f"{self.norm} has no bias; leave norm out of them, or --model.norm layernorm"
        if not self.out_projection:
            if self.n_head * self.width_of_head != self.n_embd:
                whole = f"{self.n_head} heads of width {self.width_of_head} do not make up n_embd {self.n_embd}"
                yield "out_projection", f"{whole}, which they must without a projection; leave head_width out"
            if "out" in self.biases:
                yield (
                    "biases",
                    "out is the bias of attention's projection, which --model.out-projection false takes away",
                )

    def fits_vocabulary(self, entries: int) -> bool:
        """Is it for a tokenizer of so many entries? Some models have a few more, to fill the hardware's tiles."""
        return 0 <= self.known_vocab_size - entries < max(MOST_SPARE_IDS, self.known_vocab_size // 256)

    def drops(self, place: Place) -> float:
        """The share that is dropped at a place."""
        return self.dropout if place in self.dropout_at else 0.0

    def has_value_embedding(self, layer: int) -> bool:
        """Every second layer, the last one among them."""
        return self.value_embeddings and (self.n_layer - 1 - layer) % 2 == 0

    @property
    def scale_of_attention(self) -> float:
        if isinstance(self.attention_scale, str):
            return float({"head": self.width_of_head, "width": self.n_embd}[self.attention_scale] ** -0.5)
        return self.attention_scale

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
        if ACTIVATIONS[self.activation].gated:
            return -(-self.n_embd * 8 // 3 // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        return 4 * self.n_embd

    def n_params(self, embeddings: bool = True) -> int:
        """Parameters, each counted once; without embeddings, what the blocks and the last norm hold."""
        width, head, mlp = self.n_embd, self.width_of_head, self.width_of_mlp
        queries, keys_values = self.n_head * head, 2 * self.kv_heads * head
        biases = dict.fromkeys(self.biases, 1)  # those there are, for .get(part, 0)
        per_norm = self.norm_weight + biases.get("norm", 0)
        matrices = ACTIVATIONS[self.activation].matrices
        attention = (width + biases.get("qkv", 0)) * (queries + keys_values)
        attention += (queries + biases.get("out", 0)) * width if self.out_projection else 0
        attention += 2 * head * per_norm if self.qk_norm != "none" else 0
        mlps = matrices * width * mlp + biases.get("mlp", 0) * ((matrices - 1) * mlp + width)
        shares = 2 * self.embedding_skip * self.n_layer
        total = self.n_layer * (attention + mlps + 2 * width * per_norm) + width * per_norm + shares
        total += width * per_norm if self.embedding_norm else 0
        with_values = (self.n_layer + 1) // 2 if self.value_embeddings else 0
        total += with_values
        if embeddings:
            total += self.known_vocab_size * (width * (1 if self.tied else 2) + biases.get("head", 0))
            total += POSITIONS[self.positions].params(self)
            total += self.bigram_embeddings * width
            total += with_values * self.known_vocab_size * self.kv_heads * head
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
        "qk_norm": "none",
        "biases": ("norm", "qkv", "out", "mlp"),
        "tied": True,
        "init": "gpt2",
    }
    return ModelConfig(**(knobs | changes))


def modern(**changes: Any) -> ModelConfig:
    """The shape that transformers calls qwen3."""
    return ModelConfig(**changes)
