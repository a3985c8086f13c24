"""Greedy continuations, beam search and penalties against transformers' own, over fifty models and prompts."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from effort import long
from hornbook.infer.beams import Beam, beam_search
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import generate, window_start
from hornbook.model.config import classic, modern
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from rounding import rounding
from spread import spread

VOCABULARY = 26
END = VOCABULARY - 2
MODELS = [
    pytest.param(preset, seed, marks=long if seed >= 5 else ())
    for preset in ("classic", "modern")
    for seed in range(25)
]


def drawn_model(preset: str, seed: int, context: int = 40) -> GPT:
    """Each of its own shape and weights; sure of itself, so that a search has something to find."""
    chance = random.Random(seed)
    heads = chance.choice([1, 2, 4])
    sizes: dict[str, Any] = {"n_layer": chance.choice([1, 2]), "n_head": heads, "n_embd": 8 * heads}
    config = {"classic": classic, "modern": modern}[preset](vocab_size=VOCABULARY, context=context, **sizes)
    return spread(untrained(config), std=0.25, seed=seed)


def tolerance(model: GPT, prompt: list[int], beam: Beam, length_penalty: float) -> float:
    """Of a score: on both sides each token's logit, and the sum over the vocabulary that it is measured by, are rounded
    to fp32, by so much of the largest logit that there is."""
    with torch.no_grad():
        logits = model.logits(torch.tensor([prompt + beam.ids]))[0, len(prompt) - 1 :]
    length = len(beam.ids) + (beam.ended == "end_of_text")
    return 2 * rounding(VOCABULARY) * float(logits.abs().amax(-1).sum()) / length**length_penalty


@pytest.mark.parametrize(("preset", "seed"), MODELS)
def test_the_same_texts_as_transformers(preset: str, seed: int, tmp_path: Path) -> None:
    """Both compute in float64: of two tokens about equally likely, fp32 would take one on this processor, the other on
    the next."""
    model, chance = drawn_model(preset, seed).double(), random.Random(seed)
    prompt = [chance.randrange(VOCABULARY) for _ in range(chance.randrange(1, 12))]
    letters = "".join(map(chr, range(ord("A"), ord("A") + VOCABULARY - 2)))
    save_model(model, train_tokenizer(TokenizerConfig(kind="char"), [letters], len(letters)), tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids, new = torch.tensor([prompt]), chance.choice([3, 12, 25])

    def theirs(**options: Any) -> Any:
        settings = {"do_sample": False, "eos_token_id": END, "pad_token_id": END, "max_new_tokens": new}
        return peer.generate(ids, attention_mask=torch.ones_like(ids), **settings | options)

    def without_end(row: torch.Tensor) -> list[int]:
        said = row[len(prompt) :].tolist()
        return said[: said.index(END)] if END in said else said

    for penalty in (1.0, 1.3):
        rules = SamplerConfig(temperature=0.0, repetition_penalty=penalty)
        ours = list(generate(model, prompt, rules, max_tokens=new, end_of_text=END))
        assert ours == without_end(theirs(repetition_penalty=penalty)[0])

    beams, length_penalty = chance.choice([2, 3, 5]), chance.choice([-1.0, 0.0, 0.6, 1.0, 2.0])
    penalty = chance.choice([1.0, 1.4])
    found = beam_search(
        model,
        prompt,
        SamplerConfig(repetition_penalty=penalty),
        beams=beams,
        length_penalty=length_penalty,
        max_tokens=new,
        end_of_text=END,
    )
    expected = theirs(
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        early_stopping=False,
        repetition_penalty=penalty,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [beam.ids for beam in found] == [without_end(row) for row in expected.sequences]
    for beam, score in zip(found, expected.sequences_scores.tolist(), strict=True):
        assert beam.score == pytest.approx(score, rel=0, abs=tolerance(model, prompt, beam, length_penalty))


def scores_after(model: GPT, text: list[int]) -> Any:
    """The log-probability of each next token in float64, from the text's own window."""
    window = text[window_start(len(text), model.config.context) :]
    with torch.no_grad():
        logits = model.logits(torch.tensor([window]))[0, -1].numpy()
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def exact_score(model: GPT, prompt: list[int], ids: list[int]) -> float:
    return sum(float(scores_after(model, prompt + ids[:place])[token]) for place, token in enumerate(ids))


def test_enough_beams_find_the_likeliest_of_all_texts() -> None:
    """All 26 x 26 texts of two tokens, tried one by one; with as many beams as tokens none can be missed."""
    model = drawn_model("modern", 3).double()
    first, second = scores_after(model, [5, 1]), [scores_after(model, [5, 1, token]) for token in range(VOCABULARY)]
    scores = {(one, other): first[one] + second[one][other] for one, other in product(range(VOCABULARY), repeat=2)}
    best = sorted(scores, key=lambda ids: -scores[ids])[:5]
    found = beam_search(model, [5, 1], SamplerConfig(), beams=VOCABULARY, length_penalty=0.0, max_tokens=2)
    assert [tuple(beam.ids) for beam in found[:5]] == best
    assert [beam.score for beam in found[:5]] == pytest.approx([scores[ids] for ids in best], abs=1e-5)


def test_beams_go_on_past_the_context_by_the_window_rule(untaught: Callable[..., GPT]) -> None:
    model = untaught("modern", context=8)
    prompt = [7, 31, 255, 0, 98, 4]
    found = beam_search(model, prompt, SamplerConfig(), beams=4, length_penalty=0.0, max_tokens=20, alternatives=2)
    exact = untaught("modern", context=8).double()
    for beam in found:
        assert len(beam.tokens) == 20
        assert beam.score == pytest.approx(exact_score(exact, prompt, beam.ids), abs=1e-3)
        assert sum(each.logprob or 0.0 for each in beam.tokens) == pytest.approx(beam.score, abs=1e-3)


def test_one_beam_is_greedy(untaught: Callable[..., GPT]) -> None:
    model = untaught("modern", context=8)
    [beam] = beam_search(model, [7, 31], SamplerConfig(), beams=1, max_tokens=30)
    assert beam.ids == list(generate(model, [7, 31], SamplerConfig(temperature=0.0), max_tokens=30))
