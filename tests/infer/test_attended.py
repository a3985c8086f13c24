"""The weights of attention, beside those that transformers has of the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hornbook.base.errors import UserError
from hornbook.exchange.export import export_model
from hornbook.infer.attended import attended_by
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer

TEXT = "Some words."


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("classic", {}), ("modern", {}), ("modern", {"n_head": 4, "n_kv_head": 2})],
    ids=["gpt2", "qwen3", "grouped"],
)
def test_they_are_those_of_transformers(
    preset: str, sizes: dict[str, Any], untaught: Callable[..., GPT], tmp_path: Path
) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    save_model(untaught(preset, context=16, **sizes), train_tokenizer(TokenizerConfig(kind="byte"), [], 0), folder)
    out = export_model(folder, "hf", tmp_path / "theirs")
    found = load_speaker(folder, device="cpu").attention(TEXT)
    ids = AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    with torch.no_grad():
        theirs = torch.cat(model(torch.tensor([ids]), output_attentions=True).attentions).numpy()
    assert found.ids == ids
    assert found.weights.shape == theirs.shape
    assert np.abs(found.weights - theirs).max() < 1e-5
    assert 0.1 < found.weights[..., -1, :].max() < 0.99  # neither even nor all on one


def test_the_last_token_alone_is_the_last_row(speaker: Speaker) -> None:
    whole = speaker.attention(TEXT)
    alone = attended_by(speaker.model, whole.ids, last=1)
    assert np.allclose(alone.weights, whole.weights[:, :, -1:], atol=1e-6)


def test_a_text_beyond_the_context_is_refused(speaker: Speaker) -> None:
    with pytest.raises(UserError, match="reads 16 at a time"):
        speaker.attention("twenty-eight letters of text")
