"""Files that were made to do harm, where a command reads something else than text: nothing in them runs, and nothing
is read or written outside. Bombs and links in texts are in tests/text/test_hostile.py, those of servers in
tests/base/test_download.py and tests/text/test_corpora.py."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hornbook import cli
from hornbook.base.errors import LONGEST_LINE

SMALL = ["--model.n-layer=1", "--model.n-embd=32", "--model.n-head=2", "--model.context=32", "--train.device=cpu"]


class Evil:
    """Writes a file as soon as somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self._mark)!r}, 'w').close()",)


def as_torch(evil: Evil, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save({"model_state_dict": evil}, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def as_numpy(evil: Evil) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([evil], dtype=object), allow_pickle=True)
    return out.getvalue()


PICKLED: dict[str, Callable[[Evil], bytes]] = {
    "as text": lambda evil: pickle.dumps(evil, protocol=0),
    "pickle": pickle.dumps,
    "torch": as_torch,
    "torch, as it was": lambda evil: as_torch(evil, zipped=False),
    "numpy": as_numpy,
}


@pytest.fixture(scope="module")
def made(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and a run on them."""
    folder = tmp_path_factory.mktemp("made")
    assert cli.main(["prepare", str(text_file), "--out", str(folder / "shards"), "--tokenizer.kind", "byte"]) == 0
    words = ["--data", str(folder / "shards"), "--out", str(folder / "run"), "--tokenizer.vocab-size", "none"]
    assert cli.main(["train", *words, "--train.steps", "1", *SMALL]) == 0
    shutil.copytree(next((folder / "run" / "checkpoints").iterdir()), folder / "model")
    return folder


def commands(root: Path) -> dict[str, list[str]]:
    """For each file that a command reads, a command that does."""
    train = ["train", "--data", f"{root}/shards", "--out", f"{root}/out", "--train.steps", "1", *SMALL]
    generate = ["generate", f"{root}/model", "--max-tokens", "1", "--device", "cpu"]
    (checkpoint,) = (root / "run" / "checkpoints").iterdir()
    in_run = checkpoint.relative_to(root)
    ranks = ["--tokenizer.kind", "gpt2", "--tokenizer.ranks-file", f"{root}/ranks.tiktoken"]
    found = {
        "settings.toml": ["train", f"{root}/settings.toml"],
        "settings.json": ["train", f"{root}/settings.json"],
        "shards/manifest.json": train,
        "shards/tokenizer.json": train,
        "shards/train-00000.bin": train,
        "model/config.json": generate,
        "model/model.safetensors": generate,
        "model/tokenizer.json": generate,
        "run/run.json": ["resume", f"{root}/run", "--train.steps", "2"],
        f"{in_run}/optimizer.safetensors": ["resume", f"{root}/run", "--train.steps", "2"],
        f"{in_run}/state.json": ["resume", f"{root}/run", "--train.steps", "2"],
        f"{in_run}/MANIFEST.json": ["resume", f"{root}/run", "--train.steps", "2"],
        "ranks.tiktoken": ["prepare", f"{root}/text.txt", "--out", f"{root}/out", *ranks],
        "weights.pt": ["generate", f"{root}/weights.pt", "--prompt", "a"],
    }
    for ending in ("jsonl", "json", "csv", "parquet", "h5", "jsonl.zst", "txt.gz", "csv.bz2", "json.xz"):
        found[f"data.{ending}"] = ["prepare", f"{root}/data.{ending}", "--out", f"{root}/out"]
    return found


@pytest.fixture
def copied(made: Path, text_file: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "root")
    shutil.copy(text_file, tmp_path / "root" / "text.txt")
    # The run's own data, so that nothing but the file in question is in the way.
    path = tmp_path / "root" / "run" / "run.json"
    path.write_text(path.read_text().replace(str(made), str(tmp_path / "root")))
    return tmp_path / "root"


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("warning: ", "note: "))]
    (line,) = lines
    assert line.startswith("error: ")
    assert len(line) <= len("error: ") + LONGEST_LINE
    return line


@pytest.mark.parametrize("how", PICKLED)
def test_nothing_in_a_pickle_runs_wherever_it_is_put(
    how: str, copied: Path, capsys: pytest.CaptureFixture[str], hornbook_home: Path
) -> None:
    mark = copied / "it-ran"
    evil = PICKLED[how](Evil(mark))
    cases = commands(copied)
    assert len(cases) > 20
    for name, words in cases.items():
        path = copied / name
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(evil)
        before = set(copied.rglob("*"))
        assert Path(name).name in refusal(words, capsys) or name.startswith("run/"), name
        assert not mark.exists(), name
        assert set(copied.rglob("*")) - before <= {copied / "run" / ".lock"}, name
        if kept is not None:
            path.write_bytes(kept)
        else:
            path.unlink()
    # It would have: this is how others read such files.
    if how in ("as text", "pickle"):
        pickle.loads(evil)
        assert mark.exists()


def archives() -> dict[str, bytes]:
    """A file of these names in each, among them some that lead out."""
    names = ["data.txt", "../out.txt", "/tmp/hornbook-out.txt", "a/../../out.txt", "~/out.txt"]
    tarred, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name in names:
            facts = tarfile.TarInfo(name)
            facts.size = 4
            tar.addfile(facts, io.BytesIO(b"text"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in names:
            archive.writestr(name, "text\0")
    return {"tar": tarred.getvalue(), "zip": zipped.getvalue()}


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet", "tar.gz", "zip", "tar"])
@pytest.mark.parametrize("kind", archives())
def test_no_archive_is_unpacked(kind: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    data = archives()[kind]
    path = tmp_path / "in" / f"data.{ending}"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert path.name in refusal(["prepare", str(path), "--out", str(tmp_path / "out")], capsys)
    assert list(tmp_path.rglob("*")) == [path.parent, path]
    assert not Path("/tmp/hornbook-out.txt").exists()


OUTSIDE = [
    "../secret.bin",
    "/etc/passwd",
    "a/../../secret.bin",
    "./train-00000.bin",
    "train-00000.bin/../../secret.bin",
    "..\\secret.bin",
    "train-00000.bin\0",
    "train-00000.bin\n",
    "",
    ".",
]


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_a_manifest_leads_to_no_file_outside(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Although its hash of itself is right, and the file has the size that it tells."""
    path = copied / "shards" / "manifest.json"
    manifest = json.loads(path.read_text())
    shutil.copy(copied / "shards" / "train-00000.bin", copied / "secret.bin")
    manifest["splits"]["train"]["shards"][0]["name"] = name
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))
    assert "manifest.json" in refusal(commands(copied)["shards/manifest.json"], capsys)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model.safetensors/../../secret"])
def test_a_checkpoint_leads_to_no_file_outside(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint,) = (copied / "run" / "checkpoints").iterdir()
    path = checkpoint / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"].pop("model.safetensors")
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))
    assert cli.main(["verify", str(copied / "run")]) == 1
    assert "is missing" in capsys.readouterr().out
    assert "checkpoint" in refusal(["resume", str(copied / "run"), "--train.steps", "2"], capsys)


NO_CORPUS = ["../../etc/passwd:split=val", "wikitext-2:split=../../x", "wikitext-2:../../x", "pile:files=../1"]


@pytest.mark.parametrize("name", NO_CORPUS)
@pytest.mark.parametrize("command", ["corpora", "prepare"])
def test_a_corpus_is_no_path(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], hornbook_home: Path
) -> None:
    before = set(hornbook_home.rglob("*"))
    refusal([command, name], capsys)
    assert set(hornbook_home.rglob("*")) == before


def test_an_error_line_carries_no_command_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"\\u001b]0;owned\\u0007\\u001b[2J": 1}\n')
    line = refusal(["prepare", str(path), "--out", str(tmp_path / "out")], capsys)
    assert line.isprintable()
