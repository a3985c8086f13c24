"""The tour's snippets run as they stand, in the order of its pages."""

from __future__ import annotations

import code
import re
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

import hornbook

TOUR = Path(__file__).parent.parent / "docs" / "tour"
TWO_SCREENS = 80  # lines


def paste(pages: list[Path], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Line by line, as Python 3.11's prompt takes what is pasted into it: a block ends with an empty line."""
    console = code.InteractiveConsole(names)
    for page in pages:
        for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in [*snippet.split("\n"), ""]:
                console.push(line)
            out, err = capsys.readouterr()
            assert "Error" not in err, f"{page.name}: {err}"
    return out


def test_its_snippets_run_and_what_they_claim_holds(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my-text.txt").write_bytes(text_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pages = sorted(TOUR.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
    assert len(pages) == 9
    assert "[('" in paste(pages, names, capsys)  # the last page's alternatives

    # And of a run that is there already, and is nothing like it.
    model = {"n_layer": 1, "n_head": 4, "n_embd": 32, "context": 64}
    train = {"steps": 12, "batch_tokens": 256}
    other = hornbook.fit("my-text.txt", out="runs/other", tokenizer={"kind": "byte"}, model=model, train=train)
    paste(pages[1:], {"hornbook": hornbook, "run": other, "model": other.model()}, capsys)

    drawn = runpy.run_path(str(TOUR / "pictures.py"))["draw"](names["run"].folder, tmp_path)
    assert all(imread(each).std() > 0.05 for each in drawn)  # not blank
    shown = {name for page in pages for name in re.findall(r"!\[[^]]*\]\(([\w-]+\.png)\)", page.read_text())}
    by_report = {"gradients.png", "overfitting.png"}
    assert shown - {each.name for each in drawn} == by_report
    assert {each.name for each in drawn} < shown


def test_its_pages_are_short_and_lead_from_one_to_the_next() -> None:
    index = (TOUR / "README.md").read_text()
    pages = re.findall(r"\]\((\d-[\w-]+\.md)\)", index)
    assert sorted(pages) == sorted(page.name for page in TOUR.glob("?-*.md"))
    for page, following in pairwise(pages):
        assert f"]({following})" in (TOUR / page).read_text()
    for page in pages:
        text = (TOUR / page).read_text()
        assert len(text.splitlines()) <= TWO_SCREENS
        for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", text):
            assert (TOUR / target).exists(), f"{page}: {target}"
