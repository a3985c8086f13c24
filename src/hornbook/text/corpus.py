"""What a corpus is: files to fetch, or text that is here, and how it becomes documents.

In: an entry of the table in text/corpora.py, and what is chosen of it.  Out: a `Source`; what it needs is fetched
first, into `corpora/NAME` in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import Progress, count
from hornbook.base.download import fetch, is_there, place
from hornbook.base.errors import UserError
from hornbook.base.hub import fetch_from_hub
from hornbook.base.settings import meant
from hornbook.text.readers import Part, Source

Choice = Mapping[str, str]
Shape = Callable[[Iterator[str]], Iterator[str]]


@dataclass(frozen=True)
class Remote:
    """A file that is fetched. It is proven by its sha256; on the hub, where none is told here, by the hub's own."""

    at: str
    """Its address; or on the hub: `hub:OWNER/DATASET@REVISION/PATH`."""
    bytes: int
    split: str = ""
    """train, val or test; otherwise preparation decides for each document."""
    sha256: str | None = None
    exact: bool = True
    """Whether `bytes` is its size, or about that."""
    check: Callable[[Path], str | None] | None = None
    """What proves a file whose bytes are not fixed: it says what is wrong with one."""

    @property
    def name(self) -> str:
        """Its place in the corpus's folder. A file on the hub has its revision in it, since another has other bytes."""
        if not self.at.startswith("hub:"):
            return self.at.rpartition("/")[2]
        _, revision, path = self.hub_parts()
        return f"{revision[:8]}/{path}"

    def hub_parts(self) -> tuple[str, str, str]:
        repository, _, rest = self.at.removeprefix("hub:").partition("@")
        revision, _, path = rest.partition("/")
        return repository, revision, path

    def proof(self) -> str:
        """What its bytes are compared with."""
        if self.sha256:
            return f"sha256 {self.sha256[:12]}"
        return "the hub's sha256" if self.at.startswith("hub:") else "its first and last lines"

    def size(self) -> int | None:
        return self.bytes if self.exact else None

    def fetch(self, folder: Path, progress: Progress) -> Path:
        if self.at.startswith("hub:"):
            where = (*self.hub_parts(), folder, self.name)
            return fetch_from_hub(*where, sha256=self.sha256, size=self.size(), progress=progress)
        return fetch(
            self.at, folder, self.name, sha256=self.sha256, size=self.size(), check=self.check, progress=progress
        )


@dataclass(frozen=True)
class Switch:
    """A choice within a corpus. `0-29` among the values stands for any of these numbers, and ranges of them."""

    name: str
    values: str
    default: str
    about: str

    def read(self, corpus: str, text: str) -> str:
        """A value in its one way of writing."""
        where = f"{corpus}:{self.name}={text}"
        if "-" not in self.values:
            if text not in self.values.split("|"):
                raise UserError(f"{where}: should be one of {', '.join(self.values.split('|'))}")
            return text
        first, last = (int(each) for each in self.values.split("-"))
        chosen: set[int] = set()
        for span in text.split(","):
            low, _, high = span.partition("-")
            ends = [each for each in (low, high or low) if each.isdecimal()]
            if len(ends) != 2 or not first <= int(ends[0]) <= int(ends[1]) <= last:
                raise UserError(f"{where}: should be numbers from {first} to {last}, such as {first} or {first}-{last}")
            chosen.update(range(int(ends[0]), int(ends[1]) + 1))
        return ",".join(map(str, sorted(chosen)))


SPLIT = Switch("split", "all|train|val|test", "all", "all of its splits, or the text of one alone")


