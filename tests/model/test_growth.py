"""A grown model says what the small one said, and its new parts learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.gpt import GPT
from hornbook.model.growth import grow_into, grown_config, places_of_layers
from hornbook.model.init import untrained

SIZES: dict[str, Any] = {"vocab_size": 61, "context": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
# The models of the systems' shapes, and what of a model bears on growing.
SMALL = {
    "gpt2, tied": classic(**SIZES),
    "the book's": classic(**SIZES, tied=False, init="torch", biases=("norm", "out", "mlp")),
    "the Pile's": classic(
        **SIZES, activation="relu", attention_scale="width", out_projection=False, tied=False,
        biases=("norm", "mlp", "head"), init="torch",
    ),
    "qwen3": modern(**SIZES, n_kv_head=1),
    "nanochat": modern(
        **SIZES, norm_weight=False, embedding_norm=True, qk_norm="after", activation="relu2", logit_cap=15.0
    ),
    "tables": modern(**SIZES, value_embeddings=True, bigram_embeddings=20, embedding_skip=True, tied=True),
    "scaled, with norms": modern(**SIZES, attention_scale="width", head_width=6, mlp_width=20, biases=("qkv", "mlp")),
    "no projection, tables": modern(**SIZES, out_projection=False, value_embeddings=True),
}  # fmt: skip
GROWTHS: dict[str, dict[str, int]] = {
    "deeper": {"n_layer": 5},
    "wider": {"n_embd": 48},
    "inside": {"mlp_width": 149},
    "all": {"n_layer": 3, "n_embd": 32, "mlp_width": 200},
}


def grown_from(small: GPT, asked: dict[str, int]) -> GPT:
    torch.manual_seed(1)
    large = untrained(grown_config(small.config, asked))
    grow_into(large, small)
    return large.eval()


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("kind", SMALL)
def test_it_begins_by_computing_the_same(kind: str, growth: str, random_model: Callable[..., GPT]) -> None:
    small = random_model(SMALL[kind])
    large = grown_from(small, GROWTHS[growth])
    assert {name: getattr(large.config, name) for name in GROWTHS[growth]} == GROWTHS[growth]
    assert large.config.n_params() > small.config.n_params()
    assert large.config.width_of_head == small.config.width_of_head, "or rotation would turn otherwise"
    ids = torch.randint(61, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = small.logits(ids), large.logits(ids)
    assert (found - expected).abs().max() < 1e-4
    assert (expected[:, 1:] - expected[:, :-1]).abs().max() > 0.1, "a model that says nothing would prove nothing"


@pytest.mark.parametrize("kind", SMALL)
def test_every_new_part_learns_and_copies_part(kind: str, random_model: Callable[..., GPT]) -> None:
    """A block that adds nothing first learns to write, and only then to read."""
    small = random_model(SMALL[kind])
    large = grown_from(small, {"n_layer": 3, "n_embd": 32})
    began = large.embedding.weight.detach().clone()
    ids = torch.randint(61, (4, 12), generator=torch.Generator().manual_seed(0))
    rule = torch.optim.SGD(large.parameters(), lr=0.01)
    for _ in range(3):
        rule.zero_grad()
        large(ids[:, :-1], ids[:, 1:]).backward()
        rule.step()
    assert [name for name, each in large.named_parameters() if each.grad is None or not each.grad.any()] == []
    one, other = (large.embedding.weight - began).chunk(2, dim=1)
    assert (one - other).abs().max() > 0.01 * one.abs().max()


def test_new_layers_are_spread_among_the_old() -> None:
    small = classic(**SIZES | {"n_layer": 4})
    assert places_of_layers(small, grown_config(small, {"n_layer": 8})) == [0, 2, 4, 6]
    assert places_of_layers(small, grown_config(small, {"n_layer": 6})) == [0, 1, 3, 4]
    with_tables = small.with_(value_embeddings=True)
    places = places_of_layers(with_tables, grown := grown_config(with_tables, {"n_layer": 7}))
    assert [grown.has_value_embedding(place) for place in places] == [
        with_tables.has_value_embedding(layer) for layer in range(4)
    ]


def test_heads_grow_alone_where_there_is_a_projection(random_model: Callable[..., GPT]) -> None:
    small = random_model(SMALL["qwen3"].with_(n_head=4, n_kv_head=2))
    large = grown_from(small, {"n_head": 10})
    assert (large.config.kv_heads, large.config.width_of_head) == (5, small.config.width_of_head)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert (large.logits(ids) - small.logits(ids)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("small", "asked", "says"),
    [
        (SMALL["gpt2, tied"], {"n_embd": 24}, "--grow.n-embd: a norm needs every feature equally often, .* take 32"),
        (SMALL["gpt2, tied"], {"n_layer": 1}, "--grow.n-layer: 1, but the model has 2; it can only grow"),
        (SMALL["gpt2, tied"], {"mlp_width": 63}, "--grow.mlp-width: 63, but the model has 64"),
        (SMALL["qwen3"], {"n_head": 3}, "--grow.n-head: 2 heads share keys and values, so a multiple of 2; take 4"),
        (SMALL["the Pile's"], {"n_head": 3}, "--grow.n-head: without a projection .* take 2"),
        (SMALL["nanochat"].with_(tied=True), {"n_embd": 32}, "--grow.n-embd: a tied head"),
        (SMALL["nanochat"].with_(attention_scale="width"), {"n_embd": 32}, "--grow.n-embd: attention is scaled"),
    ],
)
def test_what_cannot_grow_exactly_is_refused(small: ModelConfig, asked: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        grown_config(small, asked)
