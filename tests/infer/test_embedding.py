"""The embedding of a text, beside the hidden states that transformers has of the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hornbook.exchange.export import export_model
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer

TEXT = "Some words."


@pytest.mark.parametrize("preset", ["classic", "modern"])
def test_it_is_what_transformers_has_before_the_head(preset: str, untaught: Callable[..., GPT], tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    save_model(untaught(preset, context=16), train_tokenizer(TokenizerConfig(kind="byte"), [], 0), folder)
    out = export_model(folder, "hf", tmp_path / "theirs")
    found = load_speaker(folder, device="cpu").embed(TEXT)
    ids = AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"]
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(out)(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert found.ids == ids
    assert found.per_token.shape == theirs.shape
    assert np.abs(found.per_token - theirs).max() < 1e-4
    assert np.abs(found.pooled - theirs.mean(axis=0)).max() < 1e-4


def test_a_text_longer_than_the_context_is_read_window_by_window(speaker: Speaker) -> None:
    text = "twenty-eight letters of text"
    found = speaker.embed(text)
    parts = [speaker.embed(text[:16]), speaker.embed(text[16:])]
    assert found.per_token.shape == (28, speaker.model.config.n_embd)
    assert np.allclose(found.per_token, np.concatenate([part.per_token for part in parts]), atol=1e-6)


def test_the_empty_text_is_the_beginning_of_a_document(speaker: Speaker) -> None:
    found = speaker.embed("")
    assert found.ids == [speaker.tokenizer.end_of_text]
    assert np.array_equal(found.pooled, found.per_token[0])
