"""A tokenizer.json that was made to do harm is refused in one line, and in no others; those of real models are not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from hornbook.base.errors import LONGEST_LINE, UserError
from hornbook.text.description import MOST_GROWTH, tamed
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACE = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def replace(pattern: str, content: str, how: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {how: pattern}, "content": content}


def sequence(*parts: dict[str, Any], of: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", of: list(parts)}


def template(count: int) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": [TEXT] * count, "pair": [TEXT, TEXT], "special_tokens": {}}


def precompiled(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def spoiled(whole: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """What to put into a description, and a word of the line that refuses it."""
    vocab = whole["model"]["vocab"]
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    return {
        "four that grow": ({"normalizer": sequence(*[replace("a", "a" * 100)] * 4)}, "times as long"),
        "one that grows": ({"normalizer": replace("a", "a" * 100)}, "times as long"),
        "nested": ({"normalizer": sequence(*[sequence(*[replace("aa", "aaaa")] * 3)] * 3)}, "times as long"),
        "a pattern that grows": ({"normalizer": replace(".", "a" * 100, "Regex")}, "times as long"),
        "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "a" * 1000}}, "times as long"),
        "long forms": ({"normalizer": precompiled(bytes(4) + b"a" * 1000 + b"\0")}, "times as long"),
        "bytes of bytes": ({"pre_tokenizer": sequence(*[BYTES] * 30, of="pretokenizers")}, "times as long"),
        "blank upon blank": ({"pre_tokenizer": sequence(*[SPACE] * 3000, of="pretokenizers")}, "times as long"),
        "both": ({"normalizer": replace("a", "a" * 9), "pre_tokenizer": BYTES}, "times as long"),
        "the text again": ({"post_processor": template(1000)}, "template"),
        "and again": ({"post_processor": sequence(*[template(2)] * 30, of="processors")}, "template"),
        "a large id": ({"vocab": vocab | {"a": 4_000_000_000}}, "without a gap"),
        "a gap": ({"vocab": vocab | {"a": len(vocab)}}, "without a gap"),
        "an id twice": ({"vocab": vocab | {"a": vocab["b"]}}, "without a gap"),
        "no id": ({"vocab": vocab | {"a": -1}}, "not a tokenizer"),
        "a long entry": ({"vocab": vocab | {"a" * 100_000: len(vocab)}}, "characters"),
        "long words": (
            {"model": {"type": "WordPiece", "unk_token": "a", "vocab": vocab, "max_input_chars_per_word": 10**9}}
            | {"model.continuing_subword_prefix": "##"},
            "characters",
        ),
        "nothing replaced": ({"normalizer": replace("", "ab")}, "not a tokenizer"),
        "nothing replaced by pattern": ({"normalizer": replace("(?=a)", "ab", "Regex")}, "not a tokenizer"),
        "pieces of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "not a tokenizer"),
        "no forms": ({"normalizer": precompiled(b"abc")}, "not a tokenizer"),
        "padding": ({"padding": padding | {"strategy": {"Fixed": 4_000_000_000}}}, ""),
        "truncation": (
            {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 5}},
            "",
        ),
    }


@pytest.fixture(scope="module")
def whole(some_text: str) -> dict[str, Any]:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=400), [some_text], len(some_text))
    found: dict[str, Any] = json.loads(tokenizer.to_json())
    return found


@pytest.mark.parametrize("name", spoiled({"model": {"vocab": {"b": 0}}}))
def test_one_that_would_do_harm_is_refused_in_one_line_or_does_none(
    name: str, whole: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, refusal = spoiled(whole)[name]
    made = {**whole, "model": dict(whole["model"])}
    for key, value in changes.items():
        if key == "vocab" or "." in key:
            made["model"][key.rpartition(".")[2]] = value
        else:
            made[key] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(made))
    if refusal:
        with pytest.raises(UserError, match=refusal) as caught:
            Tokenizer.load(path)
        (line,) = caught.value.mistakes
        assert line.startswith(f"{path}: ")
        assert len(line) - len(str(tmp_path)) <= LONGEST_LINE
    else:
        assert Tokenizer.load(path).encode("return self") == tokenizers_ids(whole, "return self")
    assert capfd.readouterr() == ("", "")


def tokenizers_ids(whole: dict[str, Any], text: str) -> list[int]:
    return list(tokenizers.Tokenizer.from_str(json.dumps(whole)).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581"))},  # Llama
        {"normalizer": sequence({"type": "NFKC"}, replace(" {2,}", " ", "Regex")), "pre_tokenizer": SPACE},
        {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": sequence(
                {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
                {"type": "Digits", "individual_digits": True},
                BYTES | {"use_regex": False},
                of="pretokenizers",
            ),
        },  # Qwen, DeepSeek
        {"post_processor": sequence(BYTES, template(1), of="processors")},
    ],
)
def test_what_models_come_with_is_taken_as_it_is(parts: dict[str, Any], whole: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(whole | parts, indent=2))
    for text in ("some text,  and 1234 more", "\u00e9t\u00e9 \u65e5\u672c"):
        assert Tokenizer.load(path).encode(text) == tokenizers_ids(whole | parts, text)


@pytest.mark.parametrize("kind", ["bpe", "byte", "char", "wordpiece"])
def test_our_own_are_taken_as_they_are(kind: str, some_text: str) -> None:
    description = train_tokenizer(TokenizerConfig.model_validate({"kind": kind}), [some_text], 1).to_json()
    assert json.loads(tamed(description)) == json.loads(description)


def test_growth_is_bounded_and_not_forbidden() -> None:
    model = {"model": {"type": "BPE", "vocab": {}, "merges": []}}
    assert tamed(json.dumps(model | {"normalizer": replace("a", "a" * MOST_GROWTH)}))
    with pytest.raises(UserError, match="17 times"):
        tamed(json.dumps(model | {"normalizer": replace("a", "a" * (MOST_GROWTH + 1))}))
