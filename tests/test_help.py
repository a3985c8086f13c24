"""The knobs as `hornbook train --help` shows them."""

from __future__ import annotations

import re

import pytest

from hornbook import cli
from hornbook.base.settings import knobs, spoken
from hornbook.cli.knobs import FIRST, GROUPS, group_of
from hornbook.cli.words import in_columns
from hornbook.recipes import RECIPES
from hornbook.train.config import RunConfig
from hornbook.train.schedule_config import SCHEDULES

EVERY = [spoken(knob) for knob in knobs(RunConfig)]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """Knob by knob, its value."""
    assert cli.main(["train", *words]) == 0
    return dict(re.findall(r"^  (--\S+) (.+)$", capsys.readouterr().out, flags=re.MULTILINE))


def test_what_is_turned_most_comes_first_and_all_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown(capsys, "--help")) == [spoken(knob) for knob in FIRST]
    assert sorted(shown(capsys, "--help.all")) == sorted(EVERY)
    assert {group_of(knob) for knob in knobs(RunConfig)} == set(GROUPS)
    assert list(shown(capsys, "--help.shards")) == ["--shards.val-fraction", "--shards.test-fraction"]


@pytest.mark.parametrize("name", [None, "gpt2", "the-verdict"])
def test_values_are_those_of_the_recipe_and_of_what_is_given(
    name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config, named = RECIPES[name or "demo"](), [name] if name else []
    values = shown(capsys, *named, "--help.all", "--model.n-layer", "3")
    assert values["--model.n-layer"] == "3"
    assert int(values["--model.n-embd"]) == config.model.n_embd
    assert float(values["--optim.lr"]) == config.optim.lr
    assert values["--data"] == config.data


def test_choices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help.schedule"]) == 0
    assert f"One of: {', '.join(SCHEDULES)}." in " ".join(capsys.readouterr().out.split())


def test_what_the_commands_do_stays_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = in_columns(cli.ABOUT, cli.SECOND_COLUMN)
    assert max(map(len, narrow.splitlines())) < 80
    assert narrow.split() == cli.ABOUT.split()
    assert len([line for line in narrow.splitlines() if line.startswith("  hornbook ")]) == len(cli.COMMANDS)
    below = [line for line in narrow.splitlines() if line.startswith("   ")]
    assert below
    assert {len(line) - len(line.lstrip()) for line in below} == {cli.SECOND_COLUMN}


def test_no_line_is_wider_than_the_terminal_nor_broken_in_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["train", "--help.all"]) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) < 60
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["train", "--help.all"]) == 0
    assert capsys.readouterr().out.split() == narrow.split()


def test_a_group_that_there_is_not_is_told_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help.modle"]) == 2
    assert "there are run, model, train" in capsys.readouterr().err
