"""Drawn frequencies against a plain reference in float64; allowed tokens against transformers' own rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper
from transformers.generation import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from hornbook.infer.config import SamplerConfig
from hornbook.infer.sampler import allowed, next_tokens, penalized

GREEDY = SamplerConfig(temperature=0.0, top_p=None)

DRAWS = 100_000
LOGITS = [2.0, 1.3, 1.1, 0.4, 0.0, -0.7, -1.5, -4.0]
EVERYTHING = {"temperature": 1.0, "top_p": None}


def reference(
    logits: Sequence[float],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> NDArray[np.float64]:
    """What each token's probability should be, one rule after the other, the likeliest token first."""
    probabilities = np.exp(np.array(logits, dtype=np.float64) / temperature)
    probabilities /= probabilities.sum()
    places = sorted(range(len(logits)), key=lambda place: -probabilities[place])
    if top_k is not None:
        places = places[:top_k]
    if top_p is not None:
        kept, together, whole = [], 0.0, probabilities[places].sum()
        for place in places:
            if together < top_p:
                kept.append(place)
            together += probabilities[place] / whole
        places = kept
    if min_p is not None:
        places = [place for place in places if probabilities[place] >= min_p * probabilities.max()]
    result = np.zeros(len(logits))
    result[places] = probabilities[places] / probabilities[places].sum()
    return result


def largest_chance_deviation(free: int) -> float:
    """The chi-squared value that chance exceeds once in about 30,000 tests (Wilson and Hilferty)."""
    spread = 2 / (9 * free)
    return free * (1 - spread + 4 * spread**0.5) ** 3


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.15},
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(rules: dict[str, Any]) -> None:
    config = SamplerConfig(**EVERYTHING | rules)
    drawn = []
    for position in range(10):  # both what noise is made of, seed and position, must give independent draws
        seeds = range(DRAWS // 10)
        drawn.append(next_tokens(torch.tensor(LOGITS).expand(len(seeds), -1), config, seeds, position))
    counts = np.bincount(torch.cat(drawn).numpy(), minlength=len(LOGITS))
    expected = reference(LOGITS, **rules) * DRAWS
    possible = expected > 0
    assert not counts[~possible].any()
    deviation = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert deviation < largest_chance_deviation(int(possible.sum()) - 1)


def test_one_seed_at_many_positions_draws_as_often_as_it_should() -> None:
    config = SamplerConfig(**EVERYTHING)
    logits = torch.tensor([LOGITS])
    counts = np.bincount([int(next_tokens(logits, config, [7], place)[0]) for place in range(10_000)], minlength=8)
    expected = reference(LOGITS) * 10_000
    assert ((counts - expected) ** 2 / expected).sum() < largest_chance_deviation(7)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 60),
    temperature=st.floats(0.1, 3.0),
    top_k=st.none() | st.integers(1, 70),
    top_p=st.none() | st.floats(0.05, 0.99),
    min_p=st.none() | st.floats(0.01, 0.9),
)
def test_the_same_tokens_are_allowed_as_in_transformers(
    seed: int, vocab_size: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = 3 * torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(seed))
    rules = SamplerConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        theirs.append(MinPLogitsWarper(min_p))
    assert torch.allclose(allowed(logits, rules), theirs(torch.zeros(4, 0, dtype=torch.long), logits))


@pytest.mark.parametrize("rules", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_strictest_rules_leave_the_likeliest_token(rules: dict[str, Any]) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    drawn = next_tokens(logits, SamplerConfig(**{"temperature": 1.5, "top_p": None} | rules), range(50), 0)
    assert torch.equal(drawn, logits.argmax(dim=-1))
    assert torch.equal(next_tokens(logits, GREEDY, range(50), 0), logits.argmax(dim=-1))


def test_a_sequence_draws_the_same_however_it_was_batched() -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    rules, seeds = SamplerConfig(), list(range(100, 120))
    together = next_tokens(logits, rules, seeds, 5)
    alone = [int(next_tokens(logits[row : row + 1], rules, [seed], 5)[0]) for row, seed in enumerate(seeds)]
    backwards = next_tokens(logits.flip(0), rules, seeds[::-1], 5).flip(0)
    assert together.tolist() == alone == backwards.tolist()


def test_logits_in_bf16_are_sampled_in_fp32() -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(
        next_tokens(logits, SamplerConfig(), range(20), 5), next_tokens(logits.float(), SamplerConfig(), range(20), 5)
    )


def punished_plainly(repetition: float, presence: float, prompt: list[int], said: list[int]) -> NDArray[np.float64]:
    """LOGITS by the rules as they are told, token by token."""
    result = np.array(LOGITS, dtype=np.float64)
    for token in {*prompt, *said}:
        result[token] = result[token] * repetition if result[token] < 0 else result[token] / repetition
    for token in set(said):
        result[token] -= presence
    return result


@pytest.mark.parametrize(
    ("repetition", "presence"), [(1.0, 0.0), (1.5, 0.0), (0.7, 0.0), (1.0, 0.8), (1.0, -1.0), (1.3, 0.5)]
)
def test_tokens_come_as_often_as_they_should_after_penalties(repetition: float, presence: float) -> None:
    prompt, said = [0, 5, 5], [1, 6, 1, 0]
    rules = SamplerConfig(**EVERYTHING, repetition_penalty=repetition, presence_penalty=presence)
    logits = penalized(torch.tensor(LOGITS), rules, prompt + said, len(prompt))
    seeds = range(DRAWS // 10)
    drawn = [next_tokens(logits.expand(len(seeds), -1), rules, seeds, position) for position in range(10)]
    counts = np.bincount(torch.cat(drawn).numpy(), minlength=len(LOGITS))
    expected = reference(punished_plainly(repetition, presence, prompt, said).tolist()) * DRAWS
    assert ((counts - expected) ** 2 / expected).sum() < largest_chance_deviation(len(LOGITS) - 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    penalty=st.floats(0.2, 5.0),
    tokens=st.lists(st.integers(0, 29), min_size=1, max_size=40),
)
def test_repetition_is_punished_as_in_transformers(seed: int, penalty: float, tokens: list[int]) -> None:
    logits = 3 * torch.randn(30, generator=torch.Generator().manual_seed(seed))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits[None].clone())[0]
    ours = penalized(logits, SamplerConfig(repetition_penalty=penalty), tokens, 1)
    assert torch.allclose(ours, theirs)
