from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.shards import prepare as preparing
from hornbook.shards.format import Shards
from hornbook.shards.order import Loader, OrderConfig, SampleOrder, permute
from yardstick import within

grids = st.sampled_from(["windows", "phased"])
kinds = st.sampled_from(["windows", "phased", "places"])
contexts = st.integers(2, 40)
seeds = st.integers(0, 2**40)


def order_of(
    kind: Any, tokens: int, context: int, seed: int = 1, batch: int = 1, drop_last: bool = False
) -> SampleOrder:
    return SampleOrder(OrderConfig(kind=kind, drop_last=drop_last), seed, "data", tokens, context, batch)


def places(order: SampleOrder, first: int, end: int) -> list[int]:
    return order.places(np.arange(first, end)).tolist()


@examples(3_000)
@given(grids, contexts, st.integers(1, 400), seeds)
def test_every_window_is_read_exactly_once_an_epoch(kind: str, context: int, extra: int, seed: int) -> None:
    tokens = context + extra
    order = order_of(kind, tokens, context, seed)
    n = order.samples_per_epoch
    if kind == "windows":
        assert n == (tokens - 1) // context
    for epoch in range(3):
        found = sorted(places(order, epoch * n, (epoch + 1) * n))
        phase = found[0]
        assert found == [phase + context * window for window in range(n)]
        assert phase == 0 if kind == "windows" else 0 <= phase < context
        assert found[-1] + context + 1 <= tokens


@examples(3_000)
@given(grids, contexts, st.integers(1, 60), st.integers(1, 400), seeds)
def test_windows_with_a_stride_are_read_exactly_once_an_epoch(
    kind: str, context: int, stride: int, extra: int, seed: int
) -> None:
    tokens = context + extra
    order = SampleOrder(OrderConfig(kind=kind, stride=stride), seed, "data", tokens, context)
    n = order.samples_per_epoch
    if kind == "windows":
        assert n == len(range(0, tokens - context, stride))  # as the book's loader counts them
    for epoch in range(3):
        found = sorted(places(order, epoch * n, (epoch + 1) * n))
        phase = found[0]
        assert found == [phase + stride * window for window in range(n)]
        assert phase == 0 if kind == "windows" else 0 <= phase < stride
        assert found[-1] + context + 1 <= tokens


def test_a_stride_of_the_context_is_none() -> None:
    one, other = (SampleOrder(OrderConfig(stride=stride), 1, "data", 5_000, 32) for stride in (None, 32))
    assert places(one, 0, 500) == places(other, 0, 500)


def test_random_places_have_no_stride() -> None:
    with pytest.raises(ValueError, match="combination"):
        OrderConfig(kind="places", stride=4)


@examples(3_000)
@given(contexts, st.integers(1, 500), st.integers(0, 10**12), seeds)
def test_a_random_place_has_room_for_its_window(context: int, extra: int, first: int, seed: int) -> None:
    tokens = context + extra
    found = places(order_of("places", tokens, context, seed), first, first + 64)
    assert min(found) >= 0
    assert max(found) + context + 1 <= tokens


def test_random_places_are_spread_evenly() -> None:
    found = places(order_of("places", 1_000 + 8, 8), 0, 100_000)
    counts = np.bincount(found, minlength=1_000)
    assert len(counts) == 1_000
    # Chi-squared of 999 degrees of freedom: mean 999, deviation 45.
    assert abs(((counts - 100) ** 2 / 100).sum() - 999) < 5 * 45


@pytest.mark.parametrize("kind", ["windows", "phased"])
def test_epochs_and_seeds_and_texts_differ_in_order(kind: Any) -> None:
    orders = [
        order_of(kind, 10_000, 10, seed=1),
        order_of(kind, 10_000, 10, seed=2),
        SampleOrder(OrderConfig(kind=kind), 1, "other data", 10_000, 10),
    ]
    n = orders[0].samples_per_epoch
    seen = [tuple(places(order, epoch * n, epoch * n + n)) for order in orders for epoch in range(3)]
    assert len(set(seen)) == 9
    for one in range(len(seen)):
        for other in range(one):
            same = sum(a // 10 == b // 10 for a, b in zip(seen[one], seen[other], strict=True))
            assert same < 15  # chance alone gives one


def test_phases_visit_every_way_to_cut_the_text() -> None:
    order = order_of("phased", 200, 8)
    n = order.samples_per_epoch
    assert {min(places(order, epoch * n, epoch * n + n)) for epoch in range(100)} == set(range(8))


def test_a_text_too_short_to_shift_the_grid_is_read_on_the_fixed_one() -> None:
    assert places(order_of("phased", 15, 10), 0, 3) == [0, 0, 0]
    assert places(order_of("phased", 11, 10), 0, 1) == [0]


@examples(3_000)
@given(st.data())
def test_ranks_together_read_what_one_reads_wherever_the_run_was_cut(data: st.DataObject) -> None:
    """Each rank takes its slice of the global batch; the run stops and goes on with another number of ranks."""
    context = data.draw(contexts)
    shape = data.draw(kinds), context + data.draw(st.integers(1, 300)), context, data.draw(seeds)
    order = order_of(*shape)
    batch = data.draw(st.integers(1, 24))
    steps = 3 * order.samples_per_epoch // batch + 1
    alone = places(order, 0, steps * batch)

    read: list[int] = []
    worlds = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), min_size=len(worlds) - 1, max_size=len(worlds) - 1)))
    for world, first, end in zip(worlds, [0, *cuts], [*cuts, steps], strict=True):
        resumed = order_of(*shape)
        for step in range(first, end):
            numbers = np.arange(step * batch, (step + 1) * batch)
            ranks = [resumed.places(mine).tolist() for mine in np.array_split(numbers, world)]
            read += [place for rank in ranks for place in rank]
    assert read == alone
    n = order.samples_per_epoch
    if order.kind != "places":
        assert all(len(set(read[e * n : (e + 1) * n])) == n for e in range(3))


