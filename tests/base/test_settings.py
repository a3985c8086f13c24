from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from effort import examples
from hornbook.base.errors import LONGEST_LINE, UserError
from hornbook.base.settings import Settings, build, described, from_file, from_words, knobs, merge, nearest, spoken


class Oven(Settings):
    heat_celsius: int = Field(180, ge=0, le=300)
    """How hot."""
    minutes: float | None = Field(None, gt=0)
    """How long."""
    fan: bool = False
    mode: Literal["bake", "grill"] = "bake"

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.mode == "grill" and self.heat_celsius < 200:
            yield "heat_celsius", "a grill begins at 200"


class Dough(Settings):
    flours: tuple[str, ...] = Field(("wheat",), strict=False)
    salt_grams: float = 10.0


class Bread(Settings):
    name: str = "loaf"
    oven: Oven = Oven()
    dough: Dough = Dough()

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.oven.fan and self.dough.salt_grams > 50:
            yield "dough.salt_grams", "too salty for a fan"


def told(tree: dict[str, Any], origins: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(Bread, tree, origins)
    assert caught.value.exit_code == 2
    assert all(len(line) <= LONGEST_LINE and "\n" not in line for line in caught.value.mistakes)
    return caught.value.mistakes


def told_of_file(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return told(*from_file(path))


def told_of_words(*words: str) -> list[str]:
    return told(from_words(Bread, words))


def test_every_door_gives_the_same_object(tmp_path: Path) -> None:
    wanted = Bread(
        name="rye",
        oven=Oven(heat_celsius=220, minutes=40.0, fan=True, mode="grill"),
        dough=Dough(flours=("rye", "oat"), salt_grams=7.0),
    )
    toml, js = tmp_path / "bread.toml", tmp_path / "bread.json"
    toml.write_text(
        'name = "rye"\n[oven]\nheat_celsius = 220\nminutes = 40\nfan = true\nmode = "grill"\n'
        '[dough]\nflours = ["rye", "oat"]\nsalt_grams = 7\n'
    )
    js.write_text(
        '{"name": "rye", "oven": {"heat_celsius": 220, "minutes": 40, "fan": true, "mode": "grill"},'
        ' "dough": {"flours": ["rye", "oat"], "salt_grams": 7}}'
    )
    flours = '["rye", "oat"]'
    rest = ["--oven.mode", "grill", "--dough.flours", flours, "--dough.salt-grams=7.0", "--name=rye"]
    trees = {
        "toml": from_file(toml)[0],
        "json": from_file(js)[0],
        "python": wanted.model_dump(),
        "objects": {"name": "rye", "oven": wanted.oven, "dough": wanted.dough},
        "words": from_words(Bread, ["--oven.heat-celsius", "220", "--oven.minutes", "40", "--oven.fan", *rest]),
        "words with =": from_words(Bread, ["--oven.heat_celsius=220", "--oven.minutes=4e1", "--oven.fan=yes", *rest]),
    }
    assert {door: build(Bread, tree) for door, tree in trees.items()} == dict.fromkeys(trees, wanted)
    assert Bread().with_(name="rye", oven={**dict(wanted.oven)}, dough=wanted.dough) == wanted


def test_a_byte_order_mark_is_no_part_of_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "bread.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "rye"\n')
    assert from_file(path)[0] == {"name": "rye"}


def test_all_mistakes_are_told_at_once() -> None:
    lines = told(
        {
            "nmae": "rye",
            "ovn": {"fan": True},
            "oven": {"heat_celsius": "hot", "mode": "boil", "fann": 1},
            "dough": {"salt_grams": 60.0},
        }
    )
    assert {line.partition(":")[0] for line in lines} == {
        "--nmae", "--ovn", "--oven.heat-celsius", "--oven.mode", "--oven.fann",
    }  # fmt: skip
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"nmae": "x"}, "--nmae: no such knob; did you mean --name?"),
        ({"minuts": 3}, "--minuts: no such knob; did you mean --oven.minutes?"),
        ({"ovn": {"fan": True}}, "--ovn: no such knob; did you mean --oven.fan?"),
        ({"dough": {"salt_gram": 3.0}}, "--dough.salt-gram: no such knob; did you mean --dough.salt-grams?"),
    ],
)
def test_an_unknown_knob_names_the_nearest(tree: dict[str, Any], line: str) -> None:
    assert told(tree) == [line]


def test_a_name_like_no_other_is_not_guessed_at() -> None:
    assert nearest("zzzzqqqq", list(knobs(Bread))) is None
    assert "did you mean" not in told({"zzzzqqqq": 1})[0]


def test_combinations_are_told_beside_the_mistakes_of_other_groups_and_across_groups() -> None:
    lines = told({"nmae": 1, "oven": {"mode": "grill"}, "dough": {"salt_gram": 60.0}})
    assert [line.partition(":")[0] for line in lines] == ["--oven.heat-celsius", "--dough.salt-gram", "--nmae"]
    [line] = told({"oven": {"fan": True}, "dough": {"salt_grams": 60.0}})
    assert line.startswith("--dough.salt-grams: too salty")


def test_a_wrong_value_is_not_blamed_for_combinations_of_the_default_in_its_place() -> None:
    """Without `heat_celsius` the grill would stand at 180, which the user never wrote."""
    assert len(told({"oven": {"mode": "grill", "heat_celsius": "very"}})) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--name"],  # no value
        ["--oven.heat-celsius"],
        ["--oven.heat-celsius", "1.5"],
        ["--oven.minutes", "nan"],
        ["--oven.minutes", "-1"],
        ["--oven.fan", "maybe"],
        ["--oven.mode", "Bake"],
        ["--dough.flours", "[1, 2]"],
        ["--oven", "hot"],
        ["--dough.salt-grams.much", "3"],
    ],
)
def test_a_wrong_value_on_the_command_line_names_the_knob(words: list[str]) -> None:
    (knob,) = {line.partition(":")[0] for line in told_of_words(*words)}
    assert words[0].startswith(knob)


