"""Tokenizers for models that have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`letters(61)`: a folder with a tokenizer of 61 entries."""
    root = tmp_path_factory.mktemp("tokenizers")

    def build(entries: int) -> Path:
        folder = root / str(entries)
        if not folder.is_dir():
            folder.mkdir()
            text = "".join(map(chr, range(ord("A"), ord("A") + entries - 2)))
            train_tokenizer(TokenizerConfig(kind="char"), [text], 0).save(folder)
        return folder

    return build
