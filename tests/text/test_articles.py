from __future__ import annotations

import random
from pathlib import Path

import pytest

from hornbook.text import articles


@pytest.mark.parametrize(("name", "count"), [("wikitext2-valid.txt", 60), ("wikitext2-test.txt", 62)])
def test_wikitext_has_as_many_articles_as_its_document_level_edition(name: str, count: int, test_data: Path) -> None:
    """EleutherAI/wikitext_document_level counts 60 and 62."""
    text = (test_data / name).read_text()
    found = list(articles.articles(iter(text.splitlines(keepends=True))))
    assert len(found) == count
    assert "".join(found) == text
    # However the rows come, the articles are the same.
    assert list(articles.articles(iter([text]))) == found


def test_an_article_begins_at_its_title_alone() -> None:
    rows = [" = Lobster = \n", " It is = to none = here \n", " = = Life = = \n", " = Crab = \n", " Also . \n"]
    assert list(articles.articles(iter(rows))) == ["".join(rows[:3]), "".join(rows[3:])]


def test_cleaned_rows_are_as_system_2_trains_on_them() -> None:
    rows = ["", " = Crab = \n", " 1 @,@ 000 state @-@ of @-@ the @-@ art <unk> 's 3 @.@ 5 \\ \n", " \n", " = Crab = \n"]
    assert list(articles.cleaned_rows(iter(rows))) == [" = Crab = ", " 1,000 state-of-the-art [UNK] s 3.5  "]
    again = articles.cleaned_rows
    assert list(again(iter(rows))) == list(again(iter(rows))), "what was seen belongs to one reading"
    assert list(articles.articles(iter(["a \u2028 b\x0bc"]))) == ["a \u2028 b\x0bc\n"], "lines end at line ends alone"


def test_stories_are_the_same_however_the_text_is_cut() -> None:
    told = [f"Once {number} mice\nlived.\n" for number in range(50)]
    text = "<|endoftext|>\n".join(told) + "<|endoftext|>"
    whole = list(articles.stories(iter([text])))
    assert whole == [story.strip("\n") for story in told]
    draw = random.Random(0)
    for _ in range(20):
        places = sorted(draw.choices(range(len(text)), k=9))
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert list(articles.stories(iter(pieces))) == whole


def test_a_book_loses_its_frame_and_nothing_else() -> None:
    book = (
        "\ufeffThe Project Gutenberg eBook of Julius Caesar\nTitle: Julius Caesar\n\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK JULIUS CAESAR ***\n\n\nACT I\n\nHence! home, you idle creatures\n\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK JULIUS CAESAR ***\nUpdated editions will replace\n"
    )
    assert list(articles.without_frame(iter([book]))) == ["ACT I\n\nHence! home, you idle creatures\n"]
    assert list(articles.without_frame(iter(["No frame at all\n"]))) == ["No frame at all\n"]
