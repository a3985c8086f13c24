from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.base.errors import UserError
from hornbook.infer import speaker as speaker_module
from hornbook.infer.decode import Chosen, Growing
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer


def takes(ids: Sequence[int]) -> Callable[..., Iterator[tuple[Growing, Chosen | None]]]:
    """A model that says this, and ends."""

    def grow(_: Any, texts: list[Growing], **__: Any) -> Iterator[tuple[Growing, Chosen | None]]:
        for token in ids:
            texts[0].tokens.append(token)
            yield texts[0], Chosen(token)
            if texts[0].ended:
                return
        texts[0].ended = "end_of_text"
        yield texts[0], None

    return grow


@pytest.mark.parametrize("prompt", ["", "ab", "x" * 40, "é🎈"])
def test_streamed_pieces_make_up_the_text(speaker: Speaker, prompt: str) -> None:
    pieces = list(speaker.stream(prompt, max_tokens=60, seed=4, temperature=1.5, top_p=None))
    assert all(pieces)
    assert "".join(pieces) == speaker.generate(prompt, max_tokens=60, seed=4, temperature=1.5, top_p=None)
    for piece in pieces:
        piece.encode()


@pytest.mark.parametrize("text", ["häßlich", "漢字とかな", "🎈👩‍🚀!", "a\r\né\x00"])
def test_streaming_never_breaks_a_character(speaker: Speaker, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker_module, "grow", takes(speaker.encode(text)))
    assert list(speaker.stream("")) == list(text)


def test_a_character_that_never_ends_is_marked_as_such(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker_module, "grow", takes(speaker.encode("a漢")[:-1]))
    assert list(speaker.stream("")) == ["a", "\ufffd"]


def test_the_first_piece_comes_before_the_last_token(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_two(model: Any, texts: list[Growing], **_: Any) -> Any:
        yield from ((texts[0], Chosen(token)) for token in speaker.encode("ab"))
        raise AssertionError("asked for more than was needed")

    monkeypatch.setattr(speaker_module, "grow", only_two)
    stream = speaker.stream("")
    assert [next(stream), next(stream)] == ["a", "b"]


def test_rules_are_the_samplers_knobs(speaker: Speaker) -> None:
    greedy = [speaker.generate("ab", max_tokens=20, seed=seed, temperature=0.0) for seed in (1, 2)]
    drawn = [speaker.generate("ab", max_tokens=20, seed=seed, temperature=2.0) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert len({*greedy, *drawn}) == 3
    with pytest.raises(UserError, match=r"^temprature: no such option; did you mean temperature\?$"):
        speaker.generate("ab", temprature=1.0)
    with pytest.raises(UserError, match="top-p"):
        speaker.generate("ab", top_p=1.5)


def test_encoding_and_scoring(speaker: Speaker) -> None:
    text = "häßlich " * 5
    ids = speaker.encode(text)
    assert speaker.decode(ids) == text
    scored = speaker.score(text)
    assert scored.tokens == len(ids) == len(text.encode())
    assert scored.bits_per_byte == pytest.approx(scored.loss / torch.log(torch.tensor(2.0)).item(), rel=1e-6)
    with pytest.raises(UserError, match="the text is empty"):
        speaker.score("")


def test_a_tokenizer_of_another_model_is_refused(speaker: Speaker, tmp_path: Path) -> None:
    folder = shutil.copytree(speaker.folder, tmp_path / "mixed")
    train_tokenizer(TokenizerConfig(kind="char"), ["abc"], 3).save(folder)
    with pytest.raises(UserError, match="they do not belong together"):
        load_speaker(folder, device="cpu")
