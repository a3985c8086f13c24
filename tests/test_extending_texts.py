"""A kind of tokenizer, a format of text and a corpus are one entry each, proven from outside: a copy of the sources
gets one more, where CONTRIBUTING says, and a child process prepares, trains and generates with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent / "src"
STANZAS = [f"roses are red, line {number}\nviolets are blue\n" for number in range(200)]


def trained_with(folder: Path, module: str, entries: dict[str, str], words: list[str], data: str) -> dict[str, Any]:
    """The manifest of what is prepared once each of `entries` stands before its place in `module`."""
    shutil.copytree(SOURCE, folder / "src")
    path = folder / "src" / "hornbook" / "text" / module
    source = path.read_text()
    for place, entry in entries.items():
        assert source.count(place) == 1
        source = source.replace(place, entry + place)
    path.write_text(source)
    (folder / "used.py").write_text(
        f"""
from hornbook.cli import main
words, data = {words!r}, {data!r}
sizes = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context 16".split()
short = "--train.steps 2 --train.batch-tokens 64 --train.compile false --train.device cpu --out run".split()
assert main(["prepare", data, *words, "--out", "shards"]) == 0
assert main(["train", "--data", data, *words, *sizes, *short]) == 0
assert main(["generate", "run", "--prompt", "roses", "--max-tokens", "4"]) == 0
"""
    )
    done = subprocess.run(
        [sys.executable, "used.py"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "HORNBOOK_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest: dict[str, Any] = json.loads((folder / "shards" / "manifest.json").read_text())
    return manifest


def test_a_kind_of_tokenizer_is_one_entry(tmp_path: Path) -> None:
    (tmp_path / "roses.txt").write_text("".join(STANZAS))
    entry = '    "letters": Kind(lambda *_: Tokenizer(characters(["abcdefghijklmnopqrstuvwxyz ,"]))),\n'
    words = ["--tokenizer.kind", "letters"]
    manifest = trained_with(tmp_path, "tokenizer.py", {'    "file": Kind(': entry}, words, "roses.txt")
    assert (manifest["tokenizer"], manifest["vocab_size"]) == ("letters", 30)


def test_a_format_of_text_is_one_entry(tmp_path: Path) -> None:
    (tmp_path / "roses").mkdir()
    (tmp_path / "roses" / "roses.poem").write_text("\n".join(STANZAS))
    reader = '''def read_poem(input: Input) -> Iterator[Found]:
    """Stanzas, a blank line between them."""
    for number, stanza in enumerate(b"".join(input.text_blocks()).split(b"\\n\\n"), start=1):
        yield input.record(f"stanza {number}", input.decode(stanza))


'''
    entries = {"FORMATS = {": reader, '        Format("hdf5"': '        Format("poem", (".poem",), read_poem),\n'}
    words = ["--text.format", "poem", "--tokenizer.kind", "byte"]
    assert trained_with(tmp_path, "formats.py", entries, words, "roses")["report"]["documents"] == len(STANZAS)


def test_a_corpus_is_one_entry(tmp_path: Path) -> None:
    (tmp_path / "roses.txt").write_text("".join(STANZAS))
    entry = """        Corpus(
            "roses",
            "many stanzas about roses",
            "public domain",
            "this machine",
            local=lambda: source_from_path(Path("roses.txt")),
        ),
"""
    place = '        _wikitext_corpus("2", '
    manifest = trained_with(tmp_path, "corpora.py", {place: entry}, ["--tokenizer.kind", "byte"], "roses")
    assert (manifest["name"], manifest["report"]["bytes_of_text"]) == ("roses", len("".join(STANZAS)))
