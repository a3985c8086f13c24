"""Models of odd sizes with weights that hide nothing: no zeros, no norm at one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

PRESETS = {"classic": classic, "modern": modern}


@pytest.fixture
def random_model() -> Callable[..., GPT]:
    """`random_model("classic", n_embd=24, ...)`: every weight drawn at random, ready to speak."""

    def build(shape: str | ModelConfig, **sizes: Any) -> GPT:
        config = PRESETS[shape](**sizes) if isinstance(shape, str) else shape
        torch.manual_seed(0)
        model = GPT(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.15)
                if parameter.ndim == 1:
                    parameter.add_(1.0)
        return model

    return build


@pytest.fixture(scope="session")
def tokenizers_of(some_text: str) -> dict[str, Tokenizer]:
    configs = {
        "char": TokenizerConfig(kind="char"),
        "byte": TokenizerConfig(kind="byte"),
        "bpe": TokenizerConfig(kind="bpe", vocab_size=300),
    }
    return {kind: train_tokenizer(config, [some_text], len(some_text)) for kind, config in configs.items()}


@pytest.fixture
def saved(tmp_path: Path, tokenizers_of: dict[str, Tokenizer]) -> Callable[[GPT], Path]:
    """A model in a folder, with a tokenizer that need not fit it."""

    def save(model: GPT) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        save_model(model, tokenizers_of["byte"], folder)
        return folder

    return save
