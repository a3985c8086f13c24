"""Damaged input of every kind is told in one line, at once, or is passed over and counted."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from formats_at_hand import COMPRESS, as_csv, as_hdf5, as_json, as_jsonl, as_parquet, texts_of, zstd

from effort import long
from hornbook import cli
from hornbook.base.errors import LONGEST_LINE, UserError
from hornbook.text.readers import source_from_path
from hornbook.text.streams import LARGEST_RECORD, Tally
from yardstick import within

LONG = b"a" * (LARGEST_RECORD + 10)
NOT_UTF8 = b"\xff na\xefve \xc3 \xed\xa0\x80 \xf8\x88\x80\x80\x80 \xc0\xaf \xf4\x90\x80\x80 \x80".split()
BINARY = [b"\0", b"\x7fELF\0", b"PAR1\0", "text".encode("utf-16"), "text".encode("utf-32-le")]
BINARY += [b"\xff\xfea\0", b"\x1f\x8b\x08\0"]
BAD_JSON = [
    *rb"""{ } [ ] nul null true 1 1e999 - NaN " 'a' text , \ [1] [["a"]] {}""".split(),
    *rb"""{"texts":1} {"text":1} {"text":null} {"text":["a"]} {"text":{}} {"text":"a" {"text":"a}""".split(),
    *rb"""{'text':'a'} {"text":"a",} {"text":"a"}} {"text""a"} {text:"a"}""".split(),
    *rb"""{"text":"\x"} {"text":"\u12"} {"text":"\ud800"}""".split(),
    *(b'{"text": "a\tb"}', b'{"text": "a"} {', b"9" * 10_000),
    *(b"[" * 100_000, b'{"text":' * 100_000, b'{"text": "a", "b": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
    *(b'{"text": "' + each + b'"}' for each in NOT_UTF8),
    b'{"text": "' + LONG + b'"}',
]
BAD_ROWS = [
    *rb"""1 1,2,3 1,2,3,4 ,, "a 1,"a "a"b,c 1,"a"b "1"" 1,"a"" """.split(),
    *(b"a" * 200_000, b"," * 1000),
    *(b"1," + each for each in NOT_UTF8),
    *(b'1,"' + each + b'"' for each in NOT_UTF8),
    *(b"," * number for number in range(2, 12)),
    *(b"1," + LONG, b'1,"' + LONG),
]


def told(path: Path) -> str:
    """The one line in which the trouble is told, within two seconds."""
    with within(2), pytest.raises(UserError) as caught:
        for _ in source_from_path(path).documents():
            pass
    assert len(caught.value.mistakes) == 1
    line = caught.value.mistakes[0]
    assert len(line) <= LONGEST_LINE
    assert path.name in line
    return line


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    home, around = tmp_path / "home", {*os.listdir(), *os.listdir(tmp_path.parent)}
    monkeypatch.setenv("HORNBOOK_HOME", str(home))
    yield
    assert {*os.listdir(), *os.listdir(tmp_path.parent)} == around
    assert set(home.rglob("*")) <= {home / "spool"}


