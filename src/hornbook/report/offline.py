"""A page that asks nobody for anything.

In: a template, what it tells, and what its script draws.  Out: one HTML file, its style and script inside, whose own
policy forbids every request; signed, so that only our own page is ever replaced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from hornbook.base import files
from hornbook.base.console import warn

PAGE = Path(__file__).with_name("page")
STYLES, SCRIPTS = ("look.css", "report.css"), ("parts.js", "chart.js", "report.js")
# The last line of a page of ours: the hash of all before it.
SIGNATURE = "<!-- Hornbook {} -->\n"
SIGNATURE_BYTES = len(SIGNATURE.format("0" * 64))
LARGEST = 64 << 20


def page(template: str, data: Mapping[str, Any], **told: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = _code
    style, script = _joined(STYLES), _joined(SCRIPTS)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src 'sha256-{_hash(style)}'",
            f"script-src 'sha256-{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    held = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template(template).render(
        told | {"policy": policy, "style": Markup(style), "script": Markup(script), "data": Markup(held)}
    )


def _code(text: str) -> Markup:
    """What stands between backticks is a command."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


@cache
def _joined(names: tuple[str, ...]) -> str:
    """Modules as one: what one gives and another takes needs no words then."""
    text = "\n".join((PAGE / name).read_text() for name in names)
    return re.sub(r"^export (default )?", "", re.sub(r"^import .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def save_page(text: str, out: Path) -> Path:
    """Where a page of somebody else's has the name, beside it."""
    place, number = out, 1
    while os.path.lexists(place) and not is_signed(place):
        number += 1
        place = out.with_stem(f"{out.stem}-{number}")
    if place != out:
        warn(f"{out}: not known to be written by Hornbook; the page is {place.name}")
    data = text.encode(errors="replace")
    files.write_bytes(place, data + SIGNATURE.format(hashlib.sha256(data).hexdigest()).encode())
    return place


def is_signed(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
        return False
    data = path.read_bytes()
    signed = SIGNATURE.format(hashlib.sha256(data[:-SIGNATURE_BYTES]).hexdigest()).encode()
    return data[-SIGNATURE_BYTES:] == signed
