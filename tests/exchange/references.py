"""What each of the five systems computes, in plain numpy at double precision, from weights as its own files hold them.

In: sizes, a seed.  Out: `weights`, a state dict under the system's own names and layouts, buffers among them; `logits`
and `loss` of ids under such weights. Nothing here is shared with the package, and no part of torch takes part.
Letters: T tokens, C width of the stream, D width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    n_layer: int = 2
    n_head: int = 3
    n_embd: int = 24
    context: int = 11
    vocab_size: int = 61


@dataclass(frozen=True)
class System:
    """Names and shapes of what is learned, what a file holds besides, and the forward pass of one sequence of ids."""

    shapes: Callable[[Sizes], Shapes]
    buffers: Callable[[Sizes], Weights]
    forward: Callable[[Weights, Sizes, np.ndarray], np.ndarray]
    tied: tuple[str, str] | None = None
    """A second name under which a file holds the same tensor again, and the first."""


def weights(system: System, sizes: Sizes, seed: int) -> Weights:
    """Random single-precision weights that hide nothing: no zero, no norm at one; logits of a few units."""
    random = np.random.default_rng(seed)
    state: Weights = {}
    for name, shape in system.shapes(sizes).items():
        drawn = random.standard_normal(shape)
        if len(shape) == 2:
            drawn *= 1.5 / math.sqrt(shape[-1])
        else:
            drawn = 0.2 * drawn + (0 if name.endswith(("bias", "shift")) else 1)
        state[name] = drawn.astype(np.float32)
    if system.tied:
        again, first = system.tied
        state[again] = state[first]
    return state | system.buffers(sizes)


def logits(system: System, state: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
    """Ids (B, T) to logits (B, T, V)."""
    exact = {name: np.asarray(value, np.float64) for name, value in state.items()}
    return np.stack([system.forward(exact, sizes, row) for row in ids])


def loss(system: System, state: Weights, sizes: Sizes, ids: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross-entropy over all targets (B, T)."""
    scores = logits(system, state, sizes, ids)
    highest = scores.max(-1, keepdims=True)
    log_of_sum = np.log(np.exp(scores - highest).sum(-1)) + highest[..., 0]
    chosen = np.take_along_axis(scores, targets[..., None], -1)[..., 0]
    return float((log_of_sum - chosen).mean())


def n_params(system: System, sizes: Sizes) -> int:
    return sum(math.prod(shape) for shape in system.shapes(sizes).values())


# The arithmetic that all five have in common.


def layer_norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray | float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * scale + shift


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """One head: each token's mean of the values (T, D) at and before it, weighted by how keys answer its query."""
    out = np.zeros_like(v)
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] * scale
        shares = np.exp(scores - scores.max())
        out[t] = shares / shares.sum() @ v[: t + 1]
    return out


def attend_in_heads(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_head: int) -> np.ndarray:
    """Queries, keys and values (T, C), cut into heads that lie side by side; scaled by the root of a head's width."""
    width = q.shape[-1] // n_head
    cuts = [slice(head * width, (head + 1) * width) for head in range(n_head)]
    return np.concatenate([attend(q[:, cut], k[:, cut], v[:, cut], 1 / math.sqrt(width)) for cut in cuts], -1)


def linear(x: np.ndarray, state: Weights, name: str) -> np.ndarray:
    """Weights stored (out, in)."""
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def per_layer(sizes: Sizes, pattern: str, inside: Shapes) -> Shapes:
    return {pattern.format(layer) + name: shape for layer in range(sizes.n_layer) for name, shape in inside.items()}


def no_buffers(sizes: Sizes) -> Weights:
    return {}


# Systems 1A and 4: the book's model.


