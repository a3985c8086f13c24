"""Names for folders of ours, from names that others gave.

In: any name that a file can have.  Out: one that every file system and terminal takes, recognisable and short.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# Of UTF-8. Beside it stand a hash, a process's number, and what says that the folder is not finished; encrypted disks
# take 143 bytes in all.
LONGEST = 100
# On the disks of Windows, which WSL shows.
REFUSED = set('/\\:*?"<>|')


def plain_name(name: str, otherwise: str = "text") -> str:
    """Controls, bytes that are no UTF-8, and what a disk of Windows refuses become `_`; no blank or dot at an end."""
    letters = ("_" if letter in REFUSED or not letter.isprintable() else letter for letter in name)
    short = "".join(letters).encode()[:LONGEST].decode(errors="ignore")
    return short.strip(" .") or otherwise


def own_version() -> str:
    try:
        return version("hornbook")
    except PackageNotFoundError:
        return "from its sources, not installed"
