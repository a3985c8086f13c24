"""Data sets of the Hugging Face hub, by their names.

In: `hf:OWNER/NAME[/CONFIG][:SPLIT][@REVISION]`.  Out: a `Corpus` of the files that belong to it at one commit. What a
branch is at is asked once a process, its files are listed once a commit; both are kept, for when no network is there.
Which files belong to a split the data set's card says; where it does not, their names.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import note, warn
from hornbook.base.errors import MachineError, UserError
from hornbook.base.hub import is_commit, listed_on_hub
from hornbook.base.settings import meant
from hornbook.text.corpus import Corpus, Remote
from hornbook.text.formats import FORMAT_OF, ending_of

PREFIX = "hf:"
FORM = "hf:OWNER/NAME[/CONFIG][:SPLIT][@REVISION]"
SPLIT_OF = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_NAME = re.compile(
    r"hf:(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<config>\w[\w.+/-]*))?"
    r"(:(?P<split>\w[\w.-]*))?(@(?P<revision>\w[\w./-]{0,99}))?"
)
_SPLIT_IN_PATH = re.compile(r"(?:^|[^a-z])(train|validation|valid|val|dev|test)(?=[^a-z]|$)")
TEXTS = (".txt",)  # of the formats that are no records; a README.md is no data
_note_once = functools.cache(note)


@dataclass(frozen=True)
class Name:
    repository: str
    config: str
    split: str
    revision: str

    @classmethod
    def of(cls, text: str) -> Name:
        found = _NAME.fullmatch(text)
        if found is None or ".." in text:
            raise UserError(f"{text}: not a data set's name on the hub; should be {FORM}")
        return cls(found["repository"], found["config"] or "", found["split"] or "", found["revision"] or "main")

    def at(self, commit: str, split: str) -> str:
        config, split = f"/{self.config}" if self.config else "", f":{split}" if split else ""
        return f"{PREFIX}{self.repository}{config}{split}@{commit}"

    def listing(self) -> dict[str, Any]:
        return _listing(self.repository, self.revision, str(files.home()), os.environ.get("HF_ENDPOINT", ""))


def is_dataset(name: str) -> bool:
    return name.startswith(PREFIX)


def dataset(name: str) -> Corpus:
    """What of it is wanted, listed but not fetched."""
    asked = Name.of(name)
    listing = asked.listing()
    commit, splits = str(listing["commit"]), _files_of_splits(asked, listing)
    remotes = [
        Remote(
            f"hub:{asked.repository}@{commit}/{each['path']}",
            int(each["bytes"]),
            "" if asked.split else SPLIT_OF.get(split, ""),
            each["sha256"],
        )
        for split, found in splits.items()
        for each in found
    ]
    return Corpus(
        asked.repository.replace("/", "--"),
        f"a data set of the Hugging Face hub, at commit {commit[:8]}",
        str(listing["licence"] or "none is told there"),
        f"huggingface.co/datasets/{asked.repository}",
        lambda choice: remotes,
        pinned=asked.at(commit, asked.split),
    )


def pinned(name: str) -> str:
    """The same text, whatever becomes of the branch; any other name as it is."""
    return dataset(name).pinned if is_dataset(name) else name


def validation_of(name: str) -> str:
    """The validation split alone, where it has one and its name says nothing of splits."""
    asked = Name.of(name)
    listing = asked.listing()
    label = next((each for each in _files_of_splits(asked, listing) if SPLIT_OF.get(each) == "val"), None)
    return name if asked.split or label is None else asked.at(str(listing["commit"]), label)


@functools.cache
def _listing(repository: str, revision: str, home: str, endpoint: str) -> dict[str, Any]:
    """Files, card and commit of a data set, as they were when that commit was first met."""
    folder = Path(home) / "corpora" / repository.replace("/", "--")
    known = folder / f"{revision.replace('/', '--')}.commit"
    commit = revision if is_commit(revision) else ""
    if not commit or not _kept(folder, commit).is_file():
        try:
            told = listed_on_hub(repository, revision)
        except MachineError:
            commit = files.read_small(known).strip() if known.is_file() else ""
            if not is_commit(commit) or not _kept(folder, commit).is_file():
                raise
            warn(f"{PREFIX}{repository}: the hub does not answer; taken as it was at commit {commit[:8]}")
        else:
            commit = told["commit"]
            files.make_folder(folder)
            if not _kept(folder, commit).is_file():
                files.write_json(_kept(folder, commit), told)
            if not is_commit(revision):
                files.write_text(known, commit + "\n")
    return files.read_json(_kept(folder, commit))


def _kept(folder: Path, commit: str) -> Path:
    return folder / f"{commit}.json"


def _files_of_splits(asked: Name, listing: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The files of each split that is wanted, under the data set's own names of splits."""
    every = _by_card(asked, listing) or _by_names(asked, listing)
    if asked.split:
        alike = [each for each in every if SPLIT_OF.get(each, each) == SPLIT_OF.get(asked.split, asked.split)]
        if asked.split not in every and len(alike) != 1:
            raise UserError(f"{PREFIX}{asked.repository}: has no split {asked.split}; it has {_told(every)}")
        label = asked.split if asked.split in every else alike[0]
        return {label: every[label]}
    known = {label: found for label, found in every.items() if not label or label in SPLIT_OF}
    if not any(SPLIT_OF.get(label, "train") == "train" for label in known):
        first = next(iter(every))
        raise UserError(
            f"{PREFIX}{asked.repository}: which of its splits? it has {_told(every)}; name one: "
            f"{PREFIX}{asked.repository}:{first}"
        )
    if left_out := [label for label in every if label not in known]:
        _note_once(f"{PREFIX}{asked.repository}: not read: its splits {_told(left_out)}")
    return known


