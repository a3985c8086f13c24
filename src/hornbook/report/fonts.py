"""Names in a picture.

In: names in any script.  Out: what can be drawn of them, and the fonts to draw it in: the picture's own, and one of the
machine's that has the letters which that lacks. Where none has them they are spelt out.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font

# They have a sign for every letter, but the same for many, or pictures that cannot be drawn here.
WITHOUT_LETTERS = ("last resort", "lastresort", "fallback", "emoji")
LONGEST = 60


def drawable(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names as text of matplotlib's, and the families of fonts for all of them."""
    names = [name if len(name) <= LONGEST else name[: LONGEST - 3] + "..." for name in names]
    own = FontProperties()
    missing = frozenset("".join(names)) - _letters_of(findfont(own), "".join(names))
    other = _font_with(missing) if missing else None
    left = missing - _letters_of(other.fname, "".join(missing)) if other is not None else missing
    texts = ["".join(ascii(letter)[1:-1] if letter in left else letter for letter in name) for name in names]
    return [_taken_literally(text) for text in texts], [*own.get_family(), *([other.name] if other is not None else [])]


def _taken_literally(text: str) -> str:
    """Between two dollars matplotlib would read a formula, and a legend leaves out what begins with `_`."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


@cache
def _font_with(letters: frozenset[str]) -> FontEntry | None:
    """The font that has most of the letters, if any has one; of equals an upright one of usual weight."""
    best, most = None, 0
    for font in sorted(fontManager.ttflist, key=lambda each: (each.style != "normal", each.weight != 400, each.name)):
        if any(word in font.name.lower() for word in WITHOUT_LETTERS):
            continue
        if (has := len(_letters_of(font.fname, "".join(letters)))) > most:
            best, most = font, has
        if most == len(letters):
            break
    return best


def _letters_of(path: str, wanted: str) -> frozenset[str]:
    try:
        font = get_font(path)
        return frozenset(letter for letter in wanted if font.get_char_index(ord(letter)))
    except (OSError, RuntimeError):  # not a font after all
        return frozenset()
