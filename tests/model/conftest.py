"""Models of odd sizes with weights that hide nothing: no zeros, no norm at one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from spread import spread

PRESETS = {"classic": classic, "modern": modern}


@pytest.fixture
def random_model() -> Callable[..., GPT]:
    """`random_model("classic", n_embd=24, ...)`: every weight drawn at random, ready to speak."""

    def build(shape: str | ModelConfig, **sizes: Any) -> GPT:
        return spread(untrained(PRESETS[shape](**sizes) if isinstance(shape, str) else shape))

    return build


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[GPT], Path]:
    """A model in a folder, with a tokenizer of as many entries."""

    def save(model: GPT) -> Path:
        letters = "".join(map(chr, range(ord("A"), ord("A") + model.config.known_vocab_size - 2)))
        folder = tmp_path / "model"
        folder.mkdir()
        save_model(model, train_tokenizer(TokenizerConfig(kind="char"), [letters], len(letters)), folder)
        return folder

    return save
