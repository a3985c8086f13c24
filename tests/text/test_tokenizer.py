from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from effort import examples, long
from hornbook.base.errors import UserError
from hornbook.text.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    Tokenizer,
    TokenizerConfig,
    byte_letters,
    train_tokenizer,
    vocab_size_for,
)
from yardstick import within

TRICKY = [
    "",
    " ",
    "\n",
    " leading and trailing  ",
    "tabs\tand\r\nline ends\n\n\n",
    "don't we'll I'M",
    "12345678901234567890 3.14 x=1;y=2",
    "zwölf Boxkämpfer, été, ¡señor!",
    "日本語とカタカナ한국어",
    "e\u0301 combining, \u200d joiner, \u00a0 no-break, \u2028 separator",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\x00\x01\x7f\x80\x9f\ufeff\uffff\ufffd",
    END_OF_TEXT,
    f"a{END_OF_TEXT}b {END_OF_TEXT} {UNKNOWN}{UNKNOWN}",
    "<|endoftext",
    "<s></s>[UNK]<pad><|im_start|>",
    "a" * 200,
    " " * 200,
    "def f(x):\n        return x  # comment\n",
]
KINDS = ["char", "byte", "bpe"]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def trained(some_text: str) -> dict[str, Tokenizer]:
    def train(kind: str, size: int | None = None) -> Tokenizer:
        config = TokenizerConfig.model_validate({"kind": kind, "vocab_size": size})
        return train_tokenizer(config, [some_text], len(some_text))

    return {"char": train("char"), "byte": train("byte"), "bpe": train("bpe", 700)}


@pytest.fixture(params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained[request.param]


@pytest.fixture(scope="module")
def folders(trained: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for kind, each in trained.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        each.save(found[kind], context=64)
    return found


@pytest.fixture(scope="module")
def judges(folders: dict[str, Path]) -> dict[str, PreTrainedTokenizerBase]:
    """What transformers makes of each folder, given nothing but the path."""
    return {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}


def bare(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_tokenizer_gives_the_same_ids_here_in_transformers_and_in_tokenizers(
    kind: str,
    trained: dict[str, Tokenizer],
    folders: dict[str, Path],
    judges: dict[str, PreTrainedTokenizerBase],
    some_text: str,
) -> None:
    ours, again = trained[kind], Tokenizer.load(folders[kind])
    raw = tokenizers.Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
    raw.encode_special_tokens = True  # the one setting that tokenizer.json has no place for
    for text in [*TRICKY, some_text]:
        ids = ours.encode(text)
        assert again.encode(text) == ids, text
        assert bare(judges[kind], text) == ids, text
        assert raw.encode(text, add_special_tokens=False).ids == ids, text
        assert judges[kind].decode(ids, skip_special_tokens=True) == again.decode(ids), text
    assert ours.encode_batch(TRICKY) == [ours.encode(text) for text in TRICKY]
    assert (again.fingerprint, again.vocab_size, again.end_of_text) == (
        ours.fingerprint,
        ours.vocab_size,
        ours.end_of_text,
    )


@examples(1_000)
@given(text=any_text)
@pytest.mark.parametrize("kind", list(KINDS))
def test_any_text_has_the_same_ids_in_transformers(
    kind: str, text: str, trained: dict[str, Tokenizer], judges: dict[str, PreTrainedTokenizerBase]
) -> None:
    assert bare(judges[kind], text) == trained[kind].encode(text)


@pytest.mark.parametrize("kind", list(KINDS))
def test_transformers_knows_the_special_tokens_and_the_length(
    kind: str, trained: dict[str, Tokenizer], judges: dict[str, PreTrainedTokenizerBase]
) -> None:
    judge, end = judges[kind], trained[kind].end_of_text
    assert (judge.eos_token_id, judge.bos_token_id, judge.pad_token_id) == (end, end, end)
    assert (len(judge), judge.model_max_length) == (trained[kind].vocab_size, 64)


@examples(20_000)
@given(text=any_text)
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_any_text_comes_back_unchanged(kind: str, text: str, trained: dict[str, Tokenizer]) -> None:
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text
    assert all(0 <= each < trained[kind].vocab_size and each != trained[kind].end_of_text for each in ids)


@examples(1_000)
@given(text=any_text)
def test_the_ids_of_a_byte_tokenizer_are_the_bytes(text: str, trained: dict[str, Tokenizer]) -> None:
    assert trained["byte"].encode(text) == list(text.encode())


@examples(1_000)
@given(data=st.data())
def test_a_char_tokenizer_gives_back_what_its_alphabet_can_write(data: st.DataObject) -> None:
    alphabet = data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), [alphabet], 1)
    text = data.draw(st.text(st.sampled_from(alphabet), max_size=150))
    assert tokenizer.vocab_size == len(set(alphabet)) + 2
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


def test_a_char_tokenizer_has_one_id_for_all_other_characters() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["abc"], 3)
    ids = tokenizer.encode("a?日b")
    assert ids[1] == ids[2] == tokenizer.vocab_size - 1
    assert tokenizer.decode(ids) == "ab"


