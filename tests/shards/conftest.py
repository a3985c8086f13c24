"""Texts and a way to prepare them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig

Prepare = Callable[..., Shards]


@pytest.fixture
def many_texts(tmp_path: Path) -> Path:
    """A folder of 200 short documents."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03}.txt").write_text(f"Document {number}: {'zwölf ' * (number % 7)}end.\n")
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    def build(
        path: Path, kind: str = "byte", val_fraction: float | None = None, out: str = "shards", **more: Any
    ) -> Shards:
        tokenizer = TokenizerConfig.model_validate({"kind": kind, **more})
        return prepare(source_from_path(path), tokenizer, ShardsConfig(val_fraction=val_fraction), tmp_path / out)

    return build
