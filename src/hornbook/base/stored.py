"""Settings as an earlier version wrote them.

In: what run.json or config.json holds.  Out: the settings of today. A knob that was renamed is found under its new name
(`renamed` of its Settings); one that is gone is told in one line, and the run goes on without, unless the model cannot
be computed without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.base.settings import S, Settings, Tree, build, group_of

# A knob that stood at one of these asked for nothing.
OFF: tuple[Any, ...] = (None, False, 0, "", "none", [])


def stored(kind: type[S], tree: Mapping[str, Any], path: Path) -> S:
    """What was written into `path`, as settings of this version; what is wrong with it names the file."""
    gone: list[tuple[type[Settings], str, Any]] = []
    today = _of_today(kind, tree, "", gone)
    for group, name, value in gone:
        if group.every_knob_counts:
            asked = f"{name} is {str(value)[:40]}"
            raise UserError(f"{path}: {asked}, which this version cannot compute; take the one that wrote it")
        warn(f"{path}: {name} is no setting any more; going on without")
    try:
        return build(kind, today)
    except UserError as error:
        raise UserError(*(f"{path}: {mistake}" for mistake in error.mistakes)) from None


def _of_today(
    kind: type[Settings], tree: Mapping[str, Any], prefix: str, gone: list[tuple[type[Settings], str, Any]]
) -> Tree:
    today: Tree = {}
    for written, value in tree.items():
        name = kind.renamed.get(written, written)
        if name not in kind.model_fields:
            if value not in OFF:
                gone.append((kind, prefix + name, value))
        elif (group := group_of(kind, name)) is not None and isinstance(value, Mapping):
            today[name] = _of_today(group, value, f"{prefix}{name}.", gone)
        else:
            today[name] = value
    return today