def test_words_that_are_no_knobs_are_refused() -> None:
    for words in (["rye"], ["--oven.fan", "yes", "rye"], ["--oven=3", "--oven.fan"]):
        with pytest.raises(UserError):
            from_words(Bread, words)


@pytest.mark.parametrize(
    ("ending", "text", "lines"),
    [
        (".toml", '# mine\nnmae = 1\n\n[oven]\nfan = "x"\n', {2: "nmae", 5: "oven.fan"}),
        (".toml", "[ovn]\nfan = true\n[oven]\nmode = 'grill'\nheat_celsius = 3\n", {1: "ovn", 5: "oven.heat_celsius"}),
        (".toml", "\noven = {fan = 3}\n", {2: "oven.fan"}),
        (".toml", "\noven.fan = 3\n", {2: "oven.fan"}),
        (".json", '{"name": "a \\" { b",\n "oven": {\n  "fan": 3,\n  "mode": 4\n }}', {3: "oven.fan", 4: "oven.mode"}),
        (".json", '{"dough": {},\n "name": 3}', {2: "name"}),
        (".json", '{"oven": {"fan": true},\n "dough": {\n"salt_grams": 60}}', {3: "dough.salt_grams"}),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_file_line_and_knob(
    tmp_path: Path, ending: str, text: str, lines: dict[int, str]
) -> None:
    starts = {f"bread{ending} line {number}: {knob}" for number, knob in lines.items()}
    found = told_of_file(tmp_path / f"bread{ending}", text)
    assert {": ".join(line.split(": ")[:2]) for line in found} == starts


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.toml", b"name = "),
        ("a.toml", b"\xff\xfe\x00"),
        ("a.toml", b"x = " + b"[" * 20_000),
        ("a.json", b'{"name": '),
        ("a.json", b"[1, 2]"),
        ("a.json", b"[" * 200_000),
        ("a.json", b'{"oven": ' + b"9" * 5_000 + b"}"),
        ("a.json", b"\xe9"),
        ("a.json", b""),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        from_file(tmp_path / name)
    assert len(caught.value.mistakes) == 1
    assert re.match(rf"\S*{re.escape(name)}[: ]", str(caught.value))
    assert len(str(caught.value)) <= LONGEST_LINE


def test_a_missing_file_and_a_folder_are_one_line_each(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match=path.name):
            from_file(path)


def test_no_line_is_longer_than_promised() -> None:
    long = "x" * 3_000
    lines = told({long: 1, "name": [long], "oven": {"mode": long, long: {long: long}}})
    assert len(lines) == 4


def test_settings_cannot_be_changed_but_copied() -> None:
    bread = Bread()
    with pytest.raises(ValidationError):
        bread.name = "rye"
    warmer = bread.with_(oven={"heat_celsius": 200})
    assert (warmer.oven.heat_celsius, bread.oven.heat_celsius) == (200, 180)
    with pytest.raises(UserError):
        bread.with_(oven={"mode": "grill"})


def test_the_last_tree_wins_and_none_is_changed() -> None:
    first, second = {"a": 1, "b": {"c": 1, "d": 1}}, {"b": {"d": 2}, "e": 3}
    assert merge(first, second) == {"a": 1, "b": {"c": 1, "d": 2}, "e": 3}
    assert first == {"a": 1, "b": {"c": 1, "d": 1}}


def test_every_knob_is_described_once() -> None:
    told_of = list(described(Bread))
    assert [name for name, _, _ in told_of] == [spoken(knob) for knob in knobs(Bread)]
    assert ("--oven.minutes", "auto", "How long.") in told_of


breads = st.builds(
    Bread,
    name=st.text(),
    oven=st.builds(
        Oven,
        heat_celsius=st.integers(200, 300),
        minutes=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
        fan=st.booleans(),
        mode=st.sampled_from(["bake", "grill"]),
    ),
    dough=st.builds(
        Dough, flours=st.lists(st.text()).map(tuple), salt_grams=st.floats(max_value=50, allow_infinity=False)
    ),
)


def as_words(settings: Settings, joined: bool, prefix: str = "") -> Iterator[str]:
    for name, value in settings:
        if isinstance(value, Settings):
            yield from as_words(value, joined, f"{prefix}{name}.")
            continue
        text = value if isinstance(value, str) else "auto" if value is None else json.dumps(value)
        word = spoken(prefix + name)
        yield from [f"{word}={text}"] if joined or text.startswith("--") else [word, text]


@examples(1_500)
@given(breads, st.booleans())
def test_any_settings_written_as_words_are_read_back(bread: Bread, joined: bool) -> None:
    assert build(Bread, from_words(Bread, list(as_words(bread, joined)))) == bread


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Bread.model_fields, *Oven.model_fields]) | st.text(max_size=5), inner)
    ),
    max_leaves=10,
)


@examples(1_500)
@given(st.dictionaries(st.sampled_from(list(Bread.model_fields)) | st.text(max_size=5), junk, max_size=4))
def test_any_tree_is_settings_or_short_lines(tree: dict[str, Any]) -> None:
    with contextlib.suppress(ValidationError):
        Bread.model_validate(tree)
        assert build(Bread, tree) == Bread.model_validate(tree)
        return
    assert all(told(tree))
