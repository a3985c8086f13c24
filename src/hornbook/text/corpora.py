"""Names for texts that are known.

In: the name of a corpus, or a path.  Out: a `Source`; what it needs is fetched first, into the cache.
A corpus is one entry in CORPORA. Its switches are written after its name: `pile:files=0-2`, `wikitext-2:raw=no`.
docs/corpora.md shows how to add one.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from pathlib import Path

from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.base.settings import meant
from hornbook.text import articles
from hornbook.text.corpus import SPLIT, Choice, Corpus, Remote, Switch
from hornbook.text.datasets import dataset, is_dataset, validation_of
from hornbook.text.documents import AS_IT_COMES, TextConfig
from hornbook.text.folders import PASSED_OVER, walk
from hornbook.text.readers import Part, Source, source_from_path

TESTS = {"test", "tests", "idle_test", "_bundled"}
WIKITEXT = "hub:Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3"
SPLIT_OF = {"train": "train", "validation": "val", "test": "test"}
RAW_VAL = ("validation-00000-of-00001", 657_209, "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c")
RAW_TEST = ("test-00000-of-00001", 732_610, "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91")
WIKITEXT_FILES: dict[str, list[tuple[str, int, str | None]]] = {
    "wikitext-2-raw-v1": [
        ("train-00000-of-00001", 6_357_543, "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7"),
        RAW_VAL,
        RAW_TEST,
    ],
    "wikitext-2-v1": [
        ("train-00000-of-00001", 6_068_114, None),
        ("validation-00000-of-00001", 617_738, None),
        ("test-00000-of-00001", 685_430, None),
    ],
    "wikitext-103-raw-v1": [
        ("train-00000-of-00002", 156_987_808, "74da360f23826045b3e6ac6375411fdb15f003030aa74f2596ed08b857cb9212"),
        ("train-00001-of-00002", 157_088_770, "ba090ac30dbf5461e8dcbdd1a1b8e6f3cf9c2c756d64f0c1220450acd514f720"),
        RAW_VAL,
        RAW_TEST,
    ],
    "wikitext-103-v1": [
        ("train-00000-of-00002", 155_788_327, None),
        ("train-00001-of-00002", 155_928_670, None),
        ("validation-00000-of-00001", 655_106, None),
        ("test-00000-of-00001", 721_735, None),
    ],
}


def _python_stdlib() -> Source:
    """The standard library of the Python that runs this, its tests and bundled packages left out."""
    root = Path(sysconfig.get_path("stdlib"))
    return Source.of(Part("python-stdlib", root, tuple(walk(root, (".py",), PASSED_OVER | TESTS))))


def _installed_python() -> Source:
    """The standard library and all packages that are installed for the Python that runs this; tests left out."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = {Path(sysconfig.get_path(kind)) for kind in kinds} | {Path(each) for each in site.getsitepackages()}
    there = sorted({root.resolve() for root in roots if root.is_dir()})
    # The folder of packages lies in that of the library: each file is read once, under the innermost of the roots.
    found = [path for root in there for path in walk(root, (".py",), PASSED_OVER | TESTS)]
    sources = tuple(path for path in found if _is_utf8_source(path))
    return Source.of(Part("installed-python", Path(os.path.commonpath(there)), sources))


def _is_utf8_source(path: Path) -> bool:
    """Python's sources are UTF-8 unless one of their first two lines says otherwise."""
    with open(path, "rb") as file:
        declared = re.search(rb"coding[:=]\s*([-\w]+)", file.readline(200) + file.readline(200))
    return declared is None or declared[1].lower().replace(b"_", b"-") in (b"utf-8", b"utf8", b"ascii", b"us-ascii")


def _ends_of_gutenberg(path: Path) -> str | None:
    """A book without its last mark was cut off; without its first, it is a page of something else."""
    marks = {match[1] for match in articles.FRAME.finditer(path.read_text(encoding="utf-8", errors="replace"))}
    return None if marks == {"START", "END"} else "it is not a whole book of Project Gutenberg's"


def _wikitext(size: str, choice: Choice) -> list[Remote]:
    kind = f"wikitext-{size}-raw-v1" if choice["raw"] == "yes" else f"wikitext-{size}-v1"
    return [
        Remote(f"{WIKITEXT}/{kind}/{name}.parquet", size_bytes, SPLIT_OF[name.partition("-")[0]], sha256)
        for name, size_bytes, sha256 in WIKITEXT_FILES[kind]
    ]


def _numbered(at: str, choice: Choice, each_bytes: int, split: str = "") -> list[Remote]:
    """Files with a number in their names, none of whose sizes is known exactly."""
    return [Remote(at.format(int(each)), each_bytes, split, exact=False) for each in choice["files"].split(",")]


def _pile(choice: Choice) -> list[Remote]:
    at = "hub:monology/pile-uncopyrighted@3be90335b66f24456a5d6659d9c8d208c0357119"
    train = _numbered(at + "/train/{:02}.jsonl.zst", choice, 11_100_000_000, "train")
    return [*train, Remote(f"{at}/val.jsonl.zst", 338_000_000, "val", exact=False)]


def _tinystories(_choice: Choice) -> list[Remote]:
    at = "hub:roneneldan/TinyStories@f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStoriesV2-GPT4"
    train = "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443"
    val = "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d"
    return [
        Remote(f"{at}-train.txt", 2_227_753_162, "train", train),
        Remote(f"{at}-valid.txt", 22_502_601, "val", val),
    ]


