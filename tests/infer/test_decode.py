from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import generate, window_start
from hornbook.model.gpt import GPT

GREEDY = SamplerConfig(temperature=0.0, top_p=None)

SAMPLED = SamplerConfig(temperature=1.0)
PROMPT = [7, 31, 255, 0, 98, 4, 4, 17, 120, 33, 64, 200, 9, 81, 150, 3, 77, 42, 11, 5, 210, 66]


@given(length=st.integers(1, 5000), context=st.integers(2, 300))
def test_the_window_moves_by_half_a_context_and_only_when_it_must(length: int, context: int) -> None:
    start, before = window_start(length, context), window_start(length - 1, context)
    assert 1 <= length - start <= context
    if length <= context:
        assert start == 0
    else:
        assert length - start > context // 2
    half = context - context // 2
    assert start - before in (0, half)
    if start != before:
        assert length - before > context, "the window had room yet"


@pytest.mark.parametrize("preset", ["classic", "modern"])
@pytest.mark.parametrize("context", [2, 7, 16])
@pytest.mark.parametrize("rules", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_cache_changes_nothing_also_past_the_context(
    preset: str, context: int, rules: SamplerConfig, untaught: Callable[..., GPT]
) -> None:
    model = untaught(preset, context=context)
    for length in sorted({1, context - 1, context, context + 1, len(PROMPT)}):
        prompt = PROMPT[:length]
        cached = list(generate(model, prompt, rules, seed=3, max_tokens=40))
        assert cached == list(generate(model, prompt, rules, seed=3, max_tokens=40, cached=False))
        assert len(cached) == 40


def test_each_token_follows_from_its_window_alone(untaught: Callable[..., GPT]) -> None:
    """The rule of the module, spelled out: the likeliest token after those from the window's start on."""
    model = untaught(context=8)
    text = list(PROMPT)
    with torch.no_grad():
        for _ in range(30):
            start = window_start(len(text), 8)
            text.append(int(model.logits(torch.tensor([text[start:]]))[0, -1].argmax()))
    assert list(generate(model, PROMPT, GREEDY, max_tokens=30)) == text[len(PROMPT) :]


@pytest.mark.parametrize("rules", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_text_goes_on_as_it_would_have(rules: SamplerConfig, untaught: Callable[..., GPT]) -> None:
    """Stopped anywhere and continued from what was said, the text is the same."""
    model = untaught(context=8)
    whole = list(generate(model, PROMPT[:3], rules, seed=1, max_tokens=30))
    for said in (1, 4, 5, 13, 29):
        rest = list(generate(model, PROMPT[:3] + whole[:said], rules, seed=1, max_tokens=30 - said))
        assert whole[:said] + rest == whole


def test_the_end_of_text_ends_it_and_is_not_handed_out(untaught: Callable[..., GPT]) -> None:
    model = untaught(context=16)
    endless = list(generate(model, PROMPT[:4], SAMPLED, seed=2, max_tokens=30))
    end = endless[12]
    ended = list(generate(model, PROMPT[:4], SAMPLED, seed=2, max_tokens=30, end_of_text=end))
    assert ended == endless[: endless.index(end)]


def test_the_seed_decides_the_text(untaught: Callable[..., GPT]) -> None:
    model = untaught(context=16)
    texts = [tuple(generate(model, PROMPT[:4], SAMPLED, seed=seed, max_tokens=20)) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_sampling_leaves_the_random_state_of_torch_alone(untaught: Callable[..., GPT]) -> None:
    model = untaught(context=16)
    before = torch.get_rng_state()
    list(generate(model, PROMPT[:4], SAMPLED, max_tokens=5))
    assert torch.equal(torch.get_rng_state(), before)
