"""Tiktoken's vocabularies by name, judged by tiktoken. Its ranks are large, so most tests make some of their own; where
the published files are among the test data, these are compared as well."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public as published
import tokenizers
from hypothesis import given
from texts_at_hand import any_text, real_texts
from tokenizers import models, pre_tokenizers, trainers

import hostile
from effort import examples, tries
from hornbook import cli
from hornbook.base.errors import UserError
from hornbook.recipes import vocabulary_of
from hornbook.shards.format import Shards
from hornbook.text import encodings, gpt2
from hornbook.text.encoder import SlowEncoder, fastest_encoder
from hornbook.text.encodings import ENCODINGS
from hornbook.text.gpt2 import RanksFile, byte_letters
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from hornbook.train.config import RunConfig

MERGES = 600


def as_ranks_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


def of_file(path: Path) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, path.read_bytes().splitlines())}


def arguments_of(name: str, ranks: dict[bytes, int]) -> tuple[dict[str, Any], tuple[str, str]]:
    """What tiktoken makes an encoding of, with ranks of ours in place of those that it would fetch, and from where."""
    asked: list[tuple[str, str]] = []

    def load(url: str, expected_hash: str) -> dict[bytes, int]:
        asked.append((url, expected_hash))
        return ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_tiktoken_bpe", load)
        arguments = published.ENCODING_CONSTRUCTORS[name]()
    return arguments, asked[0]


@pytest.fixture(scope="module")
def learned_ranks() -> dict[bytes, int]:
    """The bytes, then tokens merged as byte pairs are, from words in every script and case; and one that is only met
    whole."""
    words = "I'm we'LL It'S naïve ÉCOLE été Straße 日本語 ελληνικά русский हिन्दी 12345 \r\n\r\n  \t // {} ()\n\n"
    text = [" ".join(words.split(" ")[place:] + words.split(" ")[:place]) for place in range(20)]
    text += [path.read_text() for path in [Path(tiktoken.__file__), Path(base64.__file__)]]
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(byte_letters())
    learner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    )
    to_byte = {letter: byte for byte, letter in enumerate(byte_letters())}
    found = sorted(learner.get_vocab().items(), key=lambda each: each[1])
    ranks = {bytes(to_byte[letter] for letter in token): rank for token, rank in found}
    return ranks | {b"zqxjk": len(ranks)}


@pytest.fixture(scope="module", params=list(ENCODINGS))
def pair(
    request: pytest.FixtureRequest, learned_ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Ours and tiktoken's, of the same ranks, special tokens and way of cutting."""
    name = request.param
    specials = {each: len(learned_ranks) + 5 + 3 * place for place, each in enumerate(ENCODINGS[name].specials)}
    path = tmp_path_factory.mktemp("ranks") / f"{name}.tiktoken"
    path.write_bytes(as_ranks_file(learned_ranks))
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    arguments, _ = arguments_of(name, learned_ranks)
    judge = tiktoken.Encoding(
        name, **{"pat_str": arguments["pat_str"], "mergeable_ranks": learned_ranks, "special_tokens": specials}
    )
    with pytest.MonkeyPatch.context() as patch:
        ours = replace(ENCODINGS[name], ranks=RanksFile(path.name, size, digest), specials=specials)
        patch.setitem(encodings.ENCODINGS, name, ours)
        return Tokenizer(encodings.encoding_named(name, str(path))), judge


