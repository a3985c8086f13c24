"""Pages come as their words, notebooks as their cells."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from formats_at_hand import COMPRESS, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.base.errors import UserError
from hornbook.text import streams
from hornbook.text.markup import _Page
from hornbook.text.readers import source_from_path
from hornbook.text.streams import Tally

PAGE = """\ufeff<!DOCTYPE html>
<html><head><title>Not a word</title><meta charset="utf-8"><style>p { color: red }</style>
<script>if (a < b) document.write("<p>no</p>")</script></head>
<body class="a"><!-- no <p> --><noscript>no</noscript>
<h1>A  page</h1><p>One &amp; two,
   &eacute;&#228;&#x4e2d; &lt;b&gt;<br>next<p>a<b>b</b>c <i> d</i> e
<ul><li>first<li>second</ul>
<table><tr><th>x</th><th>y</th></tr><tr><td>1</td><td>2</td></tr></table>
<pre>
  def f(x):
      return <span>x</span>

f(1)
</pre><div><div>deep</div></div>tail<svg><title>no</title><text>no</text></svg> end
</body></html>
"""
WORDS = """A page

One & two, éä中 <b>
next

abc d e
first
second
x\ty
1\t2

  def f(x):
      return x

f(1)

deep
tail end"""


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", [".html", ".HTM", ".xhtml"])
def test_a_page_is_its_words(ending: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}{compression}"
    path.write_bytes(COMPRESS[compression](PAGE.replace("\n", "\r\n").encode()))
    assert texts_of(path) == [WORDS]
    assert texts_of(path, document="line") == [line for line in WORDS.split("\n") if line]
    assert "<h1>A  page</h1>" in texts_of(path, format="text")[0]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_page_is_the_same_wherever_its_blocks_are_cut(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    monkeypatch.setattr(streams, "BLOCK", size)
    monkeypatch.setattr("hornbook.text.records.text_only", lambda blocks: blocks)
    assert texts_of(tmp_path / "a.html")[0].lstrip("\ufeff\n") == WORDS


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("plain", "plain"),
        ("a < b &c & d &amp", "a < b &c & d &"),
        ("a<", "a<"),
        ("a<b", "a"),  # a tag that never ends, as browsers have it
        ("a<!-- b", "a"),
        ("a<p>b</p></div></p>c", "a\n\nb\n\nc"),
        ("<p>a</p><![foo[ b ]]><p>c</p>", "a\n\nc"),
        ("<p>a</p><![if !IE]><p>c</p><![endif]>", "a\n\nc"),
        ("<svg><body>a", "a"),
        ("<svg><svg></svg>no</svg>a", "a"),
        ("a<br><br>b<br>c", "a\n\nb\nc"),
        ("<b>a</b> <i>b</i>c", "a bc"),
        ("<script>no</script >a</script>", "a"),
        ("&#xd800;&#0;&#x110000;", "\ufffd\ufffd\ufffd"),
        ("<p> <p> </p>", None),
        ("<title>no</title>", None),
    ],
)
def test_a_malformed_page_is_read_as_a_browser_would(page: str, words: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(page)
    if words is None:
        with pytest.raises(UserError, match=r"a\.html: empty"):
            texts_of(tmp_path / "a.html")
    else:
        assert texts_of(tmp_path / "a.html") == [words]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"<>/!-&;\"'= \na[]", "p", "script", "pre", "td", "<!--", "</", "CDATA[", "&amp;"])))
def test_no_page_makes_the_parser_fail(parts: list[str]) -> None:
    page = "".join(parts)
    whole, cut = _Page(), _Page()
    whole.feed(page)
    for letter in page:
        cut.feed(letter)
    for each in (whole, cut):
        words = each.last_words()
        words.encode()
        assert "pre" in page or "\n\n\n" not in words


def test_words_are_those_that_another_parser_finds(tmp_path: Path) -> None:
    """As far as it knows nothing of what nobody sees: on a page of plain tags, all that is between them."""
    found: list[str] = []
    other = HTMLParser()
    other.handle_data = found.append  # type: ignore[method-assign]
    page = "".join(
        f"<p>Paragraph {n} <em>of &quot;many&quot;</em>, <a href='x?a=1&b={n}'>linked</a>.</p>\n" for n in range(99)
    )
    other.feed(page)
    other.close()
    (tmp_path / "a.html").write_text(page)
    assert texts_of(tmp_path / "a.html")[0].split() == "".join(found).split()


@pytest.mark.parametrize("begin", ["<a b=c ", "<!--", "<a b='>' ", "<script>", "<pre> <b>"])
def test_what_never_ends_takes_time_in_proportion(begin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streams, "BLOCK", 1 << 13)
    looked_at = 0
    feed = _Page.feed

    def counted(page: _Page, data: str) -> None:
        nonlocal looked_at
        looked_at += len(page.rawdata) + len(data)
        feed(page, data)

    monkeypatch.setattr(_Page, "feed", counted)
    text = "<p>word " + begin * (400_000 // len(begin))
    (tmp_path / "a.html").write_text(text)
    texts_of(tmp_path / "a.html")
    assert looked_at < 4 * len(text)


def test_a_tag_without_end_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.text.markup.LARGEST_RECORD", 1000)
    monkeypatch.setattr(streams, "BLOCK", 4000)
    monkeypatch.setattr("hornbook.text.records.text_only", lambda blocks: blocks)
    (tmp_path / "a.html").write_text("<p>good</p>\n<img src='data:" + "A" * 100_000)
    (tmp_path / "b.html").write_text("<p>more</p>")
    with pytest.raises(UserError, match=r"a\.html line 2: a tag, comment or script longer than"):
        texts_of(tmp_path)
    tally = Tally()
    assert texts_of(tmp_path, tally, bad_records="skip")[-1] == "more"
    assert tally.skipped == 1


def notebook(cells: list[Any], **more: Any) -> str:
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | more)


def test_a_notebook_is_the_sources_of_its_cells(tmp_path: Path) -> None:
    picture = "iVBORw0KGgo" * 1000
    outputs = [nbformat.v4.new_output("display_data", {"image/png": picture})]
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"# Title\n\nzwölf ![a](data:image/png;base64,{picture}==) words\n"),
            nbformat.v4.new_code_cell("x = 1\nx", outputs=outputs),
            nbformat.v4.new_raw_cell("raw"),
            nbformat.v4.new_code_cell("  \n"),
            nbformat.v4.new_code_cell("\n    indented()"),
        ]
    )
    for ending, compress in COMPRESS.items():
        path = tmp_path / f"a.ipynb{ending}"
        path.write_bytes(compress(nbformat.writes(book).encode()))
        assert texts_of(path) == ["# Title\n\nzwölf ![a]() words\n\nx = 1\nx\n\n    indented()"]
        assert texts_of(path, document="line")[-2:] == ["x", "    indented()"]
    old = nbformat.v3.new_notebook(
        worksheets=[
            nbformat.v3.new_worksheet(
                cells=[
                    nbformat.v3.new_heading_cell("Title"),
                    nbformat.v3.new_text_cell("markdown", source="words"),
                    nbformat.v3.new_code_cell(input="x = 1"),
                ]
            )
        ]
    )
    (tmp_path / "old.ipynb").write_text(json.dumps(old))
    assert texts_of(tmp_path / "old.ipynb") == ["Title\n\nwords\n\nx = 1"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (notebook([])[:-9], "not JSON"),
        ("[1]", "it has no cells"),
        ('{"cells": 3}', "it has no cells"),
        (notebook([3]), "cell 1: should be an object, not a number"),
        (notebook([{}, {"cell_type": "code", "source": 3}]), "cell 2: its source should be text"),
        (notebook([{"cell_type": "code", "source": [["a"]]}]), "cell 1: its source should be text"),
        (notebook([{"cell_type": "code", "source": "\ud800"}]), "half of a surrogate pair"),
        ('{"cells": [\n"na\udcefve"]}', "line 2: not UTF-8"),
        ("a\0b", "binary"),
        (notebook([]), "empty"),
    ],
)
def test_a_malformed_notebook_is_a_bad_record(data: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_bytes(data.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=told) as caught:
        texts_of(path)
    assert "a.ipynb" in str(caught.value)
    (tmp_path / "b.ipynb").write_text(notebook([{"cell_type": "code", "source": "x"}]))
    tally = Tally()
    assert texts_of(tmp_path, tally, bad_records="skip") == ["x"]
    assert tally.skipped == (told != "empty")


def test_pages_and_notebooks_of_a_folder_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.ipynb").write_text(notebook([{"cell_type": "code", "source": ["x\n", "y"]}]))
    (tmp_path / "c.txt").write_text("text")
    source = source_from_path(tmp_path)
    assert [(each.name, each.text) for each in source.documents()] == [
        ("a.html", WORDS),
        ("b.ipynb", "x\ny"),
        ("c.txt", "text"),
    ]
    # Whether a page holds a word is not known before it is read.
    assert [path.name for path in source.parts[0].files_that_are_documents()] == ["c.txt"]
    assert source.likely_bytes_of_text() < source.bytes_on_disk()


@pytest.mark.parametrize("name", ["a.html", "a.ipynb", "a.csv", "a.tsv"])
def test_what_was_prepared_of_files_that_are_now_read_otherwise_is_old(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are found by a source's signature: of all other formats it is what it was."""
    from dataclasses import replace

    from hornbook.text import formats

    (tmp_path / name).write_text("text")
    (tmp_path / "b.txt").write_text("text")
    now = [source_from_path(tmp_path / each).signature() for each in (name, "b.txt")]
    for ending, each in list(formats.FORMAT_OF.items()):
        monkeypatch.setitem(formats.FORMAT_OF, ending, replace(each, version=1))
    before = [source_from_path(tmp_path / each).signature() for each in (name, "b.txt")]
    assert now[0] != before[0]
    assert now[1] == before[1]
