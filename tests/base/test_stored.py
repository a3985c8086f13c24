"""Files of earlier versions are read as what they meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from hornbook.base.errors import UserError
from hornbook.base.settings import Settings
from hornbook.base.stored import stored

FILE = Path("runs/old/run.json")


class Shape(Settings):
    every_knob_counts: ClassVar[bool] = True
    width: int = 4


class Run(Settings):
    renamed: ClassVar[Mapping[str, str]] = {"rate": "lr"}
    lr: float = 0.1
    shape: Shape = Shape()


def test_a_knob_that_was_renamed_keeps_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert stored(Run, {"rate": 0.5, "shape": {"width": 8}}, FILE) == Run(lr=0.5, shape=Shape(width=8))
    assert capsys.readouterr().err == ""


def test_a_knob_that_is_gone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert stored(Run, {"lr": 0.5, "nesterov": True}, FILE) == Run(lr=0.5)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{FILE}: nesterov is no setting any more" in line


@pytest.mark.parametrize("value", [None, False, 0, "none", []])
def test_one_that_asked_for_nothing_is_not_missed(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert stored(Run, {"nesterov": value, "shape": {"ring": value}}, FILE) == Run()
    assert capsys.readouterr().err == ""


def test_a_part_of_the_model_that_is_gone_is_not_passed_over() -> None:
    """Its weights would be computed with as something else."""
    with pytest.raises(UserError, match=r"run\.json: shape\.ring is 3, which this version cannot compute"):
        stored(Run, {"shape": {"width": 8, "ring": 3}}, FILE)


def test_what_is_wrong_names_the_file() -> None:
    with pytest.raises(UserError, match=r"^runs/old/run\.json: .*lr.*"):
        stored(Run, {"lr": "fast"}, FILE)
