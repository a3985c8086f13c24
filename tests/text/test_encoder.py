from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.text import encoder as encoding
from hornbook.text.encoder import EncoderFailed, SlowEncoder, fastest_encoder
from hornbook.text.tokenizer import END_OF_TEXT, Tokenizer, TokenizerConfig, train_tokenizer

any_documents = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=12)


@pytest.fixture(scope="module")
def trained(some_text: str) -> dict[str, Tokenizer]:
    kinds: list[dict[str, Any]] = [
        {"kind": "bpe", "vocab_size": 900},
        {"kind": "byte"},
        {"kind": "char"},
    ]
    configs = [TokenizerConfig.model_validate(each) for each in kinds]
    return {config.kind: train_tokenizer(config, [some_text], len(some_text)) for config in configs}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("bpe", "gigatoken"), ("byte", "bytes"), ("char", "tokenizers")],
)
def test_each_kind_has_its_fastest_encoder(kind: str, name: str, trained: dict[str, Tokenizer]) -> None:
    if name == "gigatoken":
        pytest.importorskip("gigatoken")
    assert fastest_encoder(trained[kind]).name == name


def test_only_the_special_tokens_are_cut_out_of_a_tokenizer(trained: dict[str, Tokenizer]) -> None:
    for tokenizer in trained.values():
        whole = json.loads(tokenizer.to_json())
        assert whole["added_tokens"]
        assert json.loads(encoding._without_special_tokens(tokenizer.to_json())) == whole | {"added_tokens": []}


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_ids_do_not_depend_on_the_number_of_cores(
    cores: int, trained: dict[str, Tokenizer], some_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "cores_to_use", lambda: cores)
    documents = [some_text[place : place + 3_000].encode() for place in range(0, len(some_text), 3_000)] * 9
    fast, slow = fastest_encoder(trained["bpe"]), SlowEncoder(trained["bpe"])
    for one, other in zip(fast.encode(documents), slow.encode(documents), strict=True):
        np.testing.assert_array_equal(one, other)


def test_words_are_not_remembered_for_ever(trained: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gigatoken")
    monkeypatch.setattr(encoding, "FORGET_AFTER_BYTES", 2_000)
    fast, begun = fastest_encoder(trained["bpe"]), []
    for batch in range(20):
        documents = [f"{batch} and {number} words".encode() for number in range(50)]
        ids, _ = fast.encode(documents)
        np.testing.assert_array_equal(ids, SlowEncoder(trained["bpe"]).encode(documents)[0])
        begun.append(fast._inner)  # type: ignore[attr-defined]
    assert 5 <= len(set(map(id, begun))) <= 10  # 20 batches of 700 to 900 bytes


@examples(2_000)
@given(texts=any_documents)
@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_fast_ids_are_those_of_tokenizers(kind: str, texts: list[str], trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained[kind]
    if "fast" not in vars(tokenizer):
        tokenizer.fast = fastest_encoder(tokenizer)  # type: ignore[attr-defined]
    ids, places = tokenizer.fast.encode([text.encode() for text in texts])  # type: ignore[attr-defined]
    found = [ids[first:last].tolist() for first, last in pairwise(places)]
    assert found == [tokenizer.encode(text) for text in texts]


def test_special_tokens_are_text_to_every_encoder(trained: dict[str, Tokenizer]) -> None:
    for tokenizer in trained.values():
        ids, _ = fastest_encoder(tokenizer).encode([f"a{END_OF_TEXT}b".encode(), END_OF_TEXT.encode()])
        assert tokenizer.end_of_text not in ids


def test_long_documents_have_the_same_ids(trained: dict[str, Tokenizer], some_text: str) -> None:
    tokenizer = trained["bpe"]
    documents = [(some_text * 12).encode(), b"", b"\n" * 300_000, some_text.encode()]
    fast, slow = fastest_encoder(tokenizer).encode(documents), SlowEncoder(tokenizer).encode(documents)
    np.testing.assert_array_equal(fast[0], slow[0])
    np.testing.assert_array_equal(fast[1], slow[1])


LETTERS = st.sampled_from(["ACGT", "a", "ab", "é", "ab日", "日本", "\n", " \n", "=", "-_", "7"])


@examples(200)
@given(parts=st.lists(st.tuples(LETTERS, st.integers(1, 9_000), st.integers(0, 9)), max_size=4))
def test_words_without_end_have_the_ids_that_they_have_whole(parts: list[tuple[str, int, int]], strange: Any) -> None:
    tokenizer, fast = strange
    text = "".join("".join(random.Random(seed).choices(letters, k=size)) + " end, " for letters, size, seed in parts)
    documents = [b"before", text.encode(), b"", text[:5_000].encode(), b"after"]
    found, slow = fast._encode(documents), SlowEncoder(tokenizer).encode(documents)
    np.testing.assert_array_equal(found[0], slow[0])
    np.testing.assert_array_equal(found[1], slow[1])


def test_words_without_end_are_encoded_in_stretches(strange: Any) -> None:
    _, fast = strange
    for letters in ("ACGT", "日本", "ab日"):
        text = "".join(random.Random(7).choices(letters, k=20_000)).encode()
        fast._inner.longest = 0
        fast._encode([text])
        assert 0 < fast._inner.longest < 3 * encoding.STRETCH


class Measuring:
    """Notes the longest document that it was given."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.longest = inner, 0

    def encode_batch(self, documents: list[bytes], parallel: bool) -> Any:
        self.longest = max(self.longest, *map(len, documents))
        return self._inner.encode_batch(documents, parallel=parallel)


@pytest.fixture(scope="module")
def strange() -> Iterator[tuple[Tokenizer, Any]]:
    """A vocabulary of texts that are one word, and its encoder with short stretches."""
    pytest.importorskip("gigatoken")
    chance = random.Random(7)
    texts = ["".join(chance.choices(letters, k=30_000)) for letters in ("ACGT", "ab日", "日本", "aé", "\n", "=-")]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=900), texts, 1)
    fast: Any = fastest_encoder(tokenizer)
    fast._inner = Measuring(fast._inner)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "STRETCH", 1_024)
        yield tokenizer, fast


def test_without_gigatoken_tokenizers_does_it(trained: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert fastest_encoder(trained["bpe"]).name == "tokenizers"


class Faulty:
    """Stands for a release of gigatoken with a mistake in it."""

    def __init__(self, inner: Any, harm: Any) -> None:
        self._inner, self._harm, self.broken = inner, harm, False

    def encode_batch(self, documents: list[bytes], parallel: bool) -> Any:
        return self._inner.encode_batch(self._harm(documents) if self.broken else documents, parallel=parallel)


def panic(documents: list[bytes]) -> list[bytes]:
    class PanicException(BaseException):
        pass

    raise PanicException("index out of bounds")


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("size", [50, 200_000], ids=["short", "long"])
@pytest.mark.parametrize("harm", [lambda documents: [each.upper() for each in documents], panic])
def test_an_encoder_that_differs_or_fails_is_found_out(
    harm: Any, size: int, at: int, trained: dict[str, Tokenizer], some_text: str
) -> None:
    pytest.importorskip("gigatoken")
    encoder = fastest_encoder(trained["bpe"])
    faulty = encoder._inner = Faulty(encoder._inner, harm)  # type: ignore[attr-defined]
    text = (some_text * 9).encode()
    documents = [*(text[place : place + size] for place in range(0, 400_000, size)), b""]
    assert len(documents[0]) == size
    for _ in range(at):
        encoder.encode(documents)
    faulty.broken = True
    with pytest.raises(EncoderFailed, match="gigatoken"):
        encoder.encode(documents)
