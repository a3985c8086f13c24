from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from texts_at_hand import any_text, real_texts
from transformers import AutoTokenizer

import hornbook.text.gpt2
import hostile
from effort import examples, long
from hornbook.base.errors import MachineError, UserError
from hornbook.text import gpt2 as ranking
from hornbook.text.encoder import SlowEncoder, fastest_encoder
from hornbook.text.gpt2 import R50K, RANKS, Merges, Ranks, gpt2_merges, merges_of, published_ranks
from hornbook.text.tokenizer import END_OF_TEXT, Tokenizer, TokenizerConfig, train_tokenizer
from yardstick import within

pytestmark = pytest.mark.xdist_group("gpt2")  # one vocabulary
# As tiktoken publishes it for r50k_base.
PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@pytest.fixture(scope="module")
def ranks_file(test_data: Path) -> Path:
    path = test_data / RANKS
    if not path.is_file():
        pytest.skip(f"no {RANKS} among the test data")
    return path


@pytest.fixture(scope="module")
def gpt2(ranks_file: Path) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="gpt2", ranks_file=str(ranks_file)), [], 0)


@pytest.fixture(scope="module")
def judge(ranks_file: Path) -> tiktoken.Encoding:
    lines = [line.split() for line in ranks_file.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("r50k", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


@examples(5_000)
@given(text=any_text)
def test_any_text_has_tiktokens_ids_and_comes_back(text: str, gpt2: Tokenizer, judge: tiktoken.Encoding) -> None:
    ids = gpt2.encode(text)
    assert ids == judge.encode_ordinary(text)
    assert gpt2.decode(ids) == text


def test_real_text_has_tiktokens_ids_by_every_encoder(
    gpt2: Tokenizer, judge: tiktoken.Encoding, test_data: Path
) -> None:
    texts = real_texts(test_data)
    expected = judge.encode_ordinary_batch(texts, num_threads=2)
    for encoder in (fastest_encoder(gpt2), SlowEncoder(gpt2)):
        ids, places = encoder.encode([text.encode() for text in texts])
        assert len(places) == len(texts) + 1
        for number, wanted in enumerate(expected):
            assert ids[places[number] : places[number + 1]].tolist() == wanted


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("the-verdict.txt", 5_145, [40, 367, 2885, 1464, 1807]),
        ("tinyshakespeare.txt", 338_025, [5962, 22307, 25, 198, 8421]),
    ],
)
def test_known_texts_have_their_known_tokens(
    name: str, count: int, first: list[int], gpt2: Tokenizer, test_data: Path
) -> None:
    ids = gpt2.encode((test_data / name).read_text())
    assert len(ids) == count
    assert ids[: len(first)] == first


def test_known_prompts_have_their_known_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Every effort moves you") == [6109, 3626, 6100, 345]
    assert gpt2.encode("He said we came here") == [1544, 531, 356, 1625, 994]
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)


def test_special_tokens_are_read_out_of_a_prompt_only_when_asked(gpt2: Tokenizer, judge: tiktoken.Encoding) -> None:
    for text in (END_OF_TEXT, f"a {END_OF_TEXT}\nb{END_OF_TEXT}{END_OF_TEXT}", "none", "<|endoftext"):
        assert gpt2.encode(text) == judge.encode_ordinary(text)
        assert gpt2.encode(text, specials=True) == judge.encode(text, allowed_special="all")
    assert gpt2.encode_prompt(END_OF_TEXT, specials=True) == gpt2.encode_prompt("") == [50256]
    assert gpt2.encode_prompt(END_OF_TEXT) == judge.encode_ordinary(END_OF_TEXT)


def test_transformers_loads_the_folder_with_the_same_ids(
    gpt2: Tokenizer, tmp_path: Path, some_text: str, test_data: Path
) -> None:
    gpt2.save(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in (some_text, (test_data / "the-verdict.txt").read_text(), f"x{END_OF_TEXT}y", "\u200d日本 🙂\r\n\t"):
        assert theirs.encode(text) == ours.encode(text) == gpt2.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, len(theirs)) == (50256, 50257)


