"""The five systems' own files are imported, and compute here what they compute there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from references import SYSTEMS, Sizes, Weights, logits, loss, n_params, weights
from system_files import KEPT_IN, copied, written

from hornbook.exchange.imports import import_model
from hornbook.model.folder import load_model
from hornbook.model.gpt import GPT
from rounding import rounding_of_logits

FORMS = [*KEPT_IN, "shakespeare-124m huggingface", "shakespeare-124m openai"]
SIZES = [
    Sizes(),
    Sizes(n_layer=1, n_head=1, n_embd=10, context=5, vocab_size=130),
    Sizes(n_layer=3, n_head=4, n_embd=20, context=17, vocab_size=33),
]
PLACES = 20
STEP = 1e-5
Letters = Callable[[int], Path]


def imported(form: str, state: Weights, sizes: Sizes, folder: Path, letters: Letters) -> Path:
    source, knobs = written(form, state, sizes, folder)
    out = folder / "model"
    import_model(str(source), out, knobs=knobs, tokenizer=letters(sizes.vocab_size))
    return out


def some_ids(sizes: Sizes) -> np.ndarray:
    return np.random.default_rng(3).integers(0, sizes.vocab_size, (2, sizes.context))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_system(form: str, sizes: Sizes, letters: Letters, tmp_path: Path) -> None:
    system = SYSTEMS[form.partition(" ")[0]]
    state = weights(system, sizes, seed=1)
    model = load_model(imported(form, state, sizes, tmp_path / "a", letters))
    ids = some_ids(sizes)
    with torch.no_grad():
        ours = model.logits(torch.from_numpy(ids)).numpy()
    theirs = logits(system, state, sizes, ids)
    assert theirs.std() > 0.5
    within = rounding_of_logits(torch.from_numpy(theirs), sizes.n_layer, sizes.n_embd)
    assert np.abs(ours - theirs).max() < within < 1e-4
    assert model.config.n_params() == n_params(system, sizes)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_system(form: str, letters: Letters, tmp_path: Path) -> None:
    """Of twenty of its weights, by finite differences. Where each lands here, a second file shows in which they
    differ by 1, 2, 3 and so on."""
    sizes = SIZES[0]
    system = SYSTEMS[form.partition(" ")[0]]
    state = weights(system, sizes, seed=2)
    draw = np.random.default_rng(4)
    learned = sorted(system.shapes(sizes))
    chosen = [learned[each] for each in draw.choice(len(learned), PLACES, replace=len(learned) < PLACES)]
    places = [(name, int(draw.integers(state[name].size))) for name in chosen]
    assert len(set(places)) == PLACES
    changed = copied(state)
    for number, (name, place) in enumerate(places, 1):
        changed[name].reshape(-1)[place] += number
    model = load_model(imported(form, state, sizes, tmp_path / "a", letters), dtype=torch.float64)
    landed = load_model(imported(form, changed, sizes, tmp_path / "b", letters), dtype=torch.float64)
    ids = some_ids(sizes)
    targets = np.roll(ids, -1, 1)
    ours_by_number = gradients(model, landed, ids, targets)
    exact = {name: np.asarray(array, np.float64) for name, array in copied(state).items()}
    if system.tied:
        exact[system.tied[0]] = exact[system.tied[1]]
    for number, (name, place) in enumerate(places, 1):
        weight = exact[name].reshape(-1)
        before = weight[place]
        around = []
        for step in (STEP, -STEP):
            weight[place] = before + step
            around.append(loss(system, exact, sizes, ids, targets))
        weight[place] = before
        theirs = (around[0] - around[1]) / (2 * STEP)
        assert ours_by_number[number] == pytest.approx(theirs, rel=1e-4, abs=1e-9), f"{name}, number {place}"


def gradients(model: GPT, landed: GPT, ids: np.ndarray, targets: np.ndarray) -> dict[int, float]:
    """By how much it differs in the other model: the gradient of the mean loss for each weight that does."""
    total = model(torch.from_numpy(ids), torch.from_numpy(targets))
    (total / targets.size).backward()
    found: dict[int, float] = {}
    for one, other in zip(model.parameters(), landed.parameters(), strict=True):
        change = (other - one).detach().round()
        assert one.grad is not None
        for number, gradient in zip(change[change != 0], one.grad[change != 0], strict=True):
            assert int(number) not in found
            found[int(number)] = float(gradient)
    return found
