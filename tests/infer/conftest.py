"""A model with weights drawn at random, alone and in a folder with the tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.model.config import classic, modern
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from spread import spread

SIZES = {"vocab_size": 257, "n_layer": 2, "n_head": 2, "n_embd": 16}


@pytest.fixture
def untaught() -> Callable[..., GPT]:
    """`untaught("classic", context=16)`: opinionated about every token, for no reason."""

    def build(preset: str = "modern", **sizes: Any) -> GPT:
        return spread(untrained({"classic": classic, "modern": modern}[preset](**SIZES | sizes)), std=0.3)

    return build


@pytest.fixture
def speaker(untaught: Callable[..., GPT], tmp_path: Path) -> Speaker:
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(untaught(context=16), train_tokenizer(TokenizerConfig(kind="byte"), [], 0), folder)
    return load_speaker(folder, device="cpu")