def test_text_that_is_not_unicode_is_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="UTF-8"):
        tokenizer.encode(b"na\xefve".decode(errors="surrogateescape"))


def test_special_tokens_are_never_read_out_of_text(tokenizer: Tokenizer) -> None:
    text = f"{END_OF_TEXT} x{END_OF_TEXT}{END_OF_TEXT}{UNKNOWN}"
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert len(ids) > len(text) / 4


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one")
    assert tokenizer.decode([tokenizer.end_of_text, *ids, tokenizer.end_of_text]) == "one"


@pytest.mark.parametrize("unit", ["a", *(pytest.param(each, marks=long) for each in "\né !7")])
def test_a_megabyte_of_one_character_is_no_trap(unit: str, tokenizer: Tokenizer) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    with within(1):
        ids = tokenizer.encode(text)
    assert 0 < len(ids) <= 1_000_000


@examples(2_000)
@given(numbers=st.lists(st.integers(0, 2**16), max_size=40))
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_stream_of_any_ids_gives_what_decoding_at_once_gives(
    kind: str, numbers: list[int], trained: dict[str, Tokenizer]
) -> None:
    tokenizer = trained[kind]
    ids = [number % tokenizer.vocab_size for number in numbers]
    stream = tokenizer.stream()
    streamed = "".join([*map(stream.feed, ids), stream.end()])
    assert streamed == tokenizer.decode(ids)
    assert streamed == tokenizer.decode_bytes(ids).decode(errors="replace")


def test_a_character_goes_out_with_its_last_byte(trained: dict[str, Tokenizer]) -> None:
    stream = trained["byte"].stream()
    assert [stream.feed(each) for each in "a€".encode()] == ["a", "", "", "€"]


def test_a_trained_vocabulary_has_the_size_asked_for_and_shortens_text(
    trained: dict[str, Tokenizer], some_text: str
) -> None:
    assert trained["bpe"].vocab_size == 700
    assert len(trained["bpe"].encode(some_text)) < 0.6 * len(some_text)


def test_the_same_text_gives_the_same_vocabulary(some_text: str, trained: dict[str, Tokenizer]) -> None:
    again = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=700), [some_text], len(some_text))
    assert again.fingerprint == trained["bpe"].fingerprint
    smaller = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=699), [some_text], len(some_text))
    assert smaller.fingerprint != again.fingerprint


def test_a_text_that_names_the_end_of_text_trains_like_any_other() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe"), [f"a {END_OF_TEXT} b\n" * 500], 1)
    ids = tokenizer.encode(f"a {END_OF_TEXT} b")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == f"a {END_OF_TEXT} b"


def test_vocabularies_grow_with_the_text_within_bounds() -> None:
    sizes = [vocab_size_for(10**power) for power in range(12)]
    assert sizes == sorted(sizes)
    assert (min(sizes), max(sizes)) == (512, 32_768)
    assert vocab_size_for(0) == 512


def test_only_a_trained_vocabulary_has_a_size_to_choose() -> None:
    for kind in ("char", "byte"):
        with pytest.raises(ValueError, match="combination"):
            TokenizerConfig.model_validate({"kind": kind, "vocab_size": 300})


