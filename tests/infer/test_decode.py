from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effort import tries
from hornbook.infer import decode
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import Batch, Growing, generate, grow, window_start
from hornbook.infer.sampler import next_tokens
from hornbook.model.gpt import GPT

GREEDY = SamplerConfig(temperature=0.0, top_p=None)

SAMPLED = SamplerConfig(temperature=1.0)
PROMPT = [7, 31, 255, 0, 98, 4, 4, 17, 120, 33, 64, 200, 9, 81, 150, 3, 77, 42, 11, 5, 210, 66]


def plainly(model: GPT, prompt: list[int], rules: SamplerConfig, seed: int, count: int) -> list[int]:
    """Without a cache, one text by itself."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            window = text[window_start(len(text), model.config.context) :]
            logits = model.logits(torch.tensor([window]))[:, -1]
            text.append(next_tokens(logits, [rules], [seed], [len(text)])[0])
    return text[len(prompt) :]


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
def test_a_cache_changes_nothing_also_past_the_context(preset: str, context: int, untaught: Callable[..., GPT]) -> None:
    model = untaught(preset, context=context)
    for number, length in enumerate(sorted({1, context - 1, context, context + 1, len(PROMPT)})):
        prompt, rules = PROMPT[:length], (GREEDY, SAMPLED)[number % 2]
        assert list(generate(model, prompt, rules, seed=3, max_tokens=25)) == plainly(model, prompt, rules, 3, 25)


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


@pytest.mark.parametrize(
    "shape", [("classic", {}), ("modern", {"n_kv_head": 1}), ("modern", {"bigram_embeddings": 50})]
)
def test_a_seed_gives_the_same_text_however_texts_were_batched(
    shape: tuple[str, dict[str, Any]], untaught: Callable[..., GPT]
) -> None:
    """Prompts of all lengths, texts that end at all times, far past the context; against each by itself, uncached."""
    model = untaught(shape[0], context=12, **shape[1])
    alone = None
    for rows in tries((3,), (1, 3, 8)):
        texts = [
            Growing(PROMPT[: 1 + 7 * seed % 21], SAMPLED if seed % 4 else GREEDY, seed, 3 + 5 * seed % 29)
            for seed in range(tries(12, 24))
        ]
        alone = alone or [plainly(model, t.tokens, t.rules, t.seed, t.max_tokens) for t in texts]
        for _ in grow(model, texts, rows=rows):
            pass
        assert [text.tokens[text.prompt_length :] for text in texts] == alone
        assert {text.ended for text in texts} == {"length"}


def test_texts_may_come_and_go_between_steps(untaught: Callable[..., GPT]) -> None:
    model = untaught("modern", context=12)
    early, late, gone = Growing(PROMPT[:9], SAMPLED, 1), Growing(PROMPT[:2], SAMPLED, 2), Growing(PROMPT, SAMPLED, 3)
    batch = Batch(model, 3)
    for step in range(20):
        if step in (0, 4):
            batch.add(gone if step == 0 else late)
        if step == 2:
            batch.add(early)
        if step == 9:
            batch.remove(gone)
        for text, chosen in batch.step():
            text.tokens.append(chosen.id)
    for text, steps in ((gone, 9), (early, 18), (late, 16)):
        prompt = text.tokens[: text.prompt_length]
        assert text.tokens[text.prompt_length :] == plainly(model, prompt, SAMPLED, text.seed, steps)


def test_equal_prompts_are_computed_once(untaught: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch) -> None:
    model = untaught(context=32)
    widths = []
    forward = GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, ids, cache=None: widths.append(ids.shape) or forward(self, ids, cache)
    )
    texts = [Growing(PROMPT, SAMPLED, seed, 1) for seed in range(4)]
    list(grow(model, texts))
    assert [tuple(each) for each in widths] == [(1, len(PROMPT) - 1), (4, 1)]
    assert len({text.tokens[-1] for text in texts}) > 1


def test_log_probabilities_are_those_of_the_model_before_any_rule(untaught: Callable[..., GPT]) -> None:
    model = untaught("modern", context=12)
    rules = SamplerConfig(temperature=1.7, top_k=40, repetition_penalty=1.5)
    text = Growing(PROMPT[:5], rules, seed=4, max_tokens=25, alternatives=3)
    chosen = [token for _, token in grow(model, [text], known_ids=200) if token is not None]
    exact = untaught("modern", context=12).double()
    for place, each in enumerate(chosen, 5):
        with torch.no_grad():
            logits = exact.logits(torch.tensor([text.tokens[window_start(place, 12) : place]]))[0, -1, :200].numpy()
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        order = np.argsort(-expected)[:3]
        assert each.logprob == pytest.approx(expected[each.id], abs=1e-4)
        assert [token for token, _ in each.alternatives] == order.tolist()
        assert [value for _, value in each.alternatives] == pytest.approx(expected[order].tolist(), abs=1e-4)


def test_prompts_that_begin_together_are_computed_at_once(
    untaught: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untaught(context=64)
    widths = []
    forward = GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, ids, cache=None: widths.append(tuple(ids.shape)) or forward(self, ids, cache)
    )
    list(grow(model, [Growing(PROMPT[: 5 + 3 * row], SAMPLED, row, 2) for row in range(5)]))
    assert widths == [(5, 16), (5, 1), (5, 1)]


@pytest.mark.parametrize("bigrams", [{}, {"bigram_embeddings": 50}], ids=["plain", "bigrams"])
def test_running_texts_go_on_while_long_prompts_are_read(
    bigrams: dict[str, Any], untaught: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step reads more than a chunk, in none does the running text go without its token; and all texts are those of
    each prompt by itself. Two of the prompts are the same, and one is the other's beginning."""
    monkeypatch.setattr(decode, "CHUNK", 8)
    model = untaught("modern", context=96, **bigrams)
    long = [(7 * place * place + place) % 251 for place in range(60)]
    running = Growing(PROMPT[:3], SAMPLED, 1)
    late = [Growing(ids, SAMPLED, 2 + row) for row, ids in enumerate((long, long, long[:25], PROMPT[:2], long[::-1]))]
    batch, first_token = Batch(model, 6), dict[Growing, int]()
    batch.add(running)
    for step in range(40):
        if step == 3:
            for text in late:
                batch.add(text)
        seen = int(batch.cache.lengths.sum())
        given = batch.step()
        assert running in [text for text, _ in given]
        if step >= 3:
            copied = 0 if step > 30 else 2 * 60
            assert int(batch.cache.lengths.sum()) - seen <= 8 + len(batch.texts) + copied
        for text, chosen in given:
            first_token.setdefault(text, step)
            text.tokens.append(chosen.id)
    assert first_token[late[3]] <= 4, "a short prompt need not wait for the long ones"
    assert first_token[late[0]] > 6, "a long prompt takes several steps"
    for text in (running, *late):
        prompt, said = text.tokens[: text.prompt_length], text.tokens[text.prompt_length :]
        assert len(said) > 15
        assert said == plainly(model, prompt, SAMPLED, text.seed, len(said))
