"""Drawn frequencies against a plain reference in float64; allowed tokens against transformers' own rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper
from transformers.generation import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from effort import examples, tries
from hornbook.base.errors import UserError
from hornbook.infer.config import SamplerConfig
from hornbook.infer.sampler import allowed, next_tokens, penalized

GREEDY = SamplerConfig(temperature=0.0, top_p=None)

DRAWS = tries(2_500, 100_000)
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


def draws(logits: torch.Tensor, rules: SamplerConfig, seeds: Sequence[int], positions: Sequence[int]) -> list[int]:
    return next_tokens(logits.expand(len(seeds), -1), [rules] * len(seeds), seeds, positions)


def assert_as_often(counts: NDArray[np.intp], expected: NDArray[np.float64]) -> None:
    """By chi-squared, what is expected less than ten times taken together."""
    assert not counts[expected == 0].any()
    often = expected >= 10
    rest = [(counts[~often].sum(), expected[~often].sum())]
    seen, wanted = (
        np.array(each) for each in zip(*zip(counts[often], expected[often], strict=True), *rest, strict=True)
    )
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert ((seen - wanted) ** 2 / wanted).sum() < largest_chance_deviation(len(wanted) - 1)


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 1.0},
        {"temperature": 1.7, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.2, "top_k": 6, "top_p": 0.7},
        {"temperature": 1.5, "top_p": 0.97, "min_p": 0.05},
        {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.15},
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(rules: dict[str, Any]) -> None:
    seeds, positions = np.divmod(np.arange(DRAWS), 10)  # draws of other seeds, and at other positions
    drawn = draws(torch.tensor(LOGITS), SamplerConfig(**EVERYTHING | rules), seeds.tolist(), positions.tolist())
    assert_as_often(np.bincount(drawn, minlength=len(LOGITS)), reference(LOGITS, **rules) * DRAWS)


@pytest.mark.parametrize("also", ["seed", "position"])
def test_draws_next_to_each_other_have_nothing_to_do_with_one_another(also: str) -> None:
    """Of one seed at every position, and of every seed at one position: each token after each, as often as chance
    says."""
    count = range(DRAWS)
    seeds, positions = ([7] * len(count), count) if also == "position" else (count, [7] * len(count))
    drawn = np.array(draws(torch.tensor(LOGITS), SamplerConfig(**EVERYTHING), seeds, positions))
    size, share = len(LOGITS), reference(LOGITS)
    assert_as_often(np.bincount(drawn, minlength=size), share * len(drawn))
    pairs = np.bincount(drawn[::2] * size + drawn[1::2], minlength=size * size)
    assert_as_often(pairs, np.outer(share, share).ravel() * len(drawn) / 2)


@examples(200)
@example(seed=0, vocab_size=16, temperature=0.125, top_k=15, top_p=None, min_p=None)
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
    kept = theirs(torch.zeros(4, 0, dtype=torch.long), logits.clone()).isfinite()
    for row, likely in zip(kept.numpy(), (logits / temperature).softmax(dim=-1).numpy(), strict=True):
        ids = allowed(likely, rules)
        ours = np.arange(vocab_size) if ids is None else ids
        taken = likely > 0  # what a low temperature leaves nothing of is never drawn, allowed or not
        assert ours[taken[ours]].tolist() == np.flatnonzero(row & taken).tolist()


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0])
def test_of_a_large_vocabulary_top_p_takes_what_sorting_it_would(spread: float) -> None:
    """Ties in every bin, and at the edge: then the lowest ids."""
    chance = np.random.default_rng(5)
    logits = torch.tensor(np.round(chance.normal(size=20_000) * spread, 2))
    likely = logits.float().softmax(dim=-1).numpy()
    order = sorted(range(len(likely)), key=lambda place: (-likely[place], place))
    for top_p in (1e-6, 0.1, 0.5, 0.9, 0.999):
        together, kept, whole = 0.0, [], likely.astype(np.float64).sum()
        for place in order:
            if together >= top_p * whole:
                break
            kept.append(place)
            together += float(likely[place])
        ids = allowed(likely, SamplerConfig(top_p=top_p))
        assert ids is not None
        assert abs(len(ids) - len(kept)) <= 1, "the sum of so many is known but to its last digits"
        assert set(ids.tolist()) == set(order[: len(ids)])


@pytest.mark.parametrize("rules", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_strictest_rules_leave_the_likeliest_token(rules: dict[str, Any]) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    strict = SamplerConfig(**{"temperature": 1.5, "top_p": None} | rules)
    for each in (strict, GREEDY):
        assert next_tokens(logits, [each] * 50, range(50), [0] * 50) == logits.argmax(dim=-1).tolist()


def test_a_sequence_draws_the_same_however_it_was_batched() -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    kinds = [SamplerConfig(), GREEDY, SamplerConfig(temperature=1.5, top_k=9), SamplerConfig(top_p=None, min_p=0.02)]
    rows = [(row, kinds[row % 4], 100 + row, 5 * row) for row in range(20)]

    def drawn(chosen: Sequence[tuple[int, SamplerConfig, int, int]]) -> list[int]:
        which, rules, seeds, positions = zip(*chosen, strict=True)
        return next_tokens(logits[list(which)], rules, seeds, positions)

    assert drawn(rows) == [drawn([row])[0] for row in rows] == drawn(rows[::-1])[::-1]


@pytest.mark.parametrize("rules", [SamplerConfig(temperature=1.0, top_p=None), SamplerConfig()], ids=["all", "top-p"])
def test_the_last_digits_of_logits_do_not_change_what_is_drawn(rules: SamplerConfig) -> None:
    """Another batch size gives other last digits. One number that points into 50,000 probabilities laid end to end
    draws another token here in one of 40 and one of 100 cases."""
    chance = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(20, 256, generator=chance), torch.randn(50_257, 256, generator=chance) * 0.15
    moved = hidden * (1 + 2e-5 * torch.randn(20, 256, generator=chance))
    rows, seeds = [row for row in range(20) for _ in range(25)], [*range(25)] * 20
    drawn = [draws_of(each @ head.T, [rules] * 500, rows, seeds) for each in (hidden, moved)]
    assert len(set(drawn[0])) > 100
    assert sum(one != other for one, other in zip(*drawn, strict=True)) <= 1


def draws_of(
    logits: torch.Tensor, rules: Sequence[SamplerConfig], rows: Sequence[int], seeds: Sequence[int]
) -> list[int]:
    """Each with its seed, at a position of its own."""
    return [
        next_tokens(logits[row : row + 1], [rule], [seed], [row])[0]
        for row, rule, seed in zip(rows, rules, seeds, strict=True)
    ]


def test_logits_in_bf16_are_sampled_in_fp32() -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).bfloat16()
    rules, seeds = [SamplerConfig()] * 20, range(20)
    assert next_tokens(logits, rules, seeds, seeds) == next_tokens(logits.float(), rules, seeds, seeds)


def test_logits_that_are_no_numbers_are_told_of() -> None:
    with pytest.raises(UserError, match="damaged"):
        next_tokens(torch.tensor([[0.0, float("nan"), 1.0]]), [SamplerConfig()], [0], [0])


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
def test_penalties_make_of_logits_what_the_rules_say(repetition: float, presence: float) -> None:
    """And from logits on, tokens come as often as they should."""
    prompt, said = [0, 5, 5], [1, 6, 1, 0]
    rules = SamplerConfig(**EVERYTHING, repetition_penalty=repetition, presence_penalty=presence)
    logits = penalized(torch.tensor(LOGITS), rules, prompt + said, len(prompt)).double().numpy()
    # Two roundings of fp32, of numbers up to 4.
    np.testing.assert_allclose(logits, punished_plainly(repetition, presence, prompt, said), rtol=0, atol=1e-6)


@examples(200)
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
