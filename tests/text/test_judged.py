"""The ids that preparation writes, beside those of `tokenizers` put together here from what SYSTEMS.md tells of each
kind: nothing but the vocabulary is taken from our own tokenizer. GPT-2's are judged by tiktoken, in test_gpt2.py."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from texts_at_hand import any_text, real_texts
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from effort import examples, long
from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.encoder import Encoder, fastest_encoder
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

KINDS = ["bpe", "wordpiece"]
LONGEST_WORD = 100


def judge_of(kind: str, tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    model = json.loads(tokenizer.to_json())["model"]
    if kind == "bpe":
        judge = tokenizers.Tokenizer(models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]))
        judge.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        judge.post_processor = processors.TemplateProcessing(
            "$A <|endoftext|>", special_tokens=[("<|endoftext|>", judge.token_to_id("<|endoftext|>"))]
        )
        return judge
    judge = tokenizers.Tokenizer(models.WordPiece(model["vocab"], unk_token="[UNK]"))
    control = normalizers.Replace(Regex(r"[\p{Cc}\p{Cf}\p{Cn}\p{Co}&&[^\s]]"), "")
    judge.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), control])
    judge.pre_tokenizer = pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    judge.post_processor = processors.TemplateProcessing("<|EOS|> $A <|EOS|>", special_tokens=[("<|EOS|>", 1)])
    return judge


Both = dict[str, tuple[Tokenizer, Encoder, tokenizers.Tokenizer]]


@pytest.fixture(scope="module")
def judged(some_text: str) -> Both:
    found: Both = {}
    for kind in KINDS:
        config = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 900})
        tokenizer = train_tokenizer(config, [some_text], len(some_text))
        found[kind] = tokenizer, fastest_encoder(tokenizer), judge_of(kind, tokenizer)
    return found


@pytest.mark.parametrize("kind", KINDS)
@examples(5_000)
@given(text=any_text)
def test_any_text_has_the_ids_of_the_judge(kind: str, text: str, judged: Both) -> None:
    tokenizer, encoder, judge = judged[kind]
    expected = judge.encode(text, add_special_tokens=False).ids
    assert encoder.encode([text.encode()])[0].tolist() == expected
    if kind == "bpe":
        assert tokenizer.decode(expected) == text


def plain_wordpiece(vocabulary: dict[str, int]) -> Callable[[str], list[int]]:
    """WordPiece as its paper tells it: of each word the longest entry that begins it, then of the rest."""
    known: dict[str, list[int]] = {}
    # To Python, numbers such as a half are parts of words, and marks and ties are not; Unicode has it the other way.
    numbers, marks = (
        "".join(each for each in map(chr, range(sys.maxunicode)) if unicodedata.category(each) in kinds)
        for kinds in (["No"], ["Mc", "Me", "Pc"])
    )
    words = re.compile(rf"(?:[^\W{numbers}]|[{marks}])+|(?:[^\w\s{marks}]|[{numbers}])+")

    def of_word(word: str) -> list[int]:
        ids, place = [], 0
        while place < len(word) <= LONGEST_WORD:
            for end in range(len(word), place, -1):
                token = vocabulary.get("##" * (place > 0) + word[place:end])
                if token is not None:
                    break
            else:
                return [vocabulary["[UNK]"]]
            ids.append(token)
            place = end
        return ids or [vocabulary["[UNK]"]]

    def of_text(text: str) -> list[int]:
        plain = "".join(
            each
            for each in unicodedata.normalize("NFD", text)
            if each.isspace() or (unicodedata.category(each)[0] != "C" and unicodedata.category(each) != "Mn")
        )
        ids: list[int] = []
        for word in words.findall(plain):
            if word not in known:
                known[word] = of_word(word)
            ids += known[word]
        return ids

    return of_text


def documents(shards: Shards, split: str, opens: bool) -> Iterator[list[int]]:
    """The ids of a split, cut after each end of text, which opens a document as well where the template says so."""
    tokens = shards.split(split)
    ids = tokens.read(0, len(tokens))
    (places,) = (ids == shards.tokenizer.end_of_text).nonzero()
    ends = [0, *((places[1::2] if opens else places) + 1).tolist()]
    assert ends[-1] == len(ids)
    yield from (ids[first:last].tolist() for first, last in pairwise(ends))


@pytest.mark.parametrize("kind", ["bpe", pytest.param("wordpiece", marks=long)])
def test_what_is_prepared_of_real_text_are_the_ids_of_the_judge(kind: str, test_data: Path, tmp_path: Path) -> None:
    """Megabytes of it, through a preparation."""
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = [text for text in real_texts(test_data) if "\r" not in text]
    texts = [
        half for text in texts for half in (text[: len(text) // 2], text[len(text) // 2 :])
    ]  # many, so none is cut
    texts = list(dict.fromkeys(text.removeprefix("\ufeff") for text in texts if text))
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, newline="")
    config: dict[str, Any] = {"kind": kind, "vocab_size": 4000, "train_bytes": 1_000_000}
    shards = prepare(
        source_from_path(folder), TokenizerConfig.model_validate(config), ShardsConfig(), tmp_path / "shards"
    )
    prepared = [deque(documents(shards, split, kind == "wordpiece")) for split in ("train", "val")]
    assert all(prepared)
    judge = judge_of(kind, shards.tokenizer)
    plainly = plain_wordpiece(judge.get_vocab())
    loaded = AutoTokenizer.from_pretrained(shards.folder)
    for number, (text, found) in enumerate(zip(texts, judge.encode_batch_fast(texts), strict=True)):
        assert found.ids in [split[0] for split in prepared if split], text[:100]
        next(split for split in prepared if split and split[0] == found.ids).popleft()
        if kind == "wordpiece":
            assert found.ids == [1, *plainly(text), 1]
            assert number % 100 or loaded.encode(text) == found.ids
        else:
            assert shards.tokenizer.decode(found.ids) == text
            assert number % 100 or [*loaded.encode(text, add_special_tokens=False), loaded.eos_token_id] == found.ids
    assert not any(prepared)