def _by_card(asked: Name, listing: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """As the card at the head of its README says."""
    told = listing["configs"] if isinstance(listing["configs"], list) else []
    configs = {str(each.get("config_name", "default")): each for each in told if isinstance(each, dict)}
    if not configs:
        return {}
    if asked.config and asked.config not in configs:
        hint = meant(asked.config, configs, f"it has {_told(configs)}")
        raise UserError(f"{PREFIX}{asked.repository}/{asked.config}: no such configuration; {hint}")
    first = [name for name, each in configs.items() if each.get("default") is True or name == "default"]
    name = asked.config or (first or list(configs))[0]
    if not asked.config and not first and len(configs) > 1:
        raise UserError(
            f"{PREFIX}{asked.repository}: which of its configurations? it has {_told(configs)}; name one: "
            f"{PREFIX}{asked.repository}/{name}"
        )
    found: dict[str, list[Mapping[str, Any]]] = {}
    for split, pattern in _patterns(configs[name].get("data_files")):
        matching = [each for each in listing["files"] if _matches(pattern, each["path"]) and _is_read(each["path"])]
        found.setdefault(split, []).extend(each for each in matching if each not in found[split])
    return {split: each for split, each in found.items() if each}


def _patterns(told: Any) -> Iterator[tuple[str, str]]:
    for each in told if isinstance(told, list) else [told]:
        split, paths = (each.get("split"), each.get("path")) if isinstance(each, dict) else ("train", each)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str) and isinstance(split, str):
                yield split, path.removeprefix("./")


def _matches(pattern: str, path: str) -> bool:
    """`*` and `?` within a folder, `**` through all of them."""
    spelt = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.fullmatch("".join(spelt.get(part, re.escape(part)) for part in parts), path) is not None


def _by_names(asked: Name, listing: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """By the words in their paths, below the folder of a configuration; of the format of which there are most bytes."""
    below = [f"{asked.config}/", f"data/{asked.config}/"] if asked.config else [""]
    held = [each for each in listing["files"] if each["path"].startswith(tuple(below)) and _is_read(each["path"])]
    sizes: dict[str, int] = {}
    for each in held:
        ending = ending_of(each["path"])
        sizes[ending] = sizes.get(ending, 0) + int(each["bytes"])
    if not sizes:
        where = f"{PREFIX}{asked.repository}" + (f"/{asked.config}" if asked.config else "")
        raise UserError(f"{where}: no file of parquet, jsonl or text there; has it a branch: @refs/convert/parquet?")
    most = max(sizes, key=lambda ending: (sizes[ending], ending))
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in held:
        if ending_of(each["path"]) == most:
            found.setdefault(_split_in(each["path"]), []).append(each)
    if "" in found and len(found) > 1:
        del found[""]
    return found


def _split_in(path: str) -> str:
    folder, _, name = path.lower().rpartition("/")
    met = _SPLIT_IN_PATH.search(name) or _SPLIT_IN_PATH.search(folder)
    return met[1] if met else ""


def _is_read(path: str) -> bool:
    chosen = FORMAT_OF.get(ending_of(path))
    hidden = any(part.startswith(".") for part in path.split("/"))
    return chosen is not None and not hidden and (chosen.records or ending_of(path) in TEXTS)


def _told(names: Mapping[str, Any] | list[str]) -> str:
    every = [name[:40] for name in names]
    return ", ".join(every[:6]) + (f" and {len(every) - 6} more" if len(every) > 6 else "")