@examples(3_000)
@given(kinds, st.integers(1, 300), seeds, st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_a_place_does_not_depend_on_what_is_asked_beside_it(
    kind: str, extra: int, seed: int, numbers: list[int]
) -> None:
    order = order_of(kind, 8 + extra, 8, seed)
    alone = [order_of(kind, 8 + extra, 8, seed).places(np.array([number])).item() for number in numbers]
    assert order.places(np.array(numbers)).tolist() == alone


@examples(3_000)
@given(grids, contexts, st.integers(1, 300), st.integers(1, 12))
def test_drop_last_ends_each_epoch_at_a_whole_batch(kind: str, context: int, extra: int, batch: int) -> None:
    full = order_of(kind, context + extra, context, batch=batch)
    cut = order_of(kind, context + extra, context, batch=batch, drop_last=True)
    n, kept = full.samples_per_epoch, cut.samples_per_epoch
    if n >= batch:
        assert kept % batch == 0
        assert n - batch < kept <= n
    else:
        assert kept == n  # a text with less than one batch is still read
    for epoch in range(3):
        assert places(cut, epoch * kept, (epoch + 1) * kept) == places(full, epoch * n, epoch * n + kept)


@pytest.mark.parametrize("kind", ["windows", "phased", "places"])
def test_any_place_in_a_billion_windows_is_found_at_once(kind: Any) -> None:
    context = 1_024
    tokens = 10**9 * context + context
    order = order_of(kind, tokens, context)
    assert abs(order.samples_per_epoch - 10**9) <= 1
    numbers = np.random.default_rng(1).integers(0, 50 * 10**9, 1_000)
    with within(1):
        found = np.concatenate([order.places(numbers[place : place + 1]) for place in range(1_000)])
    tracemalloc.start()
    for place in range(100):
        order.places(numbers[place : place + 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000
    assert found.min() >= 0
    assert found.max() + context + 1 <= tokens
    assert len(set(found.tolist())) >= 999
    assert len(np.unique(found // (tokens // 10))) == 10  # from the whole of the text


def test_a_permutation_reaches_every_number_once() -> None:
    for size in range(1, 301):
        taken = permute(np.arange(size), size, key=size * 7919)
        assert sorted(taken.tolist()) == list(range(size)), size


@examples(3_000)
@given(st.integers(1, 5_000), st.integers(0, 2**63 - 1))
def test_any_key_permutes_any_size(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 7, 16, 50])
@pytest.mark.parametrize("element", [0, -1])
def test_over_many_keys_an_element_lands_everywhere_alike(size: int, element: int) -> None:
    keys = np.random.default_rng(size).integers(0, 2**63 - 1, 100 * size)
    landed = [permute(np.array([element % size]), size, int(key)).item() for key in keys]
    counts = np.bincount(landed, minlength=size)
    # Chi-squared has a mean of its degrees of freedom, and twice that as variance.
    freedom = size - 1
    assert ((counts - 100) ** 2 / 100).sum() < freedom + 5 * np.sqrt(2 * freedom) + 5


def test_neighbours_do_not_stay_together() -> None:
    size = 10_000
    taken = permute(np.arange(size), size, key=5)
    assert abs(np.corrcoef(np.arange(size), taken)[0, 1]) < 0.05
    assert abs(np.corrcoef(taken[:-1], taken[1:])[0, 1]) < 0.05
    assert (abs(np.diff(taken)) == 1).sum() < 15  # chance alone gives two


@pytest.mark.parametrize("kind", ["windows", "phased", "places"])
def test_batches_are_windows_of_the_text_and_targets_are_one_on(
    kind: Any, some_text: str, text_file: Path, prepared: Callable[..., Shards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 1_000)
    tokens = prepared(text_file).split("train")
    order = SampleOrder(OrderConfig(kind=kind), 1, "data", len(tokens), 16)
    loader = Loader(tokens, order, torch.device("cpu"))
    data = some_text.encode()
    for first in (0, 7, order.samples_per_epoch - 3, 10 * order.samples_per_epoch):
        inputs, targets = loader.take(first, 5)
        assert (inputs.shape, targets.shape, inputs.dtype) == ((5, 16), (5, 16), torch.int64)
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        for row, place in enumerate(order.places(np.arange(first, first + 5))):
            assert bytes(inputs[row].tolist()) == data[place : place + 16]
            assert bytes(targets[row].tolist()) == data[place + 1 : place + 17]


def test_a_batch_is_its_slices(text_file: Path, prepared: Callable[..., Shards]) -> None:
    tokens = prepared(text_file).split("train")
    order = SampleOrder(OrderConfig(), 1, "data", len(tokens), 16)
    loader = Loader(tokens, order, torch.device("cpu"))
    whole = loader.take(3, 8)
    slices = [loader.take(3, 2), loader.take(5, 5), loader.take(10, 1)]
    for both in (0, 1):
        assert torch.equal(whole[both], torch.cat([each[both] for each in slices]))