@dataclass(frozen=True)
class Corpus:
    name: str
    about: str
    licence: str
    origin: str
    """Where it comes from, for people to look at."""
    remote: Callable[[Choice], list[Remote]] = lambda choice: []
    """The files to fetch, in the order in which they are read."""
    local: Callable[[], Source] | None = None
    """The text, where it is on this machine already."""
    shape: Callable[[Choice], Shape | None] = lambda choice: None
    switches: tuple[Switch, ...] = ()
    pinned: str = ""
    """A name for just this text, where that by which it was asked for may mean another one tomorrow."""

    def folder(self) -> Path:
        return files.home() / "corpora" / self.name

    def choose(self, words: list[str]) -> dict[str, str]:
        """Every switch with its value, from words like `files=0-2`."""
        known = {switch.name: switch for switch in self.switches}
        choice = {name: switch.read(self.name, switch.default) for name, switch in known.items()}
        for word in words:
            name, _, value = word.partition("=")
            if name not in known:
                hint = meant(name, known, f"it has {', '.join(known) or 'none'}")
                raise UserError(f"{self.name}:{word}: no such switch of this corpus; {hint}")
            choice[name] = known[name].read(self.name, value)
        return choice

    def files(self, choice: Choice) -> list[Remote]:
        """What the choice needs."""
        alone = choice.get("split", "all")
        return [each for each in self.remote(choice) if alone in ("all", each.split)]

    def missing(self, choice: Choice) -> list[Remote]:
        return self._not_here(self.files(choice))

    def likely_bytes_of_text(self, choice: Choice) -> int:
        """Told before anything is fetched; packed files hold about three times their size."""
        if self.local is not None:
            return self.local().bytes_on_disk()
        return sum(each.bytes * (1 if each.at.endswith(".txt") else 3) for each in self.files(choice))

    def splits(self, choice: Choice) -> list[str]:
        """Those that it brings of its own."""
        return _splits_of(self.files(choice))

    def facts(self, choice: Choice) -> dict[str, Any]:
        """What it is, what of it is here, and what the rest would cost; nothing is fetched."""
        wanted, missing = self.files(choice), self.missing(choice)
        local = self.local() if self.local else None
        here = sum(place(self.folder(), each.name).stat().st_size for each in wanted if each not in missing)
        return {
            "name": self.name,
            "about": self.about,
            "licence": self.licence,
            "origin": self.origin,
            "folder": str(local.parts[0].root if local else self.folder()),
            "splits": self.splits(choice),
            "switches": [
                {"name": each.name, "values": each.values, "chosen": choice[each.name], "about": each.about}
                for each in self.switches
            ],
            "bytes_here": local.bytes_on_disk() if local else here,
            "bytes_to_fetch": sum(each.bytes for each in missing),
            "exact": all(each.exact for each in missing),
            "files": [
                {
                    "name": each.name,
                    "at": each.at,
                    "split": each.split,
                    "bytes": each.bytes,
                    "exact": each.exact,
                    "proof": each.proof(),
                    "here": each not in missing,
                }
                for each in wanted
            ],
        }

    def source(self, choice: Choice, progress: Progress, most_files: int | None = None) -> Source:
        """Its text, or the beginning of it: that of its first files."""
        if self.local is not None:
            return self.local()
        wanted = self.files(choice)[:most_files]
        self._announce(wanted, progress)
        paths = [(each, each.fetch(self.folder(), progress)) for each in wanted]
        progress.close()
        shape = self.shape(choice)
        variant = ":".join(f"{name}={value}" for name, value in choice.items() if name not in ("files", "split"))
        kept = [] if choice.get("split", "all") == "all" else [""]
        parts = [
            Part(
                self.name,
                self.folder(),
                tuple(path for each, path in paths if split in (each.split, "")),
                split=split,
                shape=shape,
                variant=variant,
                origin=self.pinned,
            )
            for split in kept or _splits_of(wanted) or [""]
        ]
        return Source(self.name, tuple(parts))

    def _not_here(self, wanted: list[Remote]) -> list[Remote]:
        return [each for each in wanted if not is_there(place(self.folder(), each.name), each.size())]

    def _announce(self, wanted: list[Remote], progress: Progress) -> None:
        """Say from where, how much, and where to, before it is fetched."""
        missing = self._not_here(wanted)
        if missing:
            about = "" if all(each.exact for each in missing) else "about "
            size = count(float(sum(each.bytes for each in missing)))
            number = f"{len(missing)} files, " if len(missing) > 1 else ""
            progress.note(
                f"fetching {self.name} from {self.origin}: {number}{about}{size} bytes, once; "
                f"kept in {self.folder()} (HORNBOOK_HOME)"
            )


def _splits_of(remotes: list[Remote]) -> list[str]:
    return list(dict.fromkeys(each.split for each in remotes if each.split))
