"""Every format, alone and compressed, gives what was put into it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import tokenizers
from formats_at_hand import COMPRESS, RECORDS, as_csv, as_hdf5, as_json, as_jsonl, as_parquet, texts_of, zstd
from pyarrow import parquet

from effort import long
from hornbook.base.errors import UserError
from hornbook.text import streams
from hornbook.text.readers import source_from_path
from hornbook.text.streams import PIECE, Tally

TEXTS = [
    'Plain, with "quotes"',
    "two\nlines\n\tand a tab",
    "zwölf \U0001f600 漢字",
    "\\ud83d [{]}, ",
    "x" * 300_000,
    "\u2028\x0c.",
]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", RECORDS)
def test_every_format_gives_the_same_documents_through_every_compression(
    ending: str, compression: str, tmp_path: Path
) -> None:
    path = tmp_path / f"data{ending}{compression}"
    path.write_bytes(COMPRESS[compression](RECORDS[ending](TEXTS)))
    assert texts_of(path) == TEXTS
    assert texts_of(path, document="file") == ["".join(text + "\n" for text in TEXTS)]
    assert texts_of(path, max_documents=2) == TEXTS[:2]
    assert source_from_path(path).name == "data"


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", [".txt", ".md", ".rs", ".unheard-of"])
def test_a_text_is_one_document_or_one_on_each_line(ending: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}{compression}"
    path.write_bytes(COMPRESS[compression](b"\xef\xbb\xbfone\r\n\r\ntwo\rand\r\n"))
    assert texts_of(path) == ["one\n\ntwo\rand\n"]
    assert texts_of(path, document="line") == texts_of(path, document="row") == ["one", "two\rand"]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", RECORDS)
def test_byte_order_marks_and_windows_line_ends_are_no_part_of_the_text(
    ending: str, compression: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{ending}{compression}"
    data = RECORDS[ending](["one\r\ntwo", "three"])
    if ending != ".parquet":
        data = b"\xef\xbb\xbf" + data
        data = data if ending in (".csv", ".tsv") else data.replace(b"\n", b"\r\n")
    path.write_bytes(COMPRESS[compression](data))
    assert texts_of(path) == ["one\ntwo", "three"]


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
def test_streams_one_after_another_are_one_file(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    parts = [COMPRESS[compression](as_jsonl([text])) for text in TEXTS]
    path.write_bytes(b"".join(parts) + (b"\0" * 512 if compression in (".gz", ".xz") else b""))
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_what_is_decompressed_does_not_depend_on_the_size_of_the_blocks(
    compression: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "ä\r\n漢\U0001f600" * 500
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESS[compression](text.encode()))
    monkeypatch.setattr(streams, "BLOCK", size)
    assert texts_of(path) == [text.replace("\r\n", "\n")]


def test_the_field_is_text_or_the_only_one_that_holds_any_or_the_one_that_is_named(tmp_path: Path) -> None:
    rows = [{"n": 1, "story": "a", "more": 2}, {"n": 1, "story": "b", "more": 2}]
    two = [{"title": "t", "story": "a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("story\na\nb\n")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for ending in ("jsonl", "json", "csv", "parquet"):
        assert texts_of(tmp_path / f"a.{ending}") == ["a", "b"]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, two)))
    (tmp_path / "b.json").write_text(json.dumps(two))
    (tmp_path / "b.csv").write_text("title,story\nt,a\n")
    parquet.write_table(pyarrow.Table.from_pylist(two), tmp_path / "b.parquet")
    for ending in ("jsonl", "json", "csv", "parquet"):
        with pytest.raises(UserError, match=r"--text\.field with one of title, story"):
            texts_of(tmp_path / f"b.{ending}")
        assert texts_of(tmp_path / f"b.{ending}", field="story") == ["a"]
        with pytest.raises(UserError, match=r"'stroy'; it has title, story"):
            texts_of(tmp_path / f"b.{ending}", field="stroy")


def test_json_may_be_an_array_of_strings_one_object_or_objects_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for source, texts in [
        ('["a", "b"]', ["a", "b"]),
        ('{"text": "a"}', ["a"]),
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (' "a" ', ["a"]),
        ('[\n {"text": "a", "m": [[], {"x": "]"}]}\n,\n"b\\"]"\n]\n', ["a", 'b"]']),
    ]:
        path.write_text(source)
        assert texts_of(path) == texts


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_json_is_the_same_wherever_the_blocks_are_cut(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    texts = ['a\\b"c', "[", "]}", "\\", '"', "äöü", "\n"]
    path.write_bytes(as_json(texts))
    monkeypatch.setattr(streams, "BLOCK", size)
    monkeypatch.setattr("hornbook.text.records.text_only", lambda blocks: blocks)
    assert texts_of(path) == texts


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_what_is_not_utf8_stops_with_the_place_or_is_replaced_and_counted(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    good = "fine\ufffd" if ending == ".txt" else None
    if ending == ".txt":
        data = "fine\ufffd\nXX\n".encode()
    elif ending == ".parquet":
        data = _parquet_of_bytes(["fine\ufffd".encode(), b"\xff\xfe"])
    else:
        data = RECORDS[ending](["fine\ufffd", "XX"])
    path.write_bytes(data.replace(b"XX", b"\xff\xfe"))
    with pytest.raises(UserError, match=r"a\.\w+ (line|row) \d: not UTF-8") as caught:
        texts_of(path)
    assert "--text.errors replace" in str(caught.value)
    tally = Tally()
    replaced = texts_of(path, tally, errors="replace")
    assert replaced == (["fine\ufffd\n\ufffd\ufffd\n"] if good else ["fine\ufffd", "\ufffd\ufffd"])
    assert (tally.replaced, tally.skipped) == (2, 0)


def _parquet_of_bytes(values: list[bytes]) -> bytes:
    out = io.BytesIO()
    array = pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": array}), out)
    return out.getvalue()


def test_half_a_surrogate_pair_in_json_is_no_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    with pytest.raises(UserError, match="line 1: half of a surrogate pair"):
        texts_of(path)
    tally = Tally()
    assert texts_of(path, tally, errors="replace") == ["a\ufffd", "\U0001f600"]
    assert tally.replaced == 1


def test_lines_are_counted_in_the_decompressed_text(tmp_path: Path) -> None:
    lines = as_jsonl(["a"]) * 5000 + b"broken\n" + as_jsonl(["b"])
    for ending, compress in COMPRESS.items():
        (tmp_path / f"a.jsonl{ending}").write_bytes(compress(lines))
        with pytest.raises(UserError, match=r"line 5001: not JSON"):
            texts_of(tmp_path / f"a.jsonl{ending}")
        tally = Tally()
        assert len(texts_of(tmp_path / f"a.jsonl{ending}", tally, bad_records="skip")) == 5001
        assert tally.skipped == 1
        assert "line 5001" in tally.first_skipped
    rows = as_csv(["one\ntwo", "three"]) + b"only-one-column\r\n" + b'9,"last\n"\r\n'
    (tmp_path / "a.csv").write_bytes(rows)
    with pytest.raises(UserError, match="line 5: 1 columns instead of 2"):
        texts_of(tmp_path / "a.csv")
    assert texts_of(tmp_path / "a.csv", bad_records="skip") == ["one\ntwo", "three", "last\n"]
    (tmp_path / "a.json").write_text('[\n"a",\n\n\n{"n": 1},\n"b"]')
    with pytest.raises(UserError, match="line 5: no field holds text"):
        texts_of(tmp_path / "a.json")
    assert texts_of(tmp_path / "a.json", bad_records="skip") == ["a", "b"]


def test_what_could_be_read_of_a_damaged_file_counts_and_the_rest_is_passed_over(tmp_path: Path) -> None:
    good = gzip.compress(as_jsonl(["a" * 100_000, "b"]) * 20, 0)
    (tmp_path / "1.jsonl.gz").write_bytes(good[: len(good) // 2])
    (tmp_path / "2.jsonl").write_bytes(as_jsonl(["c"]))
    with pytest.raises(UserError, match=r"1\.jsonl\.gz: ends before its compressed data does"):
        texts_of(tmp_path)
    tally = Tally()
    texts = texts_of(tmp_path, tally, bad_records="skip")
    assert texts[:2] == ["a" * 100_000, "b"]
    assert texts[-1] == "c"
    assert tally.skipped == 1


@pytest.mark.parametrize(
    "part",
    [
        "def f(x):\n    return x\n\n\nprint(f(1))\nclass A:\n\tpass\n",
        "    return getArguments( 12, 'a' )\n\n\tit  isn't\n",  # nothing but indented and blank lines
        "words that go on and on in one line, ",
    ],
)
def test_a_long_text_comes_in_pieces_whose_ids_are_those_of_the_whole(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = streams.BLOCK  # a smaller file is read whole
    monkeypatch.setattr(streams, "PIECE", piece)
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = part * (2 * piece // len(part) + 1000)
    for ending, compress in (("", bytes), (".bz2", bz2.compress)):
        path = tmp_path / f"a.txt{ending}"
        path.write_bytes(compress(text.encode()))
        documents = list(source_from_path(path).documents())
        assert [document.ends for document in documents] == [False, False, True]
        assert "".join(document.text for document in documents) == text
        assert max(len(document.text) for document in documents) <= piece
    end = 0
    for document in documents[:2]:
        end += len(document.text)
        halves = [text[end - 200 : end], text[end : end + 200]]
        whole = [word for word, _ in splitter.pre_tokenize_str("".join(halves))]
        assert whole == [word for half in halves for word, _ in splitter.pre_tokenize_str(half)]


def test_one_line_without_an_end_is_cut_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * (PIECE + 5))
    assert [len(text) for text in texts_of(tmp_path / "a.txt")] == [PIECE, 5]


def test_the_format_may_be_said_where_the_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(as_jsonl(["a", "b"]))
    assert texts_of(tmp_path / "data", format="jsonl") == ["a", "b"]
    assert texts_of(tmp_path / "data") == [as_jsonl(["a", "b"]).decode()]


def test_parquet_is_read_by_rows_whatever_its_strings_are_called(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()]
    words = [pyarrow.dictionary(index, kind) for index in (pyarrow.int8(), pyarrow.int32()) for kind in kinds[:2]]
    for kind in [*kinds, *words]:
        table = pyarrow.table({"text": pyarrow.array(TEXTS * 2, pyarrow.string()).cast(kind)})
        parquet.write_table(table, path, row_group_size=4, compression="zstd")
        assert texts_of(path) == TEXTS * 2
    path.write_bytes(as_parquet(["a", None, "c"]))
    null = r"row 2: column 'text' should hold text, not null; --text\.bad-records skip passes it over"
    with pytest.raises(UserError, match=null):
        texts_of(path)
    assert texts_of(path, bad_records="skip") == ["a", "c"]


@pytest.mark.parametrize(
    ("compression", "options"),
    [
        *(pytest.param(each, {}, marks=() if each in ("", ".gz") else long) for each in COMPRESS),
        ("", {"compression": "gzip", "chunks": (1000,)}),
    ],
)
def test_an_hdf5_array_of_tokens_is_given_as_it_is(compression: str, options: dict[str, Any], tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 50257, 1_500_000)
    path = tmp_path / f"pile_train.h5{compression}"
    path.write_bytes(COMPRESS[compression](as_hdf5(ids, **options)))
    documents = list(source_from_path(path).documents())
    assert np.array_equal(np.concatenate([document.ids for document in documents]), ids)
    assert [document.ends for document in documents] == [False, True]


def test_xz_of_the_old_kind_and_zstd_with_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"text", check=lzma.CHECK_CRC32))
    assert texts_of(tmp_path / "a.txt.xz") == ["text"]
    options = {zstd.CompressionParameter.checksum_flag: 1, zstd.CompressionParameter.window_log: 24}
    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"text" * 10, options=options))
    assert texts_of(tmp_path / "a.txt.zst") == ["text" * 10]
