"""Data sets of the Hugging Face hub by name, from a server on loopback that answers as the hub does; that it does, the
hub's own library judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from formats_at_hand import as_jsonl, as_parquet

import hostile
from hornbook import cli
from hornbook.base.errors import MachineError, UserError
from hornbook.base.files import read_json
from hornbook.shards.format import Shards
from hornbook.text import datasets
from hornbook.text.corpora import find_corpus, find_source, held_out
from hornbook.text.datasets import Name, pinned
from hornbook.text.documents import TextConfig

COMMIT, LATER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
TALES = [f"Tale {number}: once upon a time there was a small model. " * 4 for number in range(60)]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hostile.Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("hornbook.base.download._pause", lambda seconds: None)
    with hostile.Server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url(""))
        yield running


def publish(
    hub: hostile.Server,
    held: dict[str, bytes],
    configs: Any = None,
    commit: str = COMMIT,
    revision: str = "main",
    repository: str = "me/tales",
) -> None:
    """Files above 500 bytes lie apart, with their sha256, as large ones do there."""
    siblings: list[dict[str, Any]] = []
    for path, body in held.items():
        at, digest = f"/datasets/{repository}/resolve/{commit}/{path}", hashlib.sha256(body).hexdigest()
        large = len(body) > 500
        lfs = {"lfs": {"sha256": digest, "size": len(body), "pointerSize": 130}} if large else {}
        siblings.append({"rfilename": path, "size": len(body), "blobId": digest[:40], **lfs})
        hub.contents[at] = body
        tag = {"X-Linked-Etag": f'"{digest if large else digest[:40]}"', "X-Linked-Size": str(len(body))}
        hub.heads[at] = tag | {"X-Repo-Commit": commit}
    card = {"license": "cc0-1.0"} | ({"configs": configs} if configs else {})
    facts = {"_id": "1", "id": repository, "sha": commit, "private": False, "gated": False, "disabled": False}
    facts |= {"downloads": 1, "likes": 1, "tags": [], "cardData": card, "siblings": siblings}
    for asked in {revision, commit}:
        for query in ("?blobs=true", "?blobs=True"):
            quoted = asked.replace("/", "%2F")
            hub.contents[f"/api/datasets/{repository}/revision/{quoted}{query}"] = json.dumps(facts).encode()


def texts(name: str, **knobs: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for document in find_source(name, TextConfig(**knobs)).documents():
        found.setdefault(document.split, []).append(document.text)
    return found


TWO = {
    "README.md": b"# tales",
    "data/train-00000-of-00002.parquet": as_parquet(TALES[:20]),
    "data/train-00001-of-00002.parquet": as_parquet(TALES[20:40]),
    "data/validation-00000-of-00001.parquet": as_parquet(TALES[40:50]),
    "data/test-00000-of-00001.parquet": as_parquet(TALES[50:]),
}
SPLITS = {"train": TALES[:40], "val": TALES[40:50], "test": TALES[50:]}


def test_the_server_answers_as_the_hubs_own_library_expects(hub: hostile.Server) -> None:
    publish(hub, TWO)
    told = huggingface_hub.HfApi(endpoint=hub.url("")).dataset_info("me/tales", revision="main", files_metadata=True)
    corpus, choice = find_corpus("hf:me/tales")
    ours = {(each.name.partition("/")[2], each.bytes, each.sha256) for each in corpus.files(choice)}
    assert told.sha == COMMIT
    assert {(each.rfilename, each.size, each.lfs and each.lfs.sha256) for each in told.siblings or []} - {
        ("README.md", 7, None)
    } == ours
    assert corpus.licence == "cc0-1.0"


def test_splits_are_told_by_the_names_of_files(hub: hostile.Server) -> None:
    publish(hub, TWO)
    assert texts("hf:me/tales") == SPLITS
    assert texts("hf:me/tales:validation") == {"": TALES[40:50]}
    assert texts("hf:me/tales:val@" + COMMIT) == {"": TALES[40:50]}
    assert held_out("hf:me/tales") == f"hf:me/tales:validation@{COMMIT}"
    with pytest.raises(UserError, match="has no split dev2; it has train, validation, test"):
        find_corpus("hf:me/tales:dev2")


def test_the_card_says_which_files_belong_to_which_split(hub: hostile.Server) -> None:
    held = {
        "en/a.jsonl": as_jsonl(TALES[:10]),
        "en/deep/b.jsonl": as_jsonl(TALES[10:20]),
        "en/held.jsonl": as_jsonl(TALES[20:30]),
        "de/a.jsonl": as_jsonl(TALES[30:]),
        "test.jsonl": as_jsonl(["not in the card"]),
    }
    files = [{"split": "train", "path": ["en/a.jsonl", "en/deep/*"]}, {"split": "validation", "path": "en/h*.jsonl"}]
    german = {"config_name": "de", "data_files": "de/**"}
    publish(hub, held, [{"config_name": "en", "data_files": files}, german])
    assert texts("hf:me/tales/en") == {"train": TALES[:20], "val": TALES[20:30]}
    assert texts("hf:me/tales/de") == {"train": TALES[30:]}
    with pytest.raises(UserError, match="which of its configurations\\? it has en, de; name one: hf:me/tales/en"):
        find_corpus("hf:me/tales")
    with pytest.raises(UserError, match="did you mean de"):
        find_corpus("hf:me/tales/dee")


def test_splits_of_other_names_are_asked_for(hub: hostile.Server) -> None:
    files = [{"split": "train_sft", "path": "a.jsonl"}, {"split": "test_sft", "path": "b.jsonl"}]
    held = {"a.jsonl": as_jsonl(TALES[:9]), "b.jsonl": as_jsonl(TALES[9:])}
    publish(hub, held, [{"config_name": "default", "data_files": files}])
    with pytest.raises(UserError, match="which of its splits\\? it has train_sft, test_sft"):
        find_corpus("hf:me/tales")
    assert texts("hf:me/tales:test_sft") == {"": TALES[9:]}


def test_files_without_a_split_are_split_by_preparation_and_texts_are_read(hub: hostile.Server) -> None:
    publish(hub, {"a.txt": b"one tale", "deep/b.txt": b"another", "notes.md": b"not data", "script.py": b"import os"})
    assert texts("hf:me/tales") == {"": ["one tale", "another"]}
    assert texts("hf:me/tales/deep") == {"": ["another"]}
    with pytest.raises(UserError, match="no file of parquet, jsonl or text"):
        find_corpus("hf:me/tales/none")


def test_a_column_is_chosen(hub: hostile.Server) -> None:
    rows = b"".join(json.dumps({"question": f"Q{n}", "story": f"S{n}"}).encode() + b"\n" for n in range(30))
    publish(hub, {"train.jsonl": rows})
    assert texts("hf:me/tales", field="story") == {"train": [f"S{number}" for number in range(30)]}
    with pytest.raises(UserError, match=r"--text\.field with one of question, story"):
        texts("hf:me/tales")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:a/b", ("a/b", "", "", "main")),
        ("hf:a/b/c:train@v1.0", ("a/b", "c", "train", "v1.0")),
        ("hf:a/b/c/d@refs/convert/parquet", ("a/b", "c/d", "", "refs/convert/parquet")),
        ("hf:a/b.c-d:x_y", ("a/b.c-d", "", "x_y", "main")),
    ],
)
def test_a_name_has_its_parts(name: str, parts: tuple[str, ...]) -> None:
    found = Name.of(name)
    assert (found.repository, found.config, found.split, found.revision) == parts


@pytest.mark.parametrize("name", ["hf:", "hf:imdb", "hf:a/b/../c", "hf:a/b:", "hf:a/b@", "hf:/a/b", "hf:a/b?x=y"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="should be hf:OWNER/NAME"):
        find_corpus(name)


def test_the_revision_is_written_down_and_stays_what_it_was(
    hub: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    publish(hub, TWO)
    small = ["--tokenizer.kind", "byte", "--model.n-layer", "1", "--model.n-embd", "16", "--model.n-head", "2"]
    small += [
        "--model.context",
        "16",
        "--train.batch-tokens",
        "64",
        "--train.device",
        "cpu",
        "--train.compile",
        "false",
    ]
    assert cli.main(["train", "--data", "hf:me/tales", "--out", "run", *small, "--train.steps", "1"]) == 0
    record = read_json(Path("run/run.json"))
    assert record["config"]["data"] == f"hf:me/tales@{COMMIT}"
    first = Shards.open(Path(record["data"]["folder"]))
    assert first.manifest["origins"] == [f"hf:me/tales@{COMMIT}"]
    assert first.manifest["splits"]["train"]["documents"] == 40

    publish(hub, {"train.jsonl": as_jsonl(["another text by now. "] * 90)}, commit=LATER)
    datasets._listing.cache_clear()
    assert pinned("hf:me/tales") == f"hf:me/tales@{LATER}"
    for path in sorted(first.folder.iterdir()):
        path.unlink()
    first.folder.rmdir()
    asked = len(hub.asked)
    assert cli.main(["resume", "run", "--train.steps", "2"]) == 0
    assert len(hub.asked) == asked  # what it was prepared from is still here
    assert Shards.open(first.folder).fingerprint == first.fingerprint
    capsys.readouterr()


def test_without_a_network_it_is_what_it_was(
    hub: hostile.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, TWO)
    assert texts("hf:me/tales") == SPLITS
    datasets._listing.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert texts("hf:me/tales") == SPLITS
    assert "the hub does not answer; taken as it was at commit 01234567" in capsys.readouterr().err
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE"):
        find_corpus("hf:me/others")


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[:-30],
        lambda body: b"[]",
        lambda body: b"",
        lambda body: body.replace(COMMIT.encode(), b"main"),
        lambda body: body.replace(b'"rfilename"', b'"name"'),
    ],
)
def test_a_list_that_is_none_is_one_line(hub: hostile.Server, damage: Callable[[bytes], bytes]) -> None:
    publish(hub, TWO)
    at = "/api/datasets/me/tales/revision/main?blobs=true"
    hub.contents[at] = damage(hub.contents[at])
    with pytest.raises(MachineError, match="no list of its files") as caught:
        find_corpus("hf:me/tales")
    assert len(caught.value.mistakes) == 1


def test_a_file_that_leads_out_of_the_cache_is_refused(hub: hostile.Server, tmp_path: Path) -> None:
    publish(hub, {"../../../train.jsonl": as_jsonl(TALES), "a\\..\\train.jsonl": as_jsonl(TALES)})
    with pytest.raises(UserError, match="must not lead out of there"):
        texts("hf:me/tales")
    assert not list(tmp_path.rglob("train.jsonl"))


def test_wrong_bytes_and_absent_data_sets_are_told(hub: hostile.Server) -> None:
    publish(hub, TWO)
    at = f"/datasets/me/tales/resolve/{COMMIT}/data/train-00000-of-00002.parquet"
    hub.contents[at] = hub.contents[at][::-1]
    with pytest.raises(MachineError, match="does not send the right file"):
        texts("hf:me/tales")
    with pytest.raises(UserError, match="404; not there, or it needs an account"):
        texts("hf:me/nothing")
