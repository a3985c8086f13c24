"""A vocabulary is learned in time from any text; from an ordinary one, as if the trainer had seen it whole."""

from __future__ import annotations

import base64
import random
import re
import time

import pytest
import tokenizers
from hypothesis import given
from texts_at_hand import any_text

from effort import examples, tries
from hornbook.text import sample
from hornbook.text.encoder import fastest_encoder
from hornbook.text.sample import LETTERS_OR_DIGITS, WORDS, learnable
from hornbook.text.tokenizer import TokenizerConfig, byte_letters, train_tokenizer

CHANCE = random.Random(7)
SIZE = 300_000
# 400 kB of DNA took 99 seconds, and the time grew with the square of it.
PATHOLOGICAL = {
    "one character": "a" * SIZE,
    "newlines": "\n" * SIZE,
    "signs": "=" * SIZE,
    "dna": "".join(CHANCE.choices("ACGT", k=SIZE)),
    "base64": base64.b64encode(CHANCE.randbytes(SIZE * 3 // 4)).decode(),
    "base64 in lines": base64.encodebytes(CHANCE.randbytes(SIZE * 3 // 4)).decode(),
    "hexadecimal": CHANCE.randbytes(SIZE // 2).hex(),
    "chinese": "".join(CHANCE.choices([chr(code) for code in range(0x4E00, 0x5200)], k=SIZE // 3)),
}
CUTS = {
    "bpe": (LETTERS_OR_DIGITS, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "wordpiece": (WORDS, tokenizers.pre_tokenizers.Whitespace()),
}


def ordinary(some_text: str) -> dict[str, str]:
    """Texts of people and programs, among them some without lines or blanks to cut at."""
    chance = random.Random(1)  # of its own: the same text whichever tests ran before
    clauses = ["".join(chance.choices("的一是不了人我在有他", k=chance.randrange(3, 40))) for _ in range(3_000)]
    return {
        "python": some_text,
        "without line ends": some_text.replace("\n", " "),
        "without blanks": re.sub(r"\s+", ",", some_text),
        "chinese": "\uff0c".join(clauses),
        "rulers": "".join(f"{'=' * 300}\n{line}\n{' ' * 300}|\n" for line in some_text.splitlines()[:500]),
    }


@pytest.mark.parametrize("name", ordinary(""))
def test_an_ordinary_text_gives_the_vocabulary_that_the_trainer_learns_from_it_whole(name: str, some_text: str) -> None:
    text = ordinary(some_text)[name]
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(byte_letters()), show_progress=False
    )
    whole.train_from_iterator([text], trainer)
    ours = train_tokenizer(TokenizerConfig(vocab_size=700), [text], len(text))
    assert ours._inner.get_vocab() == whole.get_vocab()


@examples(200)
@given(text=any_text)
@pytest.mark.parametrize("kind", CUTS)
def test_no_piece_crosses_the_end_of_a_block(kind: str, text: str) -> None:
    pieces = CUTS[kind][1]
    for limit in range(1, min(len(text), 100), 5):
        place = sample._place_before("x" * 2_000 + text, 2_000 + limit) - 2_000
        if place != limit and place > 0:  # one of its own choice
            parts = [each for part in (text[:place], text[place:]) for each, _ in pieces.pre_tokenize_str(part)]
            assert parts == [each for each, _ in pieces.pre_tokenize_str(text)]


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_what_a_trainer_is_given_is_bounded(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "NEW_BYTES", 120_000)
    pieces, cut = CUTS[kind]
    given = list(learnable([PATHOLOGICAL[name]], pieces))
    words = {word for block in given for word, _ in cut.pre_tokenize_str(block)}
    assert max(map(len, words), default=0) <= 4 * sample.LONGEST_PIECE  # each character may be four letters for bytes
    assert sum(map(len, words)) < 2 * (120_000 + SIZE / sample.NEW_SHARE)
    assert sum(map(len, given)) > 10_000


def test_what_is_not_new_is_taken_after_what_is(some_text: str) -> None:
    strange = PATHOLOGICAL["dna"] * 7  # each block of it another
    given = "".join(learnable([strange, some_text * 20], LETTERS_OR_DIGITS))
    assert given.count("def ") >= 19 * some_text.count("def ")


def seconds_to_learn_and_encode(kind: str, text: str) -> float:
    began = time.process_time()
    size = None if kind == "char" else 600
    tokenizer = train_tokenizer(TokenizerConfig.model_validate({"kind": kind, "vocab_size": size}), [text], len(text))
    ids = tokenizer.encode(text)
    took = time.process_time() - began
    if kind == "bpe":
        assert tokenizer.decode(ids) == text
        assert fastest_encoder(tokenizer).encode([text.encode()])[0].tolist() == ids
    return took


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char"])
def test_learning_takes_no_more_than_some_times_what_an_ordinary_text_takes(kind: str, some_text: str) -> None:
    ordinary_takes = seconds_to_learn_and_encode(kind, (some_text * 2)[:100_000])
    names = tries(["one character", "dna", "base64 in lines"], [*PATHOLOGICAL])
    took = {name: seconds_to_learn_and_encode(kind, PATHOLOGICAL[name][:100_000]) for name in names}
    assert {name: each for name, each in took.items() if each > 20 * ordinary_takes + 1} == {}