def test_the_letters_of_bytes_are_those_of_gpt2() -> None:
    """Against the alphabet of the tokenizers library, and transformers' table."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert dict(enumerate(byte_letters())) == bytes_to_unicode()
    assert set(byte_letters()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def write(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer.json").write_text(text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\0"),
        write(""),
        write("{}"),
        write("[" * 10_000),
        lambda folder: tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(folder / "tokenizer.json")),
    ],
)
def test_what_is_no_tokenizer_is_told_in_one_line(
    spoil: Callable[[Path], object], tmp_path: Path, trained: dict[str, Tokenizer]
) -> None:
    trained["byte"].save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize("end", ["<|end_of_text|>", "<|bos|>"])
def test_vocabularies_of_other_models_end_a_document_by_their_own_token(end: str, tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[end], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    theirs.train_from_iterator(["a text and another text"] * 9, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.end_of_text == theirs.token_to_id(end)
    assert ours.decode([*ours.encode("another \u00e9 text"), ours.end_of_text]) == "another \u00e9 text"


LLAMA = {"single": "<s> $A", "special_tokens": [("<s>", 1)]}
T5 = {"single": "$A <end>", "special_tokens": [("<end>", 2)]}


def as_llama_has_it(folder: Path, template: dict[str, Any], end: str = "</s>") -> tokenizers.Tokenizer:
    """Words with the blank before them, bytes for characters that are not known, and no end by a name of ours."""
    specials, blank, merges = ["<unk>", "<s>", end], "\u2581", [("\u2581", "w"), ("o", "r")]
    entries = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581dehorstw", *map("".join, merges)]
    vocabulary = {entry: token for token, entry in enumerate(entries)}
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    theirs.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend(blank), tokenizers.normalizers.Replace(" ", blank)]
    )
    decoders = tokenizers.decoders
    theirs.decoder = decoders.Sequence(
        [decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    theirs.add_special_tokens(specials)
    theirs.post_processor = tokenizers.processors.TemplateProcessing(**template)
    theirs.save(str(folder / "tokenizer.json"))
    return theirs


@pytest.mark.parametrize(
    "text", ["other words", "  two  blanks ", "w\u00f6rter \u65e5\u672c\n\nand \U0001f600", " ", "s\n"]
)
def test_a_vocabulary_like_llamas_gives_the_text_back_as_its_own_decoder_does(text: str, tmp_path: Path) -> None:
    theirs = as_llama_has_it(tmp_path, LLAMA)
    ours = Tokenizer.load(tmp_path)
    assert (ours.end_of_text, ours.opening, ours.keeps_text) == (theirs.token_to_id("</s>"), [1], True)
    ids = [*ours.encode_prompt(text), ours.end_of_text]
    assert ids[:-1] == theirs.encode(text).ids
    assert ours.decode(ids) == theirs.decode(ids) == text
    stream = ours.stream()
    assert "".join(map(stream.feed, ids)) + stream.end() == text
    assert ours.stream(continues=True).feed(ours.encode("words")[0]).startswith(" ")


def test_where_no_token_is_special_a_text_is_cut_as_ever(tmp_path: Path) -> None:
    """Also where special tokens are to be read out of it."""
    entries = {"</s>": 0, "a": 1, "b": 2, "ab": 3}
    tokenizers.Tokenizer(tokenizers.models.BPE(entries, [("a", "b")])).save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("abba", specials=True) == ours.encode("abba") == [3, 2, 1]


def test_what_is_put_after_a_text_is_its_end_and_does_not_open_it(tmp_path: Path) -> None:
    theirs = as_llama_has_it(tmp_path, T5, end="<end>")
    assert theirs.encode("").ids == [2]
    ours = Tokenizer.load(tmp_path)
    assert (ours.opening, ours.end_of_text) == ([], 2)


def test_a_folder_tells_which_token_ends_a_text(tmp_path: Path) -> None:
    as_llama_has_it(tmp_path, LLAMA, end="<fin>")
    with pytest.raises(UserError, match=r"tokenizer\.json: has no <\|endoftext\|> token, .*nor tells another"):
        Tokenizer.load(tmp_path)
    told = [{"eos_token": "<fin>"}, {"eos_token": {"content": "<fin>", "lstrip": False}}]
    found = []
    for each in told:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(each))
        found.append(Tokenizer.load(tmp_path))
    again = train_tokenizer(TokenizerConfig(kind="file", file=str(tmp_path)), [], 0)
    (tmp_path / "saved").mkdir()
    again.save(tmp_path / "saved")
    found += [again, Tokenizer.load(tmp_path / "saved")]
    assert {(each.end_of_text, each.fingerprint) for each in found} == {(2, found[0].fingerprint)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"}))
    assert Tokenizer.load(tmp_path).fingerprint != again.fingerprint
