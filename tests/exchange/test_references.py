"""The references themselves: judged by transformers' GPT-2, and by the parameter counts that the systems publish."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references
import torch
import transformers
from references import SYSTEMS, Sizes, Weights, gelu, gelu_tanh, gpt2

SIZES = [Sizes(), Sizes(n_layer=3, n_head=1, n_embd=10, context=7, vocab_size=5), Sizes(n_layer=1, n_head=8, n_embd=16)]
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ACTIVATIONS = {"wikitext": "relu", "pile": "relu", "julius": "gelu", "nanogpt": "gelu"}


def some_ids(sizes: Sizes, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(sizes.vocab_size, size=(3, sizes.context))


# Each system in GPT-2's parts: what it lacks becomes nothing (a bias of zero, a projection that changes nothing).


def joined(state: Weights, names: list[str], part: str) -> np.ndarray:
    """Queries', keys' and values' weights or biases in one, where biases are missing zeros."""
    if part == "bias" and f"{names[0]}.bias" not in state:
        return np.zeros(sum(len(state[f"{name}.weight"]) for name in names))
    return np.concatenate([state[f"{name}.{part}"] for name in names])


def as_gpt2(state: Weights, sizes: Sizes, outer: dict[str, str], inner: dict[str, str], qkv: list[str]) -> Weights:
    """`outer` and `inner` say, by GPT-2's name of a part, how this system calls it."""
    renamed: Weights = {}
    for theirs, here in outer.items():
        renamed |= {theirs + end: state[here + end] for end in (".weight", ".bias") if here + end in state}
    for layer in range(sizes.n_layer):
        for theirs, here in inner.items():
            for end in (".weight", ".bias"):
                at, ours = f"transformer.h.{layer}.{theirs}{end}", here.format(layer) + end
                renamed[at] = state[ours].T if at.endswith(MATRICES) else state[ours]
        names = [name.format(layer) for name in qkv]
        renamed[f"transformer.h.{layer}.attn.c_attn.weight"] = joined(state, names, "weight").T
        renamed[f"transformer.h.{layer}.attn.c_attn.bias"] = joined(state, names, "bias")
    return renamed


def of_book(state: Weights, sizes: Sizes) -> Weights:
    named = {name.replace(".scale", ".weight").replace(".shift", ".bias"): value for name, value in state.items()}
    at = "trf_blocks.{}"
    return as_gpt2(
        named,
        sizes,
        {
            "transformer.wte": "tok_emb",
            "transformer.wpe": "pos_emb",
            "transformer.ln_f": "final_norm",
            "lm_head": "out_head",
        },
        {
            "ln_1": f"{at}.norm1",
            "ln_2": f"{at}.norm2",
            "attn.c_proj": f"{at}.att.out_proj",
            "mlp.c_fc": f"{at}.ff.layers.0",
            "mlp.c_proj": f"{at}.ff.layers.2",
        },
        [f"{at}.att.W_{part}" for part in ("query", "key", "value")],
    )


def of_wikitext(state: Weights, sizes: Sizes) -> Weights:
    at = "decoder_stack.{}"
    return as_gpt2(
        state,
        sizes,
        {
            "transformer.wte": "shared",
            "transformer.wpe": "position_embedding_table",
            "transformer.ln_f": "final_layer_norm",
            "lm_head": "lm_head",
        },
        {
            "ln_1": f"{at}.layer_norm1",
            "ln_2": f"{at}.layer_norm2",
            "attn.c_proj": f"{at}.attention.to_out",
            "mlp.c_fc": f"{at}.feed_forward.net.0",
            "mlp.c_proj": f"{at}.feed_forward.net.3",
        },
        [f"{at}.attention.to_{part}" for part in "qkv"],
    )


def of_pile(state: Weights, sizes: Sizes, scaled_by_width: bool) -> Weights:
    at = "attn_blocks.{}"
    whole = dict(state)
    # GPT-2 divides by the root of a head's width: queries that are smaller already make up for the rest.
    shrunk = math.sqrt(1 / sizes.n_head) if scaled_by_width else 1.0
    for layer in range(sizes.n_layer):
        attn = f"{at.format(layer)}.attn"
        for head in range(sizes.n_head):
            whole[f"{attn}.heads.{head}.query.weight"] = shrunk * state[f"{attn}.heads.{head}.query.weight"]
        whole.setdefault(f"{attn}.proj.weight", np.eye(sizes.n_embd))
        whole.setdefault(f"{attn}.proj.bias", np.zeros(sizes.n_embd))
    return as_gpt2(
        whole,
        sizes,
        {
            "transformer.wte": "token_embed",
            "transformer.wpe": "position_embed",
            "transformer.ln_f": "layer_norm",
            "lm_head": "lm_head",
        },
        {
            "ln_1": f"{at}.ln1",
            "ln_2": f"{at}.ln2",
            "attn.c_proj": f"{at}.attn.proj",
            "mlp.c_fc": f"{at}.mlp.hidden",
            "mlp.c_proj": f"{at}.mlp.proj",
        },
        [f"{at}.attn.heads.{h}.{part}" for part in ("query", "key", "value") for h in range(sizes.n_head)],
    )


