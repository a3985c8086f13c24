from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.base.errors import UserError
from hornbook.text import records
from hornbook.text.documents import TextConfig
from hornbook.text.readers import Source, joined, name_of, source_from_path
from hornbook.text.records import Document
from hornbook.text.streams import Tally

hostile_bytes = st.lists(
    st.one_of(
        st.sampled_from(
            [b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b"\xe2\x82", b"\x00", b"\x28\xb5\x2f\xfd", b"BZh"]
        ),
        st.text(max_size=9).map(lambda text: text.encode(errors="surrogatepass")),
    ),
    max_size=9,
).map(b"".join)


def lay_out(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def names(source: Source) -> list[str]:
    return [document.name for document in source.documents()]


def test_a_folder_is_its_text_files_in_a_fixed_order(tmp_path: Path) -> None:
    wanted = ["B.md", "a.txt", "a/z.py", "b/a.md", "b/c/d.txt", "noending", "ä.txt"]
    texts = dict.fromkeys(wanted, "text")
    passed_over = ["c.bin", ".hidden.txt", ".git/x.py", "__pycache__/x.py", "b/node_modules/x.md"]
    first = lay_out(tmp_path / "first", texts | dict.fromkeys(passed_over, "text"))
    second = lay_out(tmp_path / "second", dict(reversed(texts.items())))
    assert names(source_from_path(first)) == names(source_from_path(second)) == sorted(wanted)
    assert source_from_path(first).name == "first"


def test_links_are_files_and_no_folders(tmp_path: Path) -> None:
    """As `os.walk` and `Path.is_file` see them."""
    root = lay_out(tmp_path / "root", {"a.txt": "text", "b/c.txt": "text"})
    lay_out(tmp_path / "elsewhere", {"d.txt": "text"})
    (root / "to-a-file.txt").symlink_to(tmp_path / "elsewhere" / "d.txt")
    (root / "to-a-folder.txt").symlink_to(tmp_path / "elsewhere")
    (root / "to-nothing.txt").symlink_to(tmp_path / "nothing.txt")
    (root / "to-itself.txt").symlink_to(root / "to-itself.txt")
    os.mkfifo(root / "pipe.txt")
    walked = [Path(place, name) for place, _, names in os.walk(root) for name in names]
    expected = sorted(path.relative_to(root).as_posix() for path in walked if path.is_file())
    assert names(source_from_path(root)) == expected == ["a.txt", "b/c.txt", "to-a-file.txt"]


def test_files_that_are_sure_to_be_documents_are_those_that_become_one(tmp_path: Path) -> None:
    texts = {
        "a.txt": "four",
        "b.py": "x = 1\ny = 2\n",
        "empty.txt": "",
        "mark.txt": "\ufeff",
        "marked.md": "\ufefftext",
    }
    lay_out(tmp_path, texts)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b""))
    source = source_from_path(tmp_path)
    sure = [path.name for path in source.parts[0].files_that_are_documents()]
    assert sure == names(source) == ["a.txt", "b.py", "marked.md"]
    for how in ({"document": "line"}, {"bad_records": "skip"}, {"max_documents": 1}, {"document": "row"}):
        other = source_from_path(tmp_path, TextConfig.model_validate(how))
        assert not list(other.parts[0].files_that_are_documents())


@examples(2_000)
@given(data=hostile_bytes, errors=st.sampled_from(["strict", "replace"]))
def test_a_small_file_reads_as_a_large_one_does(data: bytes, errors: str) -> None:
    """A file of one block is read at once, and others block by block."""

    def read(block: int) -> tuple[object, int]:
        tally = Tally()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "BLOCK", block)
            try:
                found = list(source_from_path(path, config).documents(tally))
            except UserError as error:
                return str(error), 0
        return found, tally.replaced

    config = TextConfig.model_validate({"errors": errors})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(data)
        assert read(1 << 20) == read(0)


def test_a_file_is_a_text_whatever_its_ending(tmp_path: Path) -> None:
    lay_out(tmp_path, {"notes.tex": "one line"})
    source = source_from_path(tmp_path / "notes.tex")
    assert list(source.documents()) == [Document("notes.tex", "one line")]
    assert source.bytes_on_disk() == 8


