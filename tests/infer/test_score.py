from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hornbook.infer.score import Score, score
from hornbook.model.gpt import GPT
from hornbook.shards.format import TokenArray

CONTEXT = 16


def token_array(*parts: int) -> TokenArray:
    random = np.random.default_rng(1)
    return TokenArray([random.integers(0, 257, size=size).astype(np.uint16) for size in parts])


def score_of(model: GPT, tokens: TokenArray, text_bytes: int = 1000, tokens_at_once: int = 8192) -> Score:
    return score(model, tokens, CONTEXT, text_bytes, tokens_at_once=tokens_at_once)


def one_by_one(model: GPT, ids: list[int]) -> float:
    """The mean loss in float64, each token predicted by itself from what stands before it in its window."""
    exact = copy.deepcopy(model).double()
    nats = 0.0
    with torch.no_grad():
        for place in range(1, len(ids)):
            window = (place - 1) // CONTEXT * CONTEXT
            logits = exact.logits(torch.tensor([ids[window:place]]))[0, -1]
            nats -= torch.log_softmax(logits, dim=-1)[ids[place]].item()
    return nats / (len(ids) - 1)


@pytest.mark.parametrize("preset", ["classic", "modern"])
@pytest.mark.parametrize("sizes", [(2,), (CONTEXT + 1,), (CONTEXT + 2,), (100,), (40, 33, 4, 60)], ids=str)
def test_the_score_is_that_of_each_token_by_itself(
    preset: str, sizes: tuple[int, ...], untaught: Callable[..., GPT]
) -> None:
    model, tokens = untaught(preset, context=CONTEXT), token_array(*sizes)
    result = score_of(model, tokens)
    loss = one_by_one(model, tokens.read(0, len(tokens)).tolist())
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.tokens == sum(sizes) - 1


def test_the_score_does_not_depend_on_how_windows_are_batched(untaught: Callable[..., GPT]) -> None:
    model, tokens = untaught(context=CONTEXT), token_array(500)
    losses = [score_of(model, tokens, tokens_at_once=tokens_at_once).loss for tokens_at_once in (1, 16, 50, 100, 8192)]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-6)


def test_where_memory_is_short_fewer_windows_are_scored_at_once(
    untaught: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that died of it would die again at every resume."""
    model, tokens = untaught(context=CONTEXT), token_array(500)
    whole, losses, tried = score_of(model, tokens), GPT.losses, []

    def small(self: GPT, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        tried.append(len(ids))
        if len(ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self, ids, targets)

    monkeypatch.setattr(GPT, "losses", small)
    room = 3
    assert score_of(model, tokens).loss == pytest.approx(whole.loss, rel=1e-6)
    assert max(tried) > room
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        score_of(model, tokens)


def test_bits_per_byte_of_a_model_that_knows_nothing(untaught: Callable[..., GPT]) -> None:
    """Each of 257 ids costs log2(257) bits, whatever number of bytes they stand for."""
    model, tokens = untaught(context=CONTEXT), token_array(101)
    torch.nn.init.zeros_(model.head.weight)
    result = score_of(model, tokens, text_bytes=250)
    assert result.loss == pytest.approx(math.log(257), rel=1e-6)
    assert result.perplexity == pytest.approx(257, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(100 * math.log2(257) / 250, rel=1e-6)


def test_a_perplexity_beyond_all_numbers_is_infinite(untaught: Callable[..., GPT]) -> None:
    model = untaught("classic", context=CONTEXT)
    with torch.no_grad():  # the last norm gives every state the same direction, in which the wrong id lies
        model.norm.weight.zero_()
        model.norm.bias.fill_(100.0)
        model.head.weight.fill_(-1.0)
        model.head.weight[0] = 1.0
    ones = TokenArray([np.ones(CONTEXT + 1, dtype=np.uint16)])
    result = score_of(model, ones)
    assert result.loss > 700
    assert result.perplexity == math.inf


def test_so_many_windows_are_spread_over_the_text(untaught: Callable[..., GPT]) -> None:
    model, tokens = untaught(context=CONTEXT), token_array(40 * CONTEXT + 5)
    result = score(model, tokens, CONTEXT, 1000, windows_at_most=4)
    ids = tokens.windows(np.arange(0, 40, 10) * CONTEXT, CONTEXT + 1)
    exact = model.losses(torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]))
    assert result.loss == pytest.approx(exact.mean().item(), rel=1e-5)
    assert result.tokens == 4 * CONTEXT
    bits = result.loss / math.log(2) * (len(tokens) - 1) / 1000  # as if the rest were like them
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-6)
    all_whole = score(model, tokens, CONTEXT, 1000, windows_at_most=400)
    assert all_whole.tokens == 40 * CONTEXT


def test_a_text_shorter_than_a_window_is_scored_all_the_same(untaught: Callable[..., GPT]) -> None:
    model, tokens = untaught(context=CONTEXT), token_array(6)
    assert score(model, tokens, CONTEXT, 1000, windows_at_most=4) == score(model, tokens, CONTEXT, 1000)
