from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hornbook.recipes import RECIPES
from hornbook.shards.order import SampleOrder
from hornbook.train.config import RunConfig
from hornbook.train.introduction import loaded
from hornbook.train.start import fit

VERDICT_TOKENS = (4_612, 534)


def told(config: RunConfig, tokens: int, val_tokens: int) -> str:
    return loaded(config, SampleOrder(config.order, 1, "data", tokens, config.window, config.sequences), val_tokens)


def test_the_verdicts_loaders_are_those_of_the_book() -> None:
    assert told(RECIPES["the-verdict"](), *VERDICT_TOKENS) == (
        "1 epoch = 9 batches of 2 x 256: 4,608 tokens; to validate, 1: 512 tokens"
    )


def test_tiny_shakespeare_has_82_batches_an_epoch() -> None:
    config = RECIPES["shakespeare-124m"]().with_(order={"kind": "windows", "drop_last": True})
    assert told(config, 338_025, 2000).startswith("1 epoch = 82 batches of")
    assert told(config.with_(order={"drop_last": False}), 338_025, 2000).startswith("1 epoch = 82.5 batches of")


@pytest.mark.parametrize("stride", [1, 100, 128, 256, 300])
def test_totals_with_a_stride_are_those_of_torchs_loader(stride: int) -> None:
    config = RECIPES["the-verdict"]().with_(order={"kind": "windows", "stride": stride, "drop_last": True})
    train, val = VERDICT_TOKENS
    windows = torch.stack([torch.arange(place, place + 256) for place in range(0, train - 256, stride)])
    shapes = [batch.shape for (batch,) in DataLoader(TensorDataset(windows), batch_size=2, drop_last=True)]
    apart = f", {stride} apart" if stride != 256 else ""
    assert told(config, train, val) == (
        f"1 epoch = {len(shapes):,} batches of 2 x 256{apart}: {sum(map(torch.Size.numel, shapes)):,} tokens; "
        f"to validate, 1: 512 tokens"
    )


def test_it_is_said_before_the_first_step_and_all_of_it_is_read(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(order={"stride": 16, "drop_last": True}, train={"steps": 1})
    fit(config, tmp_path / "run")
    said = capsys.readouterr().out
    line = said.index(" batches of 8 x 32, 16 apart: ")
    assert line < said.index("step 1")


def test_a_warm_up_as_long_as_the_run_is_doubted_before_it(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiny(train={"steps": 1}, schedule={"warmup_steps": 4}), tmp_path / "run")
    said = capsys.readouterr().err
    assert "a warm-up of 4 in a run of 1 steps peaks at 0.250 of the learning rate" in said
