"""Names for texts that are known.

In: the name of a corpus, or a path.  Out: a `Source`. A corpus is one entry in CORPORA.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hornbook.text.documents import AS_IT_COMES, TextConfig
from hornbook.text.readers import PASSED_OVER, Source, source_from_path, walk


@dataclass(frozen=True)
class Corpus:
    name: str
    about: str
    licence: str
    locate: Callable[[], Source]


def _python_stdlib() -> Source:
    """The standard library of the Python that runs this, its tests and bundled packages left out."""
    root = Path(sysconfig.get_path("stdlib"))
    return Source(
        "python-stdlib",
        root,
        tuple(walk(root, (".py",), PASSED_OVER | {"test", "tests", "idle_test", "_bundled"})),
    )


CORPORA = {
    corpus.name: corpus
    for corpus in [
        Corpus(
            "python-stdlib",
            "the sources of Python's standard library, already on this machine; tests left out",
            "PSF-2.0",
            _python_stdlib,
        ),
    ]
}


def find_source(name: str, config: TextConfig = AS_IT_COMES) -> Source:
    """A corpus by its name, else the text at a path of that name."""
    if name in CORPORA:
        return CORPORA[name].locate().read_with(config)
    return source_from_path(Path(name), config)
