from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.shards import prepare as preparing
from hornbook.shards.format import Shards
from hornbook.shards.loader import Loader
from hornbook.shards.order import OrderConfig, SampleOrder


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
