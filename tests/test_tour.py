"""The tour's snippets run as they stand, in the order of its pages."""

from __future__ import annotations

import re
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

TOUR = Path(__file__).parent.parent / "docs" / "tour"
TWO_SCREENS = 80  # lines


def test_its_snippets_run_and_what_they_claim_holds(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my-text.txt").write_bytes(text_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pages = sorted(TOUR.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
    for page in pages:
        for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
            exec(compile(snippet, page.name, "exec"), names)
    assert "bits per byte" in capsys.readouterr().out
    assert len(pages) == 9

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