def book(qkv_bias: bool = False) -> System:
    def shapes(sizes: Sizes) -> Shapes:
        C, V = sizes.n_embd, sizes.vocab_size
        block: Shapes = {}
        for part in ("W_query", "W_key", "W_value"):
            block[f"att.{part}.weight"] = (C, C)
            if qkv_bias:
                block[f"att.{part}.bias"] = (C,)
        block |= {"att.out_proj.weight": (C, C), "att.out_proj.bias": (C,)}
        block |= {"ff.layers.0.weight": (4 * C, C), "ff.layers.0.bias": (4 * C,)}
        block |= {"ff.layers.2.weight": (C, 4 * C), "ff.layers.2.bias": (C,)}
        block |= {f"{norm}.{part}": (C,) for norm in ("norm1", "norm2") for part in ("scale", "shift")}
        return {
            "tok_emb.weight": (V, C),
            "pos_emb.weight": (sizes.context, C),
            **per_layer(sizes, "trf_blocks.{}.", block),
            "final_norm.scale": (C,),
            "final_norm.shift": (C,),
            "out_head.weight": (V, C),
        }

    def buffers(sizes: Sizes) -> Weights:
        later = np.triu(np.ones((sizes.context, sizes.context), np.float32), 1)
        return {f"trf_blocks.{layer}.att.mask": later for layer in range(sizes.n_layer)}

    def forward(state: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
        x = state["tok_emb.weight"][ids] + state["pos_emb.weight"][: len(ids)]
        for layer in range(sizes.n_layer):
            at = f"trf_blocks.{layer}"
            h = layer_norm(x, state[f"{at}.norm1.scale"], state[f"{at}.norm1.shift"])
            q, k, v = (linear(h, state, f"{at}.att.{part}") for part in ("W_query", "W_key", "W_value"))
            x = x + linear(attend_in_heads(q, k, v, sizes.n_head), state, f"{at}.att.out_proj")
            h = layer_norm(x, state[f"{at}.norm2.scale"], state[f"{at}.norm2.shift"])
            x = x + linear(gelu_tanh(linear(h, state, f"{at}.ff.layers.0")), state, f"{at}.ff.layers.2")
        return linear(layer_norm(x, state["final_norm.scale"], state["final_norm.shift"]), state, "out_head")

    return System(shapes, buffers, forward)


# System 2.


def _wikitext_shapes(sizes: Sizes) -> Shapes:
    C, V = sizes.n_embd, sizes.vocab_size
    block: Shapes = {f"attention.to_{part}.weight": (C, C) for part in ("q", "k", "v", "out")}
    block |= {"attention.to_out.bias": (C,)}
    block |= {"feed_forward.net.0.weight": (4 * C, C), "feed_forward.net.0.bias": (4 * C,)}
    block |= {"feed_forward.net.3.weight": (C, 4 * C), "feed_forward.net.3.bias": (C,)}
    block |= {f"layer_norm{n}.{part}": (C,) for n in (1, 2) for part in ("weight", "bias")}
    return {
        "shared.weight": (V, C),
        "position_embedding_table.weight": (sizes.context, C),
        **per_layer(sizes, "decoder_stack.{}.", block),
        "final_layer_norm.weight": (C,),
        "final_layer_norm.bias": (C,),
        "lm_head.weight": (V, C),
    }


def _wikitext_forward(state: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
    x = state["shared.weight"][ids] + state["position_embedding_table.weight"][: len(ids)]
    for layer in range(sizes.n_layer):
        at = f"decoder_stack.{layer}"
        h = layer_norm(x, state[f"{at}.layer_norm1.weight"], state[f"{at}.layer_norm1.bias"])
        q, k, v = (linear(h, state, f"{at}.attention.to_{part}") for part in "qkv")
        x = x + linear(attend_in_heads(q, k, v, sizes.n_head), state, f"{at}.attention.to_out")
        h = layer_norm(x, state[f"{at}.layer_norm2.weight"], state[f"{at}.layer_norm2.bias"])
        x = x + linear(relu(linear(h, state, f"{at}.feed_forward.net.0")), state, f"{at}.feed_forward.net.3")
    x = layer_norm(x, state["final_layer_norm.weight"], state["final_layer_norm.bias"])
    return linear(x, state, "lm_head")


# System 3: heads are modules of their own. As published without a projection behind them, scaled by the width of the
# stream; later with one, scaled by a head's. The code between the two scaled by a head's and had none.


def pile(projection: bool, scaled_by_width: bool) -> System:
    def shapes(sizes: Sizes) -> Shapes:
        C, V, D = sizes.n_embd, sizes.vocab_size, sizes.n_embd // sizes.n_head
        heads = [f"attn.heads.{head}" for head in range(sizes.n_head)]
        block: Shapes = {f"{head}.{part}.weight": (D, C) for head in heads for part in ("key", "query", "value")}
        if projection:
            block |= {"attn.proj.weight": (C, C), "attn.proj.bias": (C,)}
        block |= {f"{norm}.{part}": (C,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
        block |= {"mlp.hidden.weight": (4 * C, C), "mlp.hidden.bias": (4 * C,)}
        block |= {"mlp.proj.weight": (C, 4 * C), "mlp.proj.bias": (C,)}
        return {
            "token_embed.weight": (V, C),
            "position_embed.weight": (sizes.context, C),
            **per_layer(sizes, "attn_blocks.{}.", block),
            "layer_norm.weight": (C,),
            "layer_norm.bias": (C,),
            "lm_head.weight": (V, C),
            "lm_head.bias": (V,),
        }

    def buffers(sizes: Sizes) -> Weights:
        seen = np.tril(np.ones((sizes.context, sizes.context), np.float32))
        names = [(layer, head) for layer in range(sizes.n_layer) for head in range(sizes.n_head)]
        masks = {f"attn_blocks.{layer}.attn.heads.{head}.tril": seen for layer, head in names}
        return {"pos_idxs": np.arange(sizes.context), **masks}

    def heads_of(state: Weights, sizes: Sizes, at: str, h: np.ndarray) -> Iterator[np.ndarray]:
        scale = 1 / math.sqrt(sizes.n_embd if scaled_by_width else sizes.n_embd // sizes.n_head)
        for head in range(sizes.n_head):
            q, k, v = (linear(h, state, f"{at}.attn.heads.{head}.{part}") for part in ("query", "key", "value"))
            yield attend(q, k, v, scale)

    def forward(state: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
        x = state["token_embed.weight"][ids] + state["position_embed.weight"][: len(ids)]
        for layer in range(sizes.n_layer):
            at = f"attn_blocks.{layer}"
            h = layer_norm(x, state[f"{at}.ln1.weight"], state[f"{at}.ln1.bias"])
            seen = np.concatenate(list(heads_of(state, sizes, at, h)), -1)
            x = x + (linear(seen, state, f"{at}.attn.proj") if projection else seen)
            h = layer_norm(x, state[f"{at}.ln2.weight"], state[f"{at}.ln2.bias"])
            x = x + linear(relu(linear(h, state, f"{at}.mlp.hidden")), state, f"{at}.mlp.proj")
        return linear(layer_norm(x, state["layer_norm.weight"], state["layer_norm.bias"]), state, "lm_head")

    return System(shapes, buffers, forward)


# Systems 1B and 5 are GPT-2. Its weights lie in files of two layouts: nanoGPT's, matrices (out, in), from which the
# small Caesar's differs in the norms' names; and transformers', matrices (in, out), which is OpenAI's.


def gpt2(
    activation: Callable[[np.ndarray], np.ndarray],
    norms: tuple[str, str] = ("ln_1", "ln_2"),
    out_first: bool = True,
    biases: bool = True,
    masks: bool = True,
) -> System:
    def matrix(out: int, into: int) -> tuple[int, int]:
        return (out, into) if out_first else (into, out)

    def shapes(sizes: Sizes) -> Shapes:
        C = sizes.n_embd
        block: Shapes = {f"{norm}.{part}": (C,) for norm in norms for part in ("weight", "bias")}
        block |= {"attn.c_attn.weight": matrix(3 * C, C), "attn.c_attn.bias": (3 * C,)}
        block |= {"attn.c_proj.weight": matrix(C, C), "attn.c_proj.bias": (C,)}
        block |= {"mlp.c_fc.weight": matrix(4 * C, C), "mlp.c_fc.bias": (4 * C,)}
        block |= {"mlp.c_proj.weight": matrix(C, 4 * C), "mlp.c_proj.bias": (C,)}
        every = {
            "transformer.wte.weight": (sizes.vocab_size, C),
            "transformer.wpe.weight": (sizes.context, C),
            **per_layer(sizes, "transformer.h.{}.", block),
            "transformer.ln_f.weight": (C,),
            "transformer.ln_f.bias": (C,),
        }
        return {name: shape for name, shape in every.items() if biases or not name.endswith(".bias")}

    def buffers(sizes: Sizes) -> Weights:
        seen = np.tril(np.ones((1, 1, sizes.context, sizes.context), np.float32))
        return {f"transformer.h.{layer}.attn.bias": seen for layer in range(sizes.n_layer)}

    def multiply(x: np.ndarray, state: Weights, name: str) -> np.ndarray:
        stored = state[f"{name}.weight"]
        return x @ (stored.T if out_first else stored) + (state[f"{name}.bias"] if biases else 0)

    def norm(x: np.ndarray, state: Weights, name: str) -> np.ndarray:
        return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"] if biases else 0)

    def forward(state: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
        x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: len(ids)]
        for layer in range(sizes.n_layer):
            at = f"transformer.h.{layer}"
            q, k, v = np.split(multiply(norm(x, state, f"{at}.{norms[0]}"), state, f"{at}.attn.c_attn"), 3, -1)
            x = x + multiply(attend_in_heads(q, k, v, sizes.n_head), state, f"{at}.attn.c_proj")
            h = multiply(norm(x, state, f"{at}.{norms[1]}"), state, f"{at}.mlp.c_fc")
            x = x + multiply(activation(h), state, f"{at}.mlp.c_proj")
        return norm(x, state, "transformer.ln_f") @ state["transformer.wte.weight"].T

    tied = ("lm_head.weight", "transformer.wte.weight")
    return System(shapes, buffers if masks else no_buffers, forward, tied)


SYSTEMS = {
    # nanoGPT and what was made after it use the exact GELU; neither a page nor a file says so.
    "julius-caesar-small": gpt2(gelu, norms=("ln1", "ln2"), masks=False),
    "nanogpt": gpt2(gelu),
    "nanogpt-no-biases": gpt2(gelu, biases=False, masks=False),
    "wikitext-wordpiece": System(_wikitext_shapes, no_buffers, _wikitext_forward),
    "pile": pile(projection=False, scaled_by_width=True),
    "pile-between": pile(projection=False, scaled_by_width=False),
    "pile-later": pile(projection=True, scaled_by_width=False),
    "the-verdict": book(),
    "the-verdict-qkv-bias": book(qkv_bias=True),
    "shakespeare-124m": gpt2(gelu_tanh, out_first=False),
}