def _wikitext_corpus(size: str, about: str) -> Corpus:
    return Corpus(
        f"wikitext-{size}",
        about,
        "CC-BY-SA-3.0, GFDL",
        "huggingface.co/datasets/Salesforce/wikitext",
        lambda choice: _wikitext(size, choice),
        shape=lambda choice: articles.cleaned_rows if choice["clean"] == "yes" else articles.articles,
        switches=(
            Switch("raw", "yes|no", "yes", "as it was written, or with rare words as <unk>"),
            Switch("clean", "no|yes", "no", "rows without doubles and the marks of tokenization, not articles"),
            SPLIT,
        ),
    )


CORPORA = {
    corpus.name: corpus
    for corpus in [
        Corpus(
            "python-stdlib",
            "the sources of Python's standard library; tests left out",
            "PSF-2.0",
            "this machine",
            local=_python_stdlib,
        ),
        Corpus(
            "installed-python",
            "the sources of all Python packages on this machine; tests left out",
            "each package's own",
            "this machine",
            local=_installed_python,
        ),
        Corpus(
            "shakespeare",
            "tiny Shakespeare: 40,000 lines of his plays",
            "public domain",
            "github.com/karpathy/char-rnn",
            lambda choice: [
                Remote(
                    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
                    "/data/tinyshakespeare/input.txt",
                    1_115_394,
                    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                )
            ],
        ),
        Corpus(
            "julius-caesar",
            "one play of Shakespeare's",
            "public domain",
            "gutenberg.org/ebooks/1522",
            lambda choice: [
                Remote(
                    "https://www.gutenberg.org/cache/epub/1522/pg1522.txt",
                    140_000,
                    exact=False,  # renewed there from time to time
                    check=_ends_of_gutenberg,
                )
            ],
            shape=lambda choice: articles.without_frame if choice["frame"] == "no" else None,
            switches=(Switch("frame", "no|yes", "no", "with Project Gutenberg's words before and after it"),),
        ),
        Corpus(
            "the-verdict",
            "a short story by Edith Wharton, 1908",
            "public domain",
            "github.com/rasbt/LLMs-from-scratch",
            lambda choice: [
                Remote(
                    "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/d1d29d055561666740d93e91a62af0c4726e103b"
                    "/ch02/01_main-chapter-code/the-verdict.txt",
                    20_479,
                    sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
                )
            ],
        ),
        _wikitext_corpus("2", "600 good articles of Wikipedia's"),
        _wikitext_corpus("103", "28,000 good articles of Wikipedia's"),
        Corpus(
            "pile",
            "web, books, papers, code and more, without what is under copyright",
            "each part's own",
            "huggingface.co/datasets/monology/pile-uncopyrighted",
            _pile,
            switches=(Switch("files", "0-29", "0", "which of its training files"), SPLIT),
        ),
        Corpus(
            "openwebtext",
            "8 million pages that Reddit linked to",
            "CC0-1.0",
            "huggingface.co/datasets/Skylion007/openwebtext",
            lambda choice: _numbered(
                "hub:Skylion007/openwebtext@79d93d786212f7344586290adb811d4ae6a1762c/plain_text/train-{:05}-of-00080.parquet",
                choice,
                302_000_000,
            ),
            switches=(Switch("files", "0-79", "0-79", "which of its files"),),
        ),
        Corpus(
            "fineweb-edu",
            "10 billion tokens of web pages that teach",
            "ODC-By-1.0",
            "huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
            lambda choice: _numbered(
                "hub:HuggingFaceFW/fineweb-edu@87f09149ef4734204d70ed1d046ddc9ca3f2b8f9/sample/10BT/{:03}_00000.parquet",
                choice,
                2_040_000_000,
            ),
            switches=(Switch("files", "0-13", "0-13", "which of its files"),),
        ),
        Corpus(
            "tinystories",
            "2.7 million short stories in a small child's words, written by GPT-4",
            "CDLA-Sharing-1.0",
            "huggingface.co/datasets/roneneldan/TinyStories",
            _tinystories,
            shape=lambda choice: articles.stories,
            switches=(SPLIT,),
        ),
    ]
}


def is_corpus(name: str) -> bool:
    return name.partition(":")[0] in CORPORA or is_dataset(name)


def find_corpus(name: str) -> tuple[Corpus, dict[str, str]]:
    """The corpus of a name with switches, and every switch's value; or a data set of the hub."""
    if is_dataset(name):
        return dataset(name), {}
    first, *words = name.split(":")
    if first not in CORPORA:
        raise UserError(f"{first}: no such corpus; {meant(first, CORPORA, 'see: hornbook corpora')}")
    return CORPORA[first], CORPORA[first].choose(words)


def held_out(name: str) -> str:
    """The validation split of a corpus that brings one, where its name says nothing of splits; otherwise the name."""
    if is_dataset(name):
        return validation_of(name)
    corpus, choice = find_corpus(name)
    says = any(word.startswith("split=") for word in name.split(":"))
    return name if says or "val" not in corpus.splits(choice) else f"{name}:split=val"


def find_source(
    name: str, config: TextConfig = AS_IT_COMES, *, progress: Progress | None = None, most_files: int | None = None
) -> Source:
    """A corpus by its name, fetched where it is not yet here, else the text at a path of that name. With `most_files`,
    no more of a corpus's files are fetched and read."""
    if not name.strip():
        raise UserError("no text is named; name a corpus or a path, or . for the folder where you are")
    if not is_corpus(name):
        return source_from_path(Path(name), config)
    corpus, choice = find_corpus(name)
    return corpus.source(choice, progress or Progress(sys.stderr), most_files).read_with(config)