def test_the_merges_are_those_that_transformers_recovers(ranks_file: Path) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

    letters = bytes_to_unicode()
    ours = [
        tuple("".join(letters[byte] for byte in part) for part in pair)
        for pair in merges_of(published_ranks(R50K, str(ranks_file)))
    ]
    _, theirs = TikTokenConverter(vocab_file=str(ranks_file), pattern=PIECES).extract_vocab_merges_from_model(
        str(ranks_file)
    )
    assert len(ours) == 50_000
    assert set(ours) <= set(theirs)  # theirs has every pair that makes a token


def test_merges_are_kept_and_a_damaged_copy_is_made_again(
    ranks_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    ranks = published_ranks(R50K, str(ranks_file))
    first = gpt2_merges(ranks)
    assert first == merges_of(ranks)
    (kept,) = (tmp_path / "tokenizers").iterdir()
    data = kept.read_bytes()
    for content in (data, data[:-1], b"\1" * len(data)):
        kept.write_bytes(content)
        assert gpt2_merges(ranks) == first
        assert kept.read_bytes() == data
    # Another process was quicker: what it wrote stays where it is.
    set_aside = sorted(kept.parent.iterdir())
    kept.unlink()

    def meanwhile(ranks: Ranks) -> Merges:
        kept.write_bytes(data)
        return first

    monkeypatch.setattr(hornbook.text.gpt2, "merges_of", meanwhile)
    assert gpt2_merges(ranks) == first
    assert sorted(kept.parent.iterdir()) == set_aside


@pytest.mark.parametrize("unit", ["\n", *(pytest.param(each, marks=long) for each in "a日 !é7")])
def test_a_megabyte_of_one_character_takes_under_a_second(unit: str, gpt2: Tokenizer) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    for encode in (gpt2.encode, lambda text: fastest_encoder(gpt2).encode([text.encode()])):
        with within(1):
            encode(text)


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("hornbook.base.download._pause", lambda seconds: None)
    return tmp_path / "home"


def test_ranks_are_fetched_once_where_no_file_is_named(
    ranks_file: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hostile.Server() as server:
        monkeypatch.setattr(ranking, "RANKS_AT", server.url("/ranks"))
        server.contents[f"/ranks/{RANKS}"] = ranks_file.read_bytes()
        server.tricks = [hostile.wrong_bytes, hostile.cut_after(300_000)]
        assert len(published_ranks(R50K, None)) == 50_256
        assert "836k bytes, once; kept in" in capsys.readouterr().err
        asked = len(server.asked)
        assert asked == 3
        assert len(published_ranks(R50K, None)) == 50_256
        assert len(server.asked) == asked
    assert (empty_home / "tokenizers" / RANKS).read_bytes() == ranks_file.read_bytes()
    assert len(published_ranks(R50K, None)) == 50_256  # and now there is nobody to ask


def test_ranks_that_do_not_come_are_one_line_with_the_mend(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "RANKS_AT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match=r"--tokenizer\.ranks-file r50k_base\.tiktoken") as caught:
        published_ranks(R50K, None)
    assert len(caught.value.mistakes) == 1
    with hostile.Server() as server:
        server.contents[f"/ranks/{RANKS}"] = b"?" * R50K.bytes
        monkeypatch.setattr(ranking, "RANKS_AT", server.url("/ranks"))
        with pytest.raises(MachineError, match="does not send the right file"):
            published_ranks(R50K, None)
    assert not (empty_home / "tokenizers" / RANKS).exists()


def test_other_ranks_than_the_published_are_refused(ranks_file: Path, tmp_path: Path) -> None:
    data = ranks_file.read_bytes()
    assert hashlib.sha256(data).hexdigest() == R50K.sha256
    for wrong in (b"", data[:-1], data.replace(b" 50255", b" 50254"), b"\0\1"):
        (tmp_path / RANKS).write_bytes(wrong)
        with pytest.raises(UserError, match="sha256") as caught:
            published_ranks(R50K, str(tmp_path / RANKS))
        assert len(caught.value.mistakes) == 1
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="ranks-file"):
            published_ranks(R50K, str(missing))


def test_knobs_of_other_kinds_are_refused() -> None:
    for knobs in ({"kind": "bpe", "ranks_file": "x"}, {"kind": "gpt2", "vocab_size": 500}, {"as_published": True}):
        with pytest.raises(ValueError, match="combination"):
            TokenizerConfig.model_validate(knobs)
