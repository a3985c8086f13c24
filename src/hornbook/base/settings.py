"""The one way in for every setting.

In: nested dictionaries from TOML or JSON files, from `--a.b value`, or from Python.
Out: a frozen, validated `Settings` object, or a `UserError` that tells every mistake at once, one line each.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from hornbook.base.errors import UserError
from hornbook.base.files import read_small

Tree = dict[str, Any]
DEEPEST = 20


class Settings(BaseModel):
    """A frozen group of knobs. `mistakes` names combinations that cannot work, each with the knob to turn."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    renamed: ClassVar[Mapping[str, str]] = {}
    """What its knobs were called in earlier versions, whose files are still read (base/stored.py)."""
    also_called: ClassVar[Mapping[str, str]] = {}
    """What other programs call its knobs, to be named where somebody tries these."""
    every_knob_counts: ClassVar[bool] = False
    """Whether nothing can be done without a knob that is gone."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield (knob, what is wrong with it and what to do)."""
        return iter(())

    @model_validator(mode="after")
    def _no_mistakes(self) -> Self:
        found = list(self.mistakes())
        if found:
            raise PydanticCustomError("combination", "impossible combination", {"found": found})
        return self

    def with_(self, **knobs: Any) -> Self:
        """A copy with some knobs turned, validated again; a dictionary turns knobs inside a group."""
        return build(type(self), merge(self.model_dump(), knobs))


S = TypeVar("S", bound=Settings)


def build(kind: type[S], tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> S:
    """Validate `tree` as `kind`. `origins` tells where a knob was written (`run.toml line 3`), for the error line.
    What does not go together in a group is told once each of its knobs is right by itself."""
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        lines: list[str] = []
        for mistake in error.errors():
            path = tuple(str(part) for part in mistake["loc"])
            if mistake["type"] == "combination":
                found = mistake["ctx"]["found"]
                lines += [_line((*path, *knob.split(".")), what, origins) for knob, what in found]
            else:
                if mistake["type"] != "missing":
                    path = _existing(tree, path)
                lines.append(_line(path, _explain(kind, path, mistake), origins))
        raise UserError(*dict.fromkeys(lines)) from None


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Nested dictionaries laid over each other, the last one winning."""
    result: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = merge(value) if isinstance(value, Mapping) else value
    return result


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """The values of a nested tree by their dotted names."""
    found: Tree = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def from_words(kind: type[Settings], words: Sequence[str]) -> Tree:
    """`--a.b value`, `--a.b=value` and a bare `--a.b` (true) to a tree; values are read by the knob's type."""
    tree: Tree = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word}: not understood here; knobs are written --section.knob VALUE")
        name, equals, text = word[2:].partition("=")
        bare = not equals and (not waiting or waiting[0].startswith("--"))
        if not equals and not bare:
            text = waiting.pop(0)
        path = name.replace("-", "_").split(".")
        branch = tree
        for part in path[:-1]:
            inner = branch.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"--{name}: both a knob and a group of knobs")
            branch = inner
        branch[path[-1]] = True if bare else _read_value(knob_type(kind, path), text)
    return tree


def from_file(path: Path) -> tuple[Tree, dict[str, str]]:
    """A TOML or JSON file to a tree, and the line on which each knob was written."""
    try:
        text = read_small(path).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a recipe (hornbook recipes) or a .toml file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; settings are written as TOML or JSON") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: should hold a table of settings; a text in JSON is named with --data")
    if not _is_within(tree, DEEPEST):
        raise UserError(f"{path}: nested too deeply; knobs are written section.knob")
    lines = _lines_of_json(text) if path.suffix == ".json" else _lines_of_toml(text)
    return tree, {knob: f"{path.name} line {line}" for knob, line in lines.items()}


def _is_within(tree: Tree, depth: int) -> bool:
    return depth > 0 and all(_is_within(value, depth - 1) for value in tree.values() if isinstance(value, dict))


def knobs(kind: type[Settings]) -> Iterator[str]:
    """Every knob below `kind`, dotted."""
    return (dotted for dotted, _ in _fields(kind))


def described(kind: type[Settings]) -> Iterator[tuple[str, str, str]]:
    """Every knob as (name on the command line, default, what it is for)."""
    for dotted, field in _fields(kind):
        default = "auto" if field.default is None else json.dumps(field.default)
        yield spoken(dotted), default, " ".join((field.description or "").split())


