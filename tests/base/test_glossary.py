"""Every word that summaries, axes and the page say is in the glossary, and leads to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook import cli
from hornbook.base.glossary import ALSO, WORDS, anchor, find, markdown, page
from hornbook.report import curves
from hornbook.report.curves import Curves

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "src" / "hornbook" / "serve" / "page"


def test_the_document_is_what_the_words_are() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text() == markdown(), "make glossary writes docs/glossary.md anew"


@pytest.mark.parametrize("form", [markdown, page])
def test_every_word_that_a_word_leads_to_is_there(form: Callable[[], str]) -> None:
    text = form()
    anchors = {anchor(word) for word in WORDS}
    targets = set(re.findall(r"\(#([^)]+)\)", text)) | set(re.findall(r'href="#word-([^"]+)"', text))
    assert targets
    assert targets <= anchors
    assert "[" not in re.sub(r"\[[^]]+\]\(#[^)]+\)", "", text)
    assert list(WORDS) == sorted(WORDS, key=str.lower)
    assert set(ALSO.values()) <= set(WORDS)
    assert not set(ALSO) & set(WORDS)


@pytest.mark.parametrize("name", ["loss", "perplexity", "gradient", "memory"])
def test_the_axes_of_pictures_are_words_of_the_glossary(name: str) -> None:
    norms, rates, memory = [(1, 1.0), (2, 0.9)], {"lr": [(1, 0.1), (2, 0.1)]}, [(1, 10), (2, 10)]
    losses = [1, 2], [3.0, 2.0]
    figure = getattr(curves, f"{name}_figure")(
        Curves("run", *losses, 8.0, *losses, [], [], [], norms, rates, 1.0, memory, 20)
    )
    labels = {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label}
    labels |= {each.get_xlabel() for axes in figure.axes for each in axes.child_axes}
    if name in ("loss", "perplexity"):
        labels |= {text.get_text() for axes in figure.axes for text in axes.get_legend().texts}
    assert len(labels) >= 3
    assert {label for label in labels if not found_in(label)} == set()


def found_in(label: str) -> bool:
    words = re.sub(r"\(.*\)", "", label).strip()
    return any(find(each) for each in (words, f"{words} loss", words.split()[0]))


def test_documents_lead_to_words_that_are_there() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    led = [word for each in documents for word in re.findall(r"glossary\.md#([\w-]+)", each.read_text())]
    assert len(led) > 30
    assert {each for each in led if each not in {anchor(word) for word in WORDS}} == set()


def test_the_tours_words_lead_to_the_glossary() -> None:
    bold = {
        (path.name, word): text
        for path in (ROOT / "docs" / "tour").glob("?-*.md")
        for text in [path.read_text()]
        for word in re.findall(r"\*\*(.+?)\*\*", text)
    }
    assert len(bold) > 20
    for name, word in bold:
        link = re.fullmatch(r"\[(.+)\]\(\.\./glossary\.md#([\w-]+)\)", word)
        assert link, f"{name}: {word} leads nowhere"
        assert link[2] in {anchor(each) for each in WORDS}, f"{name}: {word}"


def test_the_pages_links_lead_to_words() -> None:
    words = [word for file in PAGE.glob("*.js") for word in re.findall(r'word: "([^"]+)"', file.read_text())]
    words += re.findall(r'toGlossary\("([^"]+)"', (PAGE / "page.js").read_text())
    words += re.findall(r'href="/glossary#word-([^"]+)"', (PAGE / "index.html").read_text())
    assert len(words) > 8
    assert {word for word in words if word not in {anchor(each) for each in WORDS}} == set()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["perplexity"], "all equally likely"),
        (["Bits", "per", "byte"], "gzip and xz"),
        (["heads"], "each with weights of its own"),
        (["weights"], "Parameters The numbers"),
        (["bpe"], "joined to a new token"),
        ([], "Top-k, Top-p"),
    ],
)
def test_a_word_is_told_at_a_terminal(asked: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["glossary", *asked]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert told in said
    assert "[" not in said


def test_a_word_that_is_not_there_names_its_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["glossary", "perplexety"]) == 2
    assert "did you mean Perplexity?" in capsys.readouterr().err