def test_hidden_folders_above_the_one_that_is_named_do_not_matter(tmp_path: Path) -> None:
    lay_out(tmp_path, {".mine/site-packages/a.txt": "text"})
    assert names(source_from_path(tmp_path / ".mine" / "site-packages")) == ["a.txt"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfa\n", "a\n"),
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"a\rb", "a\rb"),
        ("zwölf \U0001f600".encode(), "zwölf \U0001f600"),
        (b"a\xef\xbb\xbfb", "a\ufeffb"),
    ],
)
def test_text_comes_without_byte_order_mark_and_with_plain_line_ends(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert [each.text for each in source_from_path(tmp_path / "a.txt").documents()] == [text]


def test_a_missing_path_and_a_folder_without_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        source_from_path(tmp_path / "none")
    lay_out(tmp_path, {"a.bin": "x"})
    with pytest.raises(UserError, match=r"no file of text in it; not read: 1 \.bin"):
        source_from_path(tmp_path)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = lay_out(tmp_path, {"a.txt": "x"}) / "a.txt"
    source = source_from_path(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        list(source.documents())


def test_the_signature_follows_what_the_files_hold_and_not_where_they_lie(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "here", {"a.txt": "a", "b/c.txt": "c"})
    first = source_from_path(folder).signature()
    assert source_from_path(folder).signature() == first
    moved = folder.rename(tmp_path / "there")
    assert source_from_path(moved).signature() == first
    seen = {first}
    for change in (
        lambda: lay_out(moved, {"d.txt": "d"}),
        lambda: (moved / "a.txt").write_text("aa"),
        lambda: os.utime(moved / "a.txt", (1, 1)),
        lambda: (moved / "a.txt").rename(moved / "e.txt"),
        lambda: (moved / "b" / "c.txt").unlink(),
    ):
        change()
        seen.add(source_from_path(moved).signature())
    assert len(seen) == 6


def test_a_file_name_that_is_not_utf8_has_a_signature_too(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"na\xefve.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    assert len(source_from_path(tmp_path).signature()) == 64


def test_several_sources_are_read_one_after_another(tmp_path: Path) -> None:
    lay_out(tmp_path, {"b/1.txt": "b1", "b/2.txt": "b2", "a/x.md": "ax"})
    both = joined([source_from_path(tmp_path / "b"), source_from_path(tmp_path / "a" / "x.md")])
    assert [document.text for document in both.documents()] == ["b1", "b2", "ax"]
    assert both.name == "b+x"


@pytest.mark.parametrize("name", ["tale.txt", "tale.txt.gz", "TALE.TXT.GZ"])
def test_a_text_is_called_as_its_file_without_endings(tmp_path: Path, name: str) -> None:
    assert name_of(tmp_path / name).lower() == "tale"


def test_a_pattern_is_the_files_that_it_names_in_a_fixed_order(tmp_path: Path) -> None:
    lay_out(tmp_path, {"data/b.jsonl": '"b"', "data/a.jsonl": '"a"', "data/x/c.jsonl": '"c"', "data/a.txt": "no"})
    assert names(source_from_path(tmp_path / "data" / "*.jsonl")) == ["a.jsonl line 1", "b.jsonl line 1"]
    everywhere = source_from_path(tmp_path / "data" / "**" / "*.jsonl")
    assert [document.text for document in everywhere.documents()] == ["a", "b", "c"]
    assert everywhere.name == "data"
    with pytest.raises(UserError, match="no file has such a name"):
        source_from_path(tmp_path / "data" / "*.csv")
    lay_out(tmp_path, {"odd[1].txt": "a file that is called so"})
    assert names(source_from_path(tmp_path / "odd[1].txt")) == ["odd[1].txt"]


def test_a_folder_is_its_texts_or_its_records_whichever_are_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lay_out(
        tmp_path / "data", {"README.md": "short", "train.jsonl": '{"text": "long enough"}', "b.csv": "text\nc"}
    )
    assert names(source_from_path(data)) == ["b.csv line 2", "train.jsonl line 1"]
    assert "2 files are read; not read: 1 .md (to read .md: a pattern in quotes)" in capsys.readouterr().err
    sources = lay_out(
        tmp_path / "sources", {"a.rs": "fn main() { /* long */ }", "b.c": "int x;", "table.csv": "n,m\n1,2"}
    )
    assert names(source_from_path(sources)) == ["a.rs", "b.c"]
    only = lay_out(tmp_path / "only", {"a.json": '["a"]', "b.json.gz": ""})
    assert [path.name for path in source_from_path(only).files] == ["a.json", "b.json.gz"]


def test_how_a_source_is_read_is_part_of_its_signature_and_of_each_of_several(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jsonl": '{"text": "a", "title": "t"}\n{"text": "b", "title": "u"}', "b.txt": "c"})
    one = source_from_path(tmp_path / "a.jsonl")
    other = source_from_path(tmp_path / "a.jsonl", TextConfig(field="title"))
    assert one.signature() != other.signature()
    both = joined([one, other, source_from_path(tmp_path / "b.txt")])
    assert [document.text for document in both.documents()] == ["a", "b", "t", "u", "c"]
    first = both.read_with(TextConfig(max_documents=1))
    assert [document.text for document in first.documents()] == ["a", "t", "c"]
    assert len({both.signature(), first.signature(), one.signature()}) == 3


def test_the_likely_amount_of_text_counts_compressed_bytes_more_than_once(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.txt": "a" * 1000, "b.txt.gz": "b" * 1000, "c.parquet": "c" * 1000})
    assert source_from_path(tmp_path / "a.txt").likely_bytes_of_text() == 1000
    assert source_from_path(tmp_path / "b.txt.gz").likely_bytes_of_text() > 2000
    assert source_from_path(tmp_path / "c.parquet").likely_bytes_of_text() > 2000


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
def test_standard_input_is_read_as_often_as_needed_and_leaves_nothing(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    code = """
import sys
from pathlib import Path
from hornbook.text.documents import TextConfig
from hornbook.text.readers import source_from_path
for _ in range(2):
    source = source_from_path(Path("-"), TextConfig(format="jsonl"))
    print([(document.name, document.text) for document in source.documents()], source.name)
print(source.signature())
"""
    seen, data = set(), compress(b'"a"\n"b"\n')
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=data,
            env=os.environ | {"HORNBOOK_HOME": str(tmp_path)},
            capture_output=True,
            check=True,
        )
        expected = "[('standard-input line 1', 'a'), ('standard-input line 2', 'b')] standard-input"
        assert done.stdout.decode().splitlines()[:2] == [expected] * 2
        seen.add(done.stdout)
    assert len(seen) == 1  # the same text has the same signature, whenever it comes
    assert list((tmp_path / "spool").iterdir()) == []
