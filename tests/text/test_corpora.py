from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hornbook.base.errors import UserError
from hornbook.text.corpora import CORPORA, find_source
from hornbook.text.readers import Source


@pytest.fixture(scope="module")
def stdlib() -> Source:
    return find_source("python-stdlib")


def test_python_stdlib_is_the_sources_of_this_python_without_tests(stdlib: Source) -> None:
    names = [path.relative_to(stdlib.root).as_posix() for path in stdlib.files]
    assert {"argparse.py", "asyncio/tasks.py", "textwrap.py"} <= set(names)
    assert all(name.endswith(".py") for name in names)
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
    assert stdlib.bytes_on_disk() > 5_000_000


def test_every_document_of_python_stdlib_is_python(stdlib: Source) -> None:
    documents = list(stdlib.documents())
    assert len(documents) > 300
    for document in documents[::40]:
        ast.parse(document.text)


def test_the_order_of_python_stdlib_is_the_same_in_every_process(stdlib: Source) -> None:
    command = "import json; from hornbook.text.corpora import find_source as f;"
    command += "print(json.dumps([str(path) for path in f('python-stdlib').files]))"
    there = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert json.loads(there) == [str(path) for path in stdlib.files]


def test_it_lies_where_python_says(stdlib: Source) -> None:
    assert stdlib.root == Path(sysconfig.get_path("stdlib"))


def test_a_path_is_a_source_too_and_a_name_that_is_neither_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert find_source(str(tmp_path / "a.txt")).name == "a"
    with pytest.raises(UserError, match="hornbook corpora"):
        find_source("pyhton-stdlib")


def test_every_corpus_says_what_it_is_and_under_which_licence() -> None:
    for name, corpus in CORPORA.items():
        assert corpus.name == name
        assert corpus.about
        assert corpus.licence