def of_nanogpt(state: Weights, sizes: Sizes) -> Weights:
    state = {name.replace(".ln1.", ".ln_1.").replace(".ln2.", ".ln_2."): value for name, value in state.items()}
    whole = {name: value.T if name.endswith(MATRICES) else value for name, value in state.items()}
    for norm in [name for name in whole if "ln_" in name and name.endswith(".weight")]:
        whole.setdefault(norm.replace(".weight", ".bias"), np.zeros(sizes.n_embd))
    for matrix in [name for name in whole if name.endswith(MATRICES)]:
        whole.setdefault(matrix.replace(".weight", ".bias"), np.zeros(whole[matrix].shape[1]))
    return whole


AS_GPT2 = {
    "julius-caesar-small": of_nanogpt,
    "nanogpt": of_nanogpt,
    "nanogpt-no-biases": of_nanogpt,
    "wikitext-wordpiece": of_wikitext,
    "pile": lambda state, sizes: of_pile(state, sizes, scaled_by_width=True),
    "pile-between": lambda state, sizes: of_pile(state, sizes, scaled_by_width=False),
    "pile-later": lambda state, sizes: of_pile(state, sizes, scaled_by_width=False),
    "the-verdict": of_book,
    "the-verdict-qkv-bias": of_book,
    "shakespeare-124m": lambda state, sizes: state,
}


def judged_by_transformers(name: str, state: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
    """GPT-2 as transformers has it, in double precision, given the same weights under its own names."""
    config = transformers.GPT2Config(
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        n_embd=sizes.n_embd,
        n_positions=sizes.context,
        vocab_size=sizes.vocab_size,
        activation_function=ACTIVATIONS.get(name.split("-")[0], "gelu_new"),
        tie_word_embeddings=SYSTEMS[name].tied is not None,
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    exact = {key: np.asarray(value, np.float64) for key, value in state.items()}
    theirs = {key: torch.tensor(value) for key, value in AS_GPT2[name](exact, sizes).items()}
    head_bias = theirs.pop("lm_head.bias", torch.zeros(()))
    learned = {key: value for key, value in theirs.items() if not key.endswith(".attn.bias")}
    model.load_state_dict(learned, strict=True)
    with torch.no_grad():
        return (model(torch.from_numpy(ids)).logits + head_bias).numpy()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_transformers_computes_the_same_logits(name: str, sizes: Sizes) -> None:
    state, ids = references.weights(SYSTEMS[name], sizes, seed=1), some_ids(sizes)
    ours = references.logits(SYSTEMS[name], state, sizes, ids)
    assert 1 < np.abs(ours).max() < 20, "logits of a few units: neither all alike nor saturated"
    assert np.abs(ours - judged_by_transformers(name, state, sizes, ids)).max() < 1e-9


@pytest.mark.parametrize("name", SYSTEMS)
def test_torch_computes_the_same_loss(name: str) -> None:
    sizes, ids = Sizes(), some_ids(Sizes())
    state = references.weights(SYSTEMS[name], sizes, seed=1)
    scores = torch.from_numpy(references.logits(SYSTEMS[name], state, sizes, ids[:, :-1]))
    theirs = torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten())
    assert abs(references.loss(SYSTEMS[name], state, sizes, ids[:, :-1], ids[:, 1:]) - theirs.item()) < 1e-12


def test_what_distinguishes_the_forms_of_a_system_shows_in_its_logits() -> None:
    """Same weights, another scale or another GELU: a reference blind to these would pass a conversion that is wrong."""
    sizes, ids = Sizes(), some_ids(Sizes())
    state = references.weights(SYSTEMS["pile"], sizes, seed=1)
    by_width, by_head = (references.logits(SYSTEMS[name], state, sizes, ids) for name in ("pile", "pile-between"))
    assert np.abs(by_width - by_head).max() > 0.1
    state = references.weights(SYSTEMS["nanogpt"], sizes, seed=1)
    exact, approximate = (references.logits(gpt2(activation), state, sizes, ids) for activation in (gelu, gelu_tanh))
    assert np.abs(exact - approximate).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "sizes", "published"),
    [
        ("julius-caesar-small", Sizes(4, 4, 768, 128, 50257), 67_048_704),
        ("wikitext-wordpiece", Sizes(6, 8, 512, 512, 28144), 47_987_712),
        ("pile", Sizes(1, 8, 128, 128, 50304), 13_126_144),
        ("pile", Sizes(64, 16, 2048, 512, 50304), 3_161_117_824),
        ("pile-later", Sizes(1, 8, 128, 128, 50304), 13_142_656),
        ("pile-later", Sizes(64, 16, 2048, 512, 50304), 3_429_684_352),
        ("the-verdict", Sizes(12, 12, 768, 256, 50257), 162_419_712),
        ("shakespeare-124m", Sizes(12, 12, 768, 1024, 50257), 124_439_808),
    ],
)
def test_a_reference_has_as_many_parameters_as_published(name: str, sizes: Sizes, published: int) -> None:
    assert references.n_params(SYSTEMS[name], sizes) == published
