from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.init import untrained


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    norm = draw(st.sampled_from(["layernorm", "rmsnorm"]))
    projected = draw(st.booleans())
    biases = draw(st.sets(st.sampled_from(["norm", "qkv", "out", "mlp", "head"])))
    biases -= ({"norm"} if norm == "rmsnorm" else set()) | (set() if projected else {"out"})
    kv_heads = draw(st.integers(1, 3))
    n_head = kv_heads * draw(st.integers(1, 3))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 300)),
        context=draw(st.integers(2, 64)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_kv_head=draw(st.sampled_from([None, kv_heads])),
        n_embd=n_head * 2 * draw(st.integers(1, 8)),
        head_width=draw(st.sampled_from([None, 2, 6, 10])) if projected else None,
        mlp_width=draw(st.none() | st.integers(1, 90)),
        norm=norm,
        biases=tuple(sorted(biases)),
        out_projection=projected,
        norm_weight=draw(st.booleans()),
        embedding_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "relu2", "swiglu"])),
        positions=draw(st.sampled_from(["learned", "rotary", "none"])),
        qk_norm=draw(st.sampled_from(["none", "before", "after"])),
        value_embeddings=draw(st.booleans()),
        bigram_embeddings=draw(st.sampled_from([0, 7])),
        embedding_skip=draw(st.booleans()),
        tied=draw(st.booleans()),
    )


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 124_439_808),
        ({"n_layer": 24, "n_head": 16, "n_embd": 1024}, 354_823_168),
        ({"n_layer": 36, "n_head": 20, "n_embd": 1280}, 774_030_080),
        ({"n_layer": 48, "n_head": 25, "n_embd": 1600}, 1_557_611_200),
    ],
    ids=["124M", "355M", "774M", "1558M"],
)
def test_classic_has_the_sizes_of_gpt2(sizes: dict[str, int], published: int) -> None:
    config = classic(vocab_size=50_257, context=1024, **sizes)
    assert config.n_params() == published


def test_without_embeddings_only_blocks_and_last_norm_count() -> None:
    config = classic(vocab_size=50_257, context=1024, n_layer=12, n_head=12, n_embd=768)
    assert config.n_params(embeddings=False) == 124_439_808 - 50_257 * 768 - 1024 * 768


def test_flops_of_a_token_as_counted_by_hand() -> None:
    config = modern(vocab_size=100, context=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, mlp_width=48)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    block = attention + 3 * 32 * 48 + 2 * 32 + 2 * 8
    multiplied = 2 * block + 32 + 100 * 32
    looking_back = 12 * 2 * 32  # scores and values, forward and twice backward, for each token in sight
    assert config.flops_per_token() == 6 * multiplied + looking_back * 64
    assert config.flops_per_token(context=16) == 6 * multiplied + looking_back * 16


@pytest.mark.parametrize(
    ("sizes", "knob", "mend"),
    [
        ({"n_embd": 96, "n_head": 5}, "--n-head", "take 4"),
        ({"n_embd": 24, "n_head": 8}, "--n-head", "take 6"),
        ({"n_embd": 33, "n_head": 3}, "--n-embd", "even n_embd"),
        ({"head_width": 7}, "--head-width", "even head width"),
        ({"n_head": 4, "n_kv_head": 3}, "--n-kv-head", "does not divide the 4"),
    ],
)
def test_sizes_that_cannot_work_are_named_with_their_mend(sizes: dict[str, int], knob: str, mend: str) -> None:
    with pytest.raises(UserError) as caught:
        modern().with_(**sizes)
    assert caught.value.mistakes[0].startswith(knob)
    assert mend in caught.value.mistakes[0]


@given(n_embd=st.integers(2, 200), n_head=st.integers(1, 200), positions=st.sampled_from(["rotary", "learned"]))
def test_the_number_of_heads_that_is_proposed_works(n_embd: int, n_head: int, positions: str) -> None:
    sizes = {"n_embd": n_embd, "positions": positions}
    try:
        modern(**sizes, n_head=n_head)
    except ValidationError as error:
        (knob, what), *_ = error.errors()[0]["ctx"]["found"]
        if knob == "n_head":
            modern(**sizes, n_head=int(what.rpartition(" ")[2]))
        else:
            assert n_embd % 2


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("norm", "layernorm"),
        ("activation", "gelu_tanh"),
        ("positions", "learned"),
        ("qk_norm", "none"),
        ("qk_norm", "after"),
        ("norm_weight", False),
        ("embedding_norm", True),
        ("attention_scale", "width"),
        ("attention_scale", 0.1),
        ("out_projection", False),
        ("biases", ("qkv",)),
        ("biases", ("out",)),
        ("biases", ("mlp",)),
        ("biases", ("head",)),
        ("logit_cap", 0.5),
        ("value_embeddings", True),
        ("bigram_embeddings", 30),
        ("embedding_skip", True),
        ("tied", True),
        ("norm_eps", 0.1),
        ("rope_theta", 50.0),
        ("n_kv_head", 1),
        ("head_width", 4),
        ("mlp_width", 20),
        ("init", "gpt2"),
        ("dropout", 0.5),
    ],
)
def test_turning_a_knob_changes_what_the_model_computes(knob: str, value: Any) -> None:
    def hidden(config: ModelConfig) -> torch.Tensor:
        torch.manual_seed(0)
        model = untrained(config)
        with torch.no_grad():  # output projections that begin at zero would hide every part of a block
            for name, parameter in model.named_parameters():
                if name.endswith(
                    ("attention.out.weight", "mlp.down.weight", "_norm.weight", "shares", "bigrams.weight")
                ):
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter))
        return model.logits(torch.arange(8)[None])

    base = modern(vocab_size=20, context=8, n_layer=1, n_head=2, n_embd=16)
    assert not torch.equal(hidden(base), hidden(base.with_(**{knob: value})))
