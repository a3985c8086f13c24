"""What of a folder is read, and that the rest is told."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from formats_at_hand import as_jsonl, texts_of

from hornbook import cli
from hornbook.base.errors import UserError
from hornbook.text import readers
from hornbook.text.documents import TextConfig
from hornbook.text.formats import ending_of
from hornbook.text.readers import joined, source_from_path

PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def lay_out(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def read(folder: Path, **knobs: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in source_from_path(folder, TextConfig(**knobs)).files]


def test_text_without_an_ending_is_read_and_binaries_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {f"{number}": b"a story" for number in range(200)}
    more = {"1.": b"a mail", "2. The sea": "zwölf".encode() * 20_000, "notes.2": b"x", "log": gzip.compress(b"text")}
    lay_out(tmp_path / "in", texts | more | {"README.md": b"# short", "packed.gz": gzip.compress(b"text")})
    lay_out(tmp_path / "in", {"core": b"\x7fELF\0", "latin": b"na\xefve", "a.docx": PICTURE, "wide": b"a\0b\0"})
    found = read(tmp_path / "in")
    assert sorted(found) == sorted([*texts, "1.", "2. The sea", "notes.2", "README.md", "packed.gz"])
    assert source_from_path(tmp_path / "in").left_out == {".docx": 1, "without an ending": 4}
    told = capsys.readouterr().err.splitlines()
    assert told == [f"warning: {tmp_path}/in: 205 files are read; not read: 4 without an ending, 1 .docx"]


def test_logs_and_subtitles_are_texts_and_unknown_endings_are_told_with_how_to_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lay_out(tmp_path / "in", {f"{number}.tale": b"once" for number in range(3)} | {"b.png": PICTURE})
    with pytest.raises(UserError, match=r"no file of text.*3 \.tale, 1 \.png \(to read \.tale: --text\.format text\)"):
        source_from_path(folder)
    lay_out(folder, {"a.log": b"text", "b.srt": b"text", "c.vtt": b"text", "d.csv": b"text\n1"})
    assert read(folder) == ["a.log", "b.srt", "c.vtt"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 .tale" in line
    assert "1 .csv" in line
    assert "(to read .csv: a pattern in quotes; .tale: --text.format text)" in line
    assert read(folder, format="text") == ["0.tale", "1.tale", "2.tale", "a.log", "b.srt", "c.vtt"]
    assert read(folder, format="csv") == ["d.csv"]


def test_a_folder_of_an_unknown_ending_can_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its amount is known, too, by the knobs with which it is read."""
    from hornbook.recipes import compose

    folder = lay_out(tmp_path / "in", {"a.tale": b"once " * 1000})
    assert compose(None, {"data": str(folder), "text": {"format": "text"}}).recipe == "own-text"
    with pytest.raises(UserError, match=r"--text\.format text"):
        compose(None, {"data": str(folder)})
    with pytest.raises(UserError, match=r"--text\.format: .*not poem"):
        compose(None, {"data": str(lay_out(folder, {"b.txt": b"text"})), "text": {"format": "poem"}})


@contextmanager
def locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For root there is no folder without permission."""
    scan = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied")
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        yield


def test_folders_and_links_that_lead_nowhere_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path / "in", {"a.txt": b"text", "b/c.txt": b"text"})
    (folder / "gone.txt").symlink_to(folder / "nothing")
    (folder / "other").symlink_to(tmp_path)
    with locked(folder / "b", monkeypatch):
        assert read(folder) == ["a.txt"]
    told = capsys.readouterr().err
    assert "not read: 1 folder without permission, 1 link to a folder, 1 link to nothing\n" in told
    with locked(folder, monkeypatch), pytest.raises(UserError, match="not read: 1 folder without permission"):
        source_from_path(folder)


def test_of_many_endings_those_of_which_there_are_most_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{number}.e{kind}": PICTURE for kind in range(9) for number in range(kind + 1)}
    source_from_path(lay_out(tmp_path / "in", files | {"a.txt": b"text"}))
    assert "not read: 9 .e8, 8 .e7, 7 .e6, 6 .e5, 5 .e4, 10 more\n" in capsys.readouterr().err


def test_the_manifest_counts_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = lay_out(tmp_path / "one", {"a.jsonl": as_jsonl(["text"]), "b.md": b"#", "c.docx": PICTURE})
    two = lay_out(tmp_path / "two", {"a.txt": b"text", "c.docx": PICTURE})
    assert joined([source_from_path(one), source_from_path(two)]).left_out == {".docx": 2, ".md": 1}
    words = ["prepare", str(one), str(two), "--tokenizer.kind", "byte", "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["reading"]["left_out_files"] == {".docx": 2, ".md": 1}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["reading"]["left_out_files"] == {".docx": 2, ".md": 1}
    lay_out(two, {"d.docx": PICTURE})
    assert cli.main(words) == 0  # the text is the same, and so are its shards
    assert json.loads(capsys.readouterr().out)["reading"]["left_out_files"] == {".docx": 3, ".md": 1}


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.TXT", ".txt"),
        ("a.txt.gz", ".txt"),
        ("a.gz", ""),
        ("a", ""),
        ("1.", ""),
        ("a.2", ""),
        ("2. The sea", ""),
        ("a.mp3", ".mp3"),
        ("a.7z", ".7z"),
        (".x", ".x"),
        ("a.b.c", ".c"),
    ],
)
def test_an_ending_is_a_word_after_the_last_dot(name: str, ending: str) -> None:
    assert ending_of(name) == ending


@pytest.mark.parametrize("ending", [".rtf", ".xml", ".svg.gz"])
def test_markup_that_is_read_raw_is_told_once_unless_it_is_said_to_be_text(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readers._doubt_markup.cache_clear()
    data = b"<a>text</a>"
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    for where in (path, tmp_path / "*.*"):
        assert texts_of(where) == texts_of(where) == ["<a>text</a>"]
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{ending.removesuffix('.gz')} is read as it is, markup and all" in line
        assert "--text.format text" in line
        assert texts_of(where, format="text") == ["<a>text</a>"]
        assert not capsys.readouterr().err
