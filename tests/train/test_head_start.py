"""What counted pairs tell a model before its first step, against tables made with numpy in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.model.config import classic, modern
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.train.config import RunConfig
from hornbook.train.head_start import BELIEVED, SHARE_OF_WIDTH, counted, give_head_start

V = 24


def tokens_of(ids: np.ndarray) -> Any:
    class Ids:
        def __len__(self) -> int:
            return len(ids)

        def read(self, begin: int, number: int) -> np.ndarray:
            return ids[begin : begin + number]

    return Ids()


@pytest.fixture(scope="module")
def source() -> SimpleNamespace:
    """Tokens of unequal frequency, each of which is followed by few others; the last never comes."""
    draw = np.random.default_rng(0)
    follows = draw.dirichlet(np.full(V - 1, 0.15), size=V - 1)
    ids = [0]
    for _ in range(20_000):
        ids.append(int(draw.choice(V - 1, p=follows[ids[-1]])))
    array = np.array(ids)
    counts = np.zeros((V, V))
    np.add.at(counts, (array[:-1], array[1:]), 1)
    frequency = (np.bincount(array, minlength=V) + 0.1) / (len(array) + 0.1 * V)
    table = np.log((counts + BELIEVED * frequency) / (counts.sum(axis=1, keepdims=True) + BELIEVED))
    return SimpleNamespace(ids=array, table=table, frequency=frequency)


def a_model(source: SimpleNamespace, **sizes: Any) -> GPT:
    torch.manual_seed(0)
    model = untrained(modern(**({"vocab_size": V, "context": 8, "n_layer": 1, "n_head": 2, "n_embd": 64} | sizes)))
    give_head_start(model, tokens_of(source.ids), seed=1)
    return model.eval()


def predicted(model: GPT) -> np.ndarray:
    with torch.no_grad():
        logits: torch.Tensor = model.logits(torch.arange(V)[:, None])[:, 0]
    return logits.log_softmax(dim=-1).double().numpy()


def test_where_the_width_suffices_the_first_guess_is_the_table(source: SimpleNamespace) -> None:
    assert SHARE_OF_WIDTH * 64 > V
    seen = source.frequency > 0.001
    np.testing.assert_allclose(predicted(a_model(source))[seen][:, seen], source.table[seen][:, seen], atol=2e-3)


def test_the_last_token_alone_decides_at_first(source: SimpleNamespace) -> None:
    model = a_model(source)
    with torch.no_grad():
        one, other = (model.logits(torch.tensor([[*before, 5]]))[0, -1] for before in ([1, 2], [7, 9]))
    torch.testing.assert_close(one, other)


def test_of_a_narrow_model_it_is_the_best_table_of_its_rank(source: SimpleNamespace) -> None:
    """The error, with rows and columns weighed by frequency, is that of the singular values left out."""
    rank = int(20 * SHARE_OF_WIDTH)
    pairs = counted(tokens_of(source.ids), V)
    dense = pairs.times(torch.eye(V)).double().numpy()
    weight = np.sqrt(source.frequency)
    ratio = source.table - np.log(source.frequency)
    np.testing.assert_allclose(dense, weight[:, None] * ratio * weight, atol=1e-4)
    least = np.sqrt((np.linalg.svd(dense, compute_uv=False)[rank:] ** 2).sum())
    model = a_model(source, n_embd=20)
    with torch.no_grad():
        logits = model.logits(torch.arange(V)[:, None])[:, 0].double().numpy() - np.log(source.frequency)
    error = np.linalg.norm(weight[:, None] * (logits - ratio) * weight)
    assert least > 0.05, "nothing is left out, so nothing is tested"
    assert error < 1.25 * least


@pytest.mark.parametrize(
    "ids", [[3] * 50, [3, 4] * 30, [0, 1], list(range(V))], ids=["one", "two", "pair", "each once"]
)
def test_a_text_without_anything_to_learn_from_makes_a_model_all_the_same(ids: list[int]) -> None:
    for width in (2, 64):
        model = a_model(SimpleNamespace(ids=np.array(ids)), n_embd=width, n_head=1)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_it_makes_the_same_of_the_same_text(source: SimpleNamespace) -> None:
    one, other = a_model(source), a_model(source)
    assert torch.equal(one.embedding.weight, other.embedding.weight)
    assert torch.equal(one.head.weight, other.head.weight)


def test_it_is_for_models_that_begin_from_nothing_with_a_head_of_their_own() -> None:
    end = {"steps": 1}
    assert RunConfig(model=modern(), train=end).has_head_start
    assert not RunConfig(model=modern(), train=end | {"head_start": False}).has_head_start
    assert not RunConfig(model=modern(tied=True), train=end).has_head_start
    assert not RunConfig(model=classic(), train=end).has_head_start
    assert not RunConfig(model=modern(), start_from="a/model", train=end).has_head_start
    with pytest.raises(ValueError, match="impossible combination"):
        RunConfig(model=modern(tied=True), train=end | {"head_start": True})
