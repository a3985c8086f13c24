"""Named runs. A recipe is a function that returns a RunConfig, and its entry in RECIPES.

In: a name, a file, or the text that a user brings, and knobs.  Out: the RunConfig to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError
from hornbook.base.settings import from_file, nearest
from hornbook.recipes import modern
from hornbook.shards.format import is_shards
from hornbook.text.corpora import CORPORA, find_source
from hornbook.train.config import RunConfig, override

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "demo": modern.demo,
    "demo-classic": modern.demo_classic,
}
DEFAULT = "demo"


def compose(named: RunConfig | str | None, knobs: Mapping[str, Any]) -> RunConfig:
    """The run that is meant: a recipe by name, a .toml or .json file, sizes chosen for a text, or the default; with
    knobs turned."""
    if isinstance(named, RunConfig):
        return override(named, knobs)
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if named is not None and named.endswith((".toml", ".json")):
        tree, origins = from_file(Path(named))
        origins = {knob: line for knob, line in origins.items() if not _is_given(knobs, knob)}
        tree, based_on = tree | {"recipe": Path(named).stem}, tree.get("recipe")
    else:
        based_on = named
    data = knobs.get("data", tree.get("data"))
    if based_on is not None:
        base = _recipe(str(based_on))
    elif isinstance(data, str) and data not in CORPORA and not is_shards(Path(data)):
        base = _for_own_text(data)
    else:
        base = _recipe(DEFAULT)
    return override(base, tree, knobs, origins=origins)


def _recipe(name: str) -> RunConfig:
    if name not in RECIPES:
        near = nearest(name, list(RECIPES))
        raise UserError(f"{name}: no such recipe; " + (f"did you mean {near}?" if near else "see: hornbook recipes"))
    return RECIPES[name]()


def _is_given(knobs: Mapping[str, Any], dotted: str) -> bool:
    first, _, rest = dotted.partition(".")
    return first in knobs and (not rest or (isinstance(knobs[first], Mapping) and _is_given(knobs[first], rest)))


def _for_own_text(data: str) -> RunConfig:
    from hornbook.base.machine import choose_machine

    return modern.own_text(data, find_source(data).likely_bytes_of_text(), choose_machine().device != "cpu")
