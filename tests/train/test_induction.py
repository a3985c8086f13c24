"""Heads that begin by looking back, and by telling what came next last time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hornbook.model import attention
from hornbook.model.config import modern
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.train.head_start import give_head_start

V, CONTEXT = 300, 48
SHAPES = [
    {"n_head": 2},
    {"n_head": 2, "n_kv_head": 1},
    {"n_head": 1, "n_kv_head": 1},
    {"n_head": 4, "n_kv_head": 2},
    {"qk_norm": "none"},
]


class Tokens:
    def __init__(self, ids: Any) -> None:
        self.ids = np.array(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, begin: int, number: int) -> Any:
        return self.ids[begin : begin + number]


# One by one, so that no token tells of the next, and counting finds nothing.
DRAWN = Tokens(np.random.default_rng(0).integers(V, size=50_000))


def a_model(tokens: Tokens = DRAWN, **sizes: Any) -> GPT:
    torch.manual_seed(0)
    config = modern(**{"vocab_size": V, "context": CONTEXT, "n_layer": 3, "n_embd": 128, "head_width": 64} | sizes)
    model = untrained(config)
    give_head_start(model, tokens, seed=1)  # type: ignore[arg-type]
    return model.eval()


def looked_at(model: GPT, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Of each block the weights (H, T, T), by the plain formula."""
    seen: list[torch.Tensor] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **_: Any) -> torch.Tensor:
        later = torch.full((q.shape[2], q.shape[2]), float("-inf")).triu(1)
        each = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(each, dim=1), v.repeat_interleave(each, dim=1)
        seen.append((q @ k.mT * scale + later).softmax(dim=-1))
        return seen[-1] @ v

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(attention, "attend", attend)
        model.hidden(ids[None])
    return [each[0] for each in seen]


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_the_first_heads_look_at_the_tokens_just_before(sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(**sizes)
    for back, weights in enumerate(looked_at(model, torch.arange(CONTEXT), monkeypatch)[0], 1):
        shares = [float(weights.diagonal(-each)[8:].mean()) for each in range(16)]
        assert shares.index(max(shares)) == back
        assert max(shares) > 0.4


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_what_came_next_last_time_is_looked_for_and_told(
    sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of text that comes twice, the second time: no other part of the model can know it."""
    model, half = a_model(**sizes), CONTEXT // 2
    once = torch.from_numpy(np.random.default_rng(1).permutation(V)[:half])
    ids = torch.cat((once, once))
    _, second, _ = looked_at(model, ids, monkeypatch)
    places = torch.arange(half, CONTEXT - 1)
    assert second[0][places, places - half + 1].mean() > 0.5
    with torch.no_grad():
        nats = -model.logits(ids[None])[0].log_softmax(-1)[torch.arange(CONTEXT - 1), ids[1:]]
    assert nats[half:].mean() < nats[: half - 1].mean() - 0.4


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 1},
        {"n_embd": 8, "head_width": 4},
        {"context": 100_000},
        {"out_projection": False, "head_width": None},
    ],
    ids=str,
)
def test_where_there_is_no_room_for_names_nothing_is_told(sizes: dict[str, Any]) -> None:
    """One block, too few numbers, too few waves that are slow enough for so long a context, no matrix to tell by."""
    model = a_model(**({"n_head": 2} | sizes))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    written = [weight for name, weight in model.named_parameters() if name.endswith("attention.out.weight")]
    assert not any(weight.any() for weight in written)


@pytest.mark.parametrize(
    "ids", [[3] * 50, [3, 4] * 30, [0, 1], list(range(V))], ids=["one", "two", "pair", "each once"]
)
def test_a_text_without_anything_to_find_makes_a_model_all_the_same(ids: list[int]) -> None:
    model = a_model(Tokens(ids), n_head=2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < 1000
