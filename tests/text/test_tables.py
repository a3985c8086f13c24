"""A table says by its first rows how it is laid out; what was understood is shown."""

from __future__ import annotations

import csv
import io
import random
import re
from pathlib import Path

import pytest
from formats_at_hand import COMPRESS, texts_of

from hornbook.base.errors import UserError
from hornbook.text import tables
from hornbook.text.tables import DELIMITERS, LOOKED_AT_BYTES

ROWS = [
    ["1", 'He said "no"; then he left, slowly.', "x"],
    ["2", "Two\nlines, one text", "y|z"],
    ["3", "Tabs\tand, commas; and | bars", "x"],
    ["4", "Ein längerer Text.", ""],
]


@pytest.fixture(autouse=True)
def nothing_shown_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_shown", set())


def written(rows: list[list[str]], delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue().encode()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("names", [["id", "body", "kind"], ["", "text", "More words"], None])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_a_delimiter_and_a_row_of_names_are_found(
    delimiter: str, ending: str, names: list[str] | None, quoting: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a{ending}"
    data = written([*([names] if names else []), *ROWS], delimiter, quoting)
    path.write_bytes(COMPRESS[".gz"](data) if ending.endswith("gz") else data)
    field = None if names and "text" in names else names[1] if names else "2"
    assert texts_of(path, field=field) == [row[1] for row in ROWS]
    assert texts_of(path, field="2") == [row[1] for row in ROWS]


@pytest.mark.parametrize(
    ("data", "texts", "told"),
    [
        ("id;body\n1;Hallo, du\n2;Noch, einer, da\n", ["Hallo, du", "Noch, einer, da"], "semicolons.*'body'"),
        ("1,Hallo du\n2,Noch ein Text\n", ["Hallo du", "Noch ein Text"], "commas, without a row of names.*column 2"),
        ("1,5;Eins\n2,25;Zwei, drei\n", ["Eins", "Zwei, drei"], "semicolons, without"),
        ("ham\tGo until jurong point, crazy..\nspam\tFree entry\n", None, "one of 1, 2"),
        ("pos,Great\nneg,Bad\npos,Nice\n", None, "one of 1, 2"),  # `pos` is a value, not a name
        ("v1,v2,,\nham,\"Go, now\",,\n", None, "one of v1, v2"),
        ("story\na\nb\n", ["a", "b"], "one column, named by the first row .story."),
        ("It was a dark night.\nAnd so on\n", ["It was a dark night.", "And so on"], "one column, without"),
        ("\n\ntext\n\na\n", ["a"], "one column, named by the first row .text."),
        ("n\n1\n2\n", ["1", "2"], "one column, named"),
        ("n,m\n1,2\n", None, "no field holds text; it has n, m"),
        ("text;n\na;1\nb;2;3\n", None, "line 3: 3 columns instead of 2; --text.bad-records skip passes it over"),
    ],
)  # fmt: skip
def test_what_is_understood_of_a_table_is_told(
    data: str, texts: list[str] | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(data)
    if texts is None:
        with pytest.raises(UserError, match=told):
            texts_of(path)
        return
    assert texts_of(path) == texts_of(path) == texts
    (line,) = capsys.readouterr().err.splitlines()  # once, however often it is read
    assert line.startswith("note: a.csv: ")
    assert re.search(told, line)


def test_a_column_goes_by_its_number_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("title,kind,body\nt,u,v\n")
    assert texts_of(path, field="3") == texts_of(path, field="body") == ["v"]
    for field in ("0", "4", "-1", "stroy"):
        with pytest.raises(UserError, match=f"has no column '{field}'; it has title, kind, body"):
            texts_of(path, field=field)
    path.write_text("2,Hello there\n3,Good bye\n")
    assert texts_of(path, field="2") == ["Hello there", "Good bye"]  # not what has a 2 in its first row
    path.write_text("id,2019\n3,Good bye\n")
    assert texts_of(path, field="2019") == ["Good bye"]
    path.write_text("1,Ein Satz mit Punkt.,x\n2,Noch einer.,y\n")
    with pytest.raises(UserError, match=r"--text\.field with one of 2, 3"):
        texts_of(path)
    assert texts_of(path, field="2") == ["Ein Satz mit Punkt.", "Noch einer."]


def test_rows_larger_than_what_is_looked_at_are_read_too(tmp_path: Path) -> None:
    long = "word; " * LOOKED_AT_BYTES
    for rows in ([["id", "body"], ["1", long], ["2", "b"]], [["1", long], ["2", "b"]]):
        (tmp_path / "a.csv").write_bytes(written(rows, ","))
        assert texts_of(tmp_path / "a.csv", field="2") == [long, "b"]


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_come_back_as_they_were_written(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    words = ["one", "two,", "three;", "f|our", "fi\tve", '"six"', "sev\nen", "8", "3,14", "Ende."]
    texts = [" ".join(chance.choices(words, k=chance.randrange(1, 30))) for _ in range(chance.randrange(2, 300))]
    rows = [[str(number), text, "x"] for number, text in enumerate(texts)]
    delimiter = chance.choice(list(DELIMITERS))
    names = [["number", "body", "mark"]] if seed % 2 else []
    (tmp_path / "a.csv").write_bytes(written(names + rows, delimiter))
    assert texts_of(tmp_path / "a.csv", field="2") == texts