@pytest.mark.parametrize("bad", BAD_JSON, ids=range(len(BAD_JSON)))
def test_a_line_that_is_no_record_is_told_with_its_number_or_passed_over(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(as_jsonl(["one", "two"]) + bad + b"\n" + as_jsonl(["three"]))
    assert "data.jsonl line 3: " in told(path)
    tally = Tally()
    assert texts_of(path, tally, bad_records="skip") == ["one", "two", "three"]
    assert tally.skipped == 1
    path.write_bytes(bad)
    assert "line 1: " in told(path)


@pytest.mark.parametrize("bad", BAD_JSON, ids=range(len(BAD_JSON)))
def test_an_element_that_is_no_record_is_told_with_its_line_or_passed_over(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(b'[\n"one",\n"two",\n' + bad + b',\n"three"\n]\n')
    assert " line " in told(path)
    tally = Tally()
    # Where brackets or quotes do not match, nobody can say where the element ends.
    assert texts_of(path, tally, bad_records="skip")[:2] == ["one", "two"]
    assert tally.skipped >= 1


@pytest.mark.parametrize("bad", BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_row_that_is_no_record_is_told_with_its_line_or_passed_over(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(as_csv(["one", "two"]) + bad + b"\n" + b"3,three\n")
    assert "data.csv line 4: " in told(path)
    tally = Tally()
    assert texts_of(path, tally, bad_records="skip")[:2] == ["one", "two"]
    assert tally.skipped == 1
    tsv = tmp_path / "data.tsv"
    tsv.write_bytes(path.read_bytes().replace(b",", b"\t"))
    assert "data.tsv line 4: " in told(tsv)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("bad", [*NOT_UTF8, *BINARY, b"", b"\xef\xbb\xbf"], ids=range(len(NOT_UTF8) + len(BINARY) + 2))
def test_what_is_no_text_at_all_is_told(bad: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{ending}"
    path.write_bytes(bad)
    told(path)
    for compression in list(COMPRESS)[1:]:
        packed = tmp_path / f"packed{ending}{compression}"
        packed.write_bytes(COMPRESS[compression](bad))
        told(packed)
        packed.write_bytes(b"some text" + bad)  # not compressed at all
        told(packed)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["le", "be"])
def test_a_text_in_another_unicode_is_told_with_how_to_convert_it(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(f"\ufeffzwölf\n{'more ' * 50_000}".encode(f"{encoding}-{end}"))
    assert f"{encoding.upper()}, not UTF-8 text; convert it: iconv -f {encoding} -t utf-8" in told(path)


@pytest.mark.parametrize("bad", NOT_UTF8, ids=range(len(NOT_UTF8)))
def test_a_text_that_is_not_utf8_is_told_with_its_line_however_far_in(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    for lines in (0, 1, 2, 30_000, 200_000):
        path.write_bytes("zwölf\r\n".encode() * lines + b"x" + bad + b"\nmore\n")
        assert f"line {lines + 1}: not UTF-8" in told(path)


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
def test_a_compressed_file_that_was_cut_off_or_changed_is_told(compression: str, tmp_path: Path) -> None:
    texts = [random.Random(number).randbytes(300).hex() for number in range(100)]
    checked = {zstd.CompressionParameter.checksum_flag: 1}
    data = as_jsonl(texts)
    data = zstd.compress(data, options=checked) if compression == ".zst" else COMPRESS[compression](data)
    path = tmp_path / f"data.jsonl{compression}"
    chance = random.Random(7)
    for length in [0, 1, 2, 3, 5, 9, 12, len(data) - 1, *(chance.randrange(1, len(data)) for _ in range(40))]:
        path.write_bytes(data[:length])
        told(path)
        tally = Tally()
        try:
            whole = texts_of(path, tally, bad_records="skip")
        except UserError:
            continue
        assert whole == texts[: len(whole)]
        assert tally.skipped >= 1
    noticed = 0
    for _ in range(60):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        line = _told_if_noticed(path, texts)  # a time or a name in the header may be anything
        noticed += bool(line)
        assert not line or path.name in line
    assert noticed >= 50


QUICK = {"data.txt.zst", "data.html.gz", "data.jsonl.bz2", "data.parquet.zst"}


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        pytest.param(name, each, marks=() if f"{name}{each}" in QUICK else long)
        for name in ("data.txt", "data.html", "data.jsonl", "data.parquet")
        for each in list(COMPRESS)[1:]
    ],
)
def test_what_is_sound_of_a_compressed_file_is_kept_when_that_is_asked(
    name: str, compression: str, tmp_path: Path
) -> None:
    path, compress = tmp_path / f"{name}{compression}", COMPRESS[compression]
    texts = [random.Random(number).randbytes(50_000).hex() for number in range(20)]
    as_one = " ".join(texts)
    plain = {".jsonl": as_jsonl(texts).rstrip(b"\n"), ".parquet": as_parquet(texts)}
    data, tally = plain.get(Path(name).suffix, as_one.encode()), Tally()
    expected = texts if Path(name).suffix in plain else [as_one]
    for number, other in enumerate(
        (b"other data", b"\0\0\0?", compress(b"")[:1] + b"x", b"\0" * 5000 + b"PK"), start=1
    ):
        path.write_bytes(compress(data[:70_000]) + bytes(4) + compress(data[70_000:]) + other)
        assert "other data follows" in (line := told(path))
        assert "--text.bad-records skip" in line
        assert texts_of(path, tally, bad_records="skip") == expected
        assert tally.skipped == number
    path.write_bytes(compress(data)[: len(data) // 3])
    assert "--text.bad-records skip" in (line := told(path))
    assert "cut off" in line
    if name != "data.parquet":
        found = texts_of(path, bad_records="skip")
        assert expected[0].startswith(found[0]) if expected == [as_one] else found == texts[: len(found)]
        assert sum(map(len, found)) > 100_000


def test_a_parquet_file_that_was_cut_off_or_changed_is_told(tmp_path: Path) -> None:
    texts = [random.Random(number).randbytes(300).hex() for number in range(300)]
    data = as_parquet(texts, row_group_size=100)
    _told_when_cut_or_changed(data, tmp_path / "data.parquet", texts)


def test_an_hdf5_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    data = as_hdf5(range(3000), chunks=(500,), compression="gzip", fletcher32=True)
    _told_when_cut_or_changed(data, tmp_path / "data.h5", None)


def _told_if_noticed(path: Path, texts: list[str] | None) -> str:
    try:
        found = texts_of(path)
    except UserError as error:
        return str(error)
    assert texts is None or found == texts
    return ""


def _told_when_cut_or_changed(data: bytes, path: Path, texts: list[str] | None) -> None:
    chance = random.Random(7)
    for length in [0, 1, 4, 8, len(data) - 1, *(chance.randrange(1, len(data)) for _ in range(40))]:
        path.write_bytes(data[:length])
        told(path)
    noticed = 0
    for _ in range(60):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        line = _told_if_noticed(path, texts)  # names of columns that are not read may be anything
        noticed += bool(line)
        assert not line or path.name in line
    assert noticed >= (50 if texts else 20)
    for garbage in (b"PAR1" * 10, data[:4] + b"\0" * 1000 + data[-8:], random.Random(3).randbytes(10_000)):
        path.write_bytes(garbage)
        told(path)


def test_what_hdf5_holds_instead_of_ids_is_told(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    path = tmp_path / "data.h5"
    for name, values, what in [
        ("token", np.arange(3), "no data set 'tokens'; it has token"),
        ("tokens", np.arange(4.0), "float64"),
        ("tokens", np.zeros((2, 2), int), "2 axes"),
        ("tokens", np.array(["a", "b"], "S1"), "S1"),
        ("tokens", np.array([1, -1]), "below 0"),
        ("tokens", np.array([1, 2**40]), "above"),
        ("tokens/inner", np.arange(3), "not a data set"),
        ("tokens", np.int32(3), "0 axes"),
        ("tokens", np.zeros(0, np.int32), "empty"),
    ]:
        with h5py.File(path, "w") as file:
            file[name] = values
        assert what in told(path)


ONE_OF_EACH = [
    ("data.txt", b"na\xefve"),
    ("data.jsonl", b'{"text": 1}\n'),
    ("data.jsonl.zst", zstd.compress(b'{"text": "a"}\n' * 1000)[:-5]),
    ("data.csv", b"text\n1,2\n"),
    ("data.json", b"[1]"),
    ("data.parquet", b"PAR1nothing"),
    ("data.h5", b"\x89HDF"),
]


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize(("name", "data"), ONE_OF_EACH)
def test_a_command_ends_with_exit_code_2_and_one_line(
    name: str, data: bytes, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    words = [command, *(["--data"] if command == "train" else []), str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert name in line
    assert "Traceback" not in line
    assert not (tmp_path / "out").exists()


def test_sizes_that_gzip_claims_are_not_believed(tmp_path: Path) -> None:
    data = COMPRESS[".gz"](b"text" * 1000)
    path = tmp_path / "data.txt.gz"
    path.write_bytes(data[:-4] + (2**32 - 1).to_bytes(4, "little"))
    told(path)
    path.write_bytes(data[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + data[-4:])
    told(path)


def test_json_that_ends_too_early_or_goes_on_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    whole = as_json(["one", "two", "three"])
    for length in range(1, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert " line " in told(path)
    for more in (b"]", b",", b"[]", b'"four"', b"{}", b"x"):
        path.write_bytes(whole + more)
        assert " line " in told(path)
