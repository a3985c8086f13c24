"""Which run is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from hornbook.base.errors import UserError
from hornbook.report.curves import Curves
from hornbook.runs.folder import resolve
from hornbook.train.start import resume


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lr1", "lr2", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("typed", "meant"), [("lr1", "lr1"), ("runs/othr", "other"), ("othr", "other")])
def test_a_run_by_its_bare_name_or_misspelt_is_named(typed: str, meant: str) -> None:
    for command in (resolve, resume, Curves.read):
        with pytest.raises(UserError, match=rf"did you mean runs/{meant}\?$"):
            command(Path(typed))


def test_where_none_is_like_it_the_way_to_one_is_told() -> None:
    with pytest.raises(UserError, match="hornbook train makes one"):
        resolve(Path("zzzzzz"))