def _fields(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        if (inner := _settings_type(field.annotation)) is None:
            yield prefix + name, field
        else:
            yield from _fields(inner, f"{prefix}{name}.")


def choices(kind: type[Settings], dotted: str) -> list[str]:
    """What a knob may be, where that is one of a few words; of a knob that takes several, any of them."""
    allowed = _union(knob_type(kind, dotted.split(".")))
    inside = [inner for each in allowed if typing.get_origin(each) is tuple for inner in typing.get_args(each)]
    lists = [each for each in (*allowed, *inside) if typing.get_origin(each) is typing.Literal]
    words = [str(word) for each in lists for word in typing.get_args(each)]
    return [*words, "a number"] if words and int in allowed else words


def knob_type(kind: type[Settings], path: Sequence[str]) -> Any:
    """The annotation of a knob, or None where there is no such knob."""
    current: type[Settings] | None = kind
    annotation: Any = None
    for part in path:
        if current is None or part not in current.model_fields:
            return None
        annotation = current.model_fields[part].annotation
        current = _settings_type(annotation)
    return annotation


def group_of(kind: type[Settings], name: str) -> type[Settings] | None:
    """The settings that stand under a name, where it is that of a group."""
    return _settings_type(kind.model_fields[name].annotation)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was most likely meant to be."""
    close = [each for each in known if each.startswith(name)] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # `lr` for `optim.lr`: compare the last parts
        by_last = {each.rpartition(".")[2]: each for each in reversed(known)}
        close = difflib.get_close_matches(name.rpartition(".")[2], list(by_last), n=1, cutoff=0.6)
        close = [by_last[each] for each in close]
    return close[0] if close else None


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """What is said of a name that is none of the known ones."""
    near = nearest(name, list(known))
    return f"did you mean {near}?" if near else otherwise


def spoken(dotted: str) -> str:
    """A knob as it is written on the command line."""
    return "--" + dotted.replace("_", "-")


def _line(path: Sequence[str], what: str, origins: Mapping[str, str] | None) -> str:
    dotted = ".".join(path)
    where = (origins or {}).get(dotted)
    return f"{where}: {dotted}: {what}" if where else f"{spoken(dotted)}: {what}"


def _explain(kind: type[Settings], path: Sequence[str], mistake: Mapping[str, Any]) -> str:
    if mistake["type"] == "extra_forbidden":
        inside = mistake["input"]
        while isinstance(inside, Mapping) and inside:  # a misspelt group: what was meant shows in the knob inside it
            path = (*path, str(next(iter(inside))))
            inside = inside[path[-1]]
        known = kind.also_called.get(path[-1].lower())
        near = known or nearest(".".join(path), list(knobs(kind)))
        return "no such knob" + (f"; did you mean {spoken(near)}?" if near else "; see hornbook train --help.all")
    if mistake["type"] == "model_type":
        return f"a group of knobs, not a value; for example {spoken(next(_below(kind, path)))}"
    if mistake["type"] == "missing":
        return "must be given"
    given = mistake["input"]
    return f"{worded(mistake)}, not {given if isinstance(given, str) else json.dumps(given, default=str)}"


def worded(mistake: Mapping[str, Any]) -> str:
    """What pydantic says is wrong with a value, fit to stand behind its name."""
    what = str(mistake["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return what[:1].lower() + what[1:]


def _below(kind: type[Settings], path: Sequence[str]) -> Iterator[str]:
    start = ".".join(path) + "."
    return (knob for knob in knobs(kind) if knob.startswith(start))


def _existing(tree: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """The part of `path` that is written in `tree`: pydantic adds the branches of a union to it."""
    for length, part in enumerate(path):
        if not isinstance(tree, Mapping) or part not in tree:
            return path[: max(length, 1)]
        tree = tree[part]
    return path


def _read_value(annotation: Any, text: str) -> Any:
    """The value that `text` means for a knob of this type; a text that cannot be read is left for validation to
    name."""
    allowed = _union(annotation)
    if type(None) in allowed and text.lower() in ("none", "auto"):
        return None
    if bool in allowed and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return text.lower() in ("true", "yes", "on")
    if int in allowed or float in allowed:
        for number in (int, float):
            if number in allowed or number is int:
                try:
                    return number(text.replace("_", ""))
                except ValueError:
                    continue
        return text
    if any(typing.get_origin(each) in (tuple, list) for each in allowed):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return _words_in(text) if _chooses_from_words(allowed) else [text]
        return value if isinstance(value, list) else [text]
    return text


def _chooses_from_words(allowed: tuple[Any, ...]) -> bool:
    return any(typing.get_origin(inner) is typing.Literal for each in allowed for inner in typing.get_args(each))


def _words_in(text: str) -> list[str]:
    """`qkv,out`; `none` is no word at all."""
    return [] if text.lower() == "none" else [word.strip() for word in text.split(",")]


def _union(annotation: Any) -> tuple[Any, ...]:
    """What an annotation allows."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for each in typing.get_args(annotation) for inner in _union(each))
    if typing.get_origin(annotation) is typing.Annotated:
        return _union(typing.get_args(annotation)[0])
    return (annotation,)


def _settings_type(annotation: Any) -> type[Settings] | None:
    for each in _union(annotation):
        if isinstance(each, type) and issubclass(each, Settings):
            return each
    return None


def _lines_of_toml(text: str) -> dict[str, int]:
    """On which line each knob and each table stands; good enough for an error line."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[{1,2}([\w.\-]+)\]", line):
            lines[header[1]] = number
            table = header[1] + "."
        elif key := re.match(r"\s*\"?([\w.\-]+)\"?\s*=", line):
            lines[table + key[1]] = number
            for inner in re.findall(r"[{,]\s*([\w.\-]+)\s*=", line):  # oven = {fan = true}
                lines[f"{table}{key[1]}.{inner}"] = number
    return lines


def _lines_of_json(text: str) -> dict[str, int]:
    """The same, of a text that is known to be JSON."""
    lines: dict[str, int] = {}
    path: list[str] = []
    for part in re.finditer(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[{}]', text):
        if part[0] == "{":
            path.append("")
        elif part[0] == "}":
            path.pop()
        elif part[2]:
            path[-1] = part[1]
            lines[".".join(path)] = text.count("\n", 0, part.start()) + 1
    return lines