@examples(2_000)
@given(text=any_text)
def test_any_text_has_tiktokens_ids_and_comes_back(text: str, pair: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, judge = pair
    ids = ours.encode(text)
    assert ids == judge.encode_ordinary(text)
    assert ours.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    ["zqxjk", " zqxjk zqxjkz", "I'LL I'ſ x'S", "\n  ", "a\r\n\r\n b  \n", "1234567", "path//\n/x", "ǅungla ʼn ²½Ⅻ"],  # noqa: RUF001
)
def test_what_the_ways_of_cutting_differ_in(text: str, pair: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    assert pair[0].encode(text) == pair[1].encode_ordinary(text)


def test_real_text_has_tiktokens_ids_by_every_encoder(
    pair: tuple[Tokenizer, tiktoken.Encoding], test_data: Path
) -> None:
    texts = [text[:20_000] for text in real_texts(test_data)[: tries(20, 60)]]
    expected = pair[1].encode_ordinary_batch(texts, num_threads=2)
    for encoder in (fastest_encoder(pair[0]), SlowEncoder(pair[0])):
        ids, places = encoder.encode([text.encode() for text in texts])
        assert [ids[one:other].tolist() for one, other in pairwise(places)] == expected


def test_special_tokens_have_tiktokens_numbers(pair: tuple[Tokenizer, tiktoken.Encoding], tmp_path: Path) -> None:
    ours, judge = pair
    assert (ours.end_of_text, ours.vocab_size) == (judge.eot_token, judge.n_vocab)
    text = "a" + "b".join(sorted(judge.special_tokens_set))
    assert ours.encode(text) == judge.encode_ordinary(text)
    assert ours.encode(text, specials=True) == judge.encode(text, allowed_special="all")
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_table_tells_what_tiktoken_tells(name: str, learned_ranks: dict[bytes, int]) -> None:
    arguments, (url, digest) = arguments_of(name, learned_ranks)
    ours = ENCODINGS[name]
    assert (f"{gpt2.RANKS_AT}/{ours.ranks.name}", ours.ranks.sha256) == (url, digest)
    assert ours.specials == arguments["special_tokens"]
    last = arguments.get("explicit_n_vocab", max(arguments["special_tokens"].values()) + 1)
    assert ours.entries == last
    config = RunConfig.model_validate({"tokenizer": {"kind": name}, "train": {"steps": 1}})
    assert vocabulary_of(config) == last


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_published_ranks_give_tiktokens_ids(name: str, test_data: Path) -> None:
    path = test_data / f"{name}.tiktoken"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the test data")
    judge = tiktoken.Encoding(**arguments_of(name, of_file(path))[0])
    ours = train_tokenizer(TokenizerConfig(kind=name, ranks_file=str(path)), [], 0)
    assert (ours.vocab_size, ours.end_of_text) == (judge.n_vocab, judge.eot_token)
    assert ours.vocab_size == ENCODINGS[name].entries
    for text in (each[:100_000] for each in real_texts(test_data)[:20]):
        assert ours.encode(text) == judge.encode_ordinary(text)


@pytest.fixture
def small_encoding(learned_ranks: dict[bytes, int], monkeypatch: pytest.MonkeyPatch) -> Callable[[], bytes]:
    data = as_ranks_file(learned_ranks)
    ranks = RanksFile("cl100k_base.tiktoken", len(data), hashlib.sha256(data).hexdigest())
    small = replace(ENCODINGS["cl100k_base"], ranks=ranks, specials={encodings.END: len(learned_ranks)})
    monkeypatch.setitem(encodings.ENCODINGS, "cl100k_base", small)
    return lambda: data


def test_a_text_is_prepared_with_ranks_that_are_fetched_once(
    small_encoding: Callable[[], bytes],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    words = ["prepare", str(text_file), "--tokenizer.kind", "cl100k_base", "--out"]
    with hostile.Server() as server:
        server.contents["/encodings/cl100k_base.tiktoken"] = small_encoding()
        monkeypatch.setattr(gpt2, "RANKS_AT", server.url("/encodings"))
        assert cli.main([*words, str(tmp_path / "one")]) == 0
        assert "fetching the vocabulary cl100k_base" in capsys.readouterr().err
        asked = len(server.asked)
        assert cli.main([*words, str(tmp_path / "two")]) == 0
        assert len(server.asked) == asked == 1
    shards = Shards.open(tmp_path / "two")
    assert shards.manifest["tokenizer"] == "cl100k_base"
    begins = shards.tokenizer.decode(shards.split("train").read(0, 300).tolist())
    assert len(begins) > 300
    assert text_file.read_text().startswith(begins)


def test_other_ranks_than_the_published_are_refused(small_encoding: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(small_encoding()[:-2] + b"0\n")
    with pytest.raises(UserError, match="sha256"):
        train_tokenizer(TokenizerConfig(kind="cl100k_base", ranks_file=str(tmp_path / "mine")), [], 0)
    with pytest.raises(ValueError, match="combination"):
        TokenizerConfig(kind="bpe", ranks_file="mine")
