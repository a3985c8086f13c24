from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import hostile
from effort import long
from hornbook import cli
from hornbook.base.console import count
from hornbook.base.download import place
from hornbook.base.errors import MachineError, UserError
from hornbook.recipes import compose
from hornbook.shards.prepare import ShardsConfig, open_or_prepare
from hornbook.text.corpora import CORPORA, find_corpus, find_source
from hornbook.text.corpus import SPLIT, Corpus, Remote
from hornbook.text.readers import Source
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


@pytest.fixture(scope="module")
def stdlib() -> Source:
    return find_source("python-stdlib")


def test_python_stdlib_is_the_sources_of_this_python_without_tests(stdlib: Source) -> None:
    names = [path.relative_to(stdlib.parts[0].root).as_posix() for path in stdlib.files]
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


ROOT = Path(__file__).parents[2]
FACTS = [(corpus, each) for corpus in CORPORA.values() for each in corpus.files(corpus.choose([]))]
TRAIN = "Once upon a time there was a small model.\n" * 400
VAL = "And it spoke, and what it said was held back.\n" * 60
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[hostile.Server]:
    monkeypatch.setenv("no_proxy", "*")
    with hostile.Server() as running:
        yield running


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(server: hostile.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[hostile.Server]:
    """The few answers of the hub that a download needs; the files themselves lie on another host, as there."""
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hostile.Server() as store:
        for name, text in (("train", TRAIN), ("val", VAL)):
            path, body = f"/datasets/me/tales/resolve/{REVISION}/data/{name}.txt", text.encode()
            store.contents[f"/{name}"] = server.contents[path] = body
            server.heads[path] = {
                "Location": store.url(f"/{name}"),
                "X-Repo-Commit": REVISION,
                "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"',
                "X-Linked-Size": str(len(body)),
                "ETag": '"other"',
            }
        monkeypatch.setattr(hostile, "honest", hub_sends_to(server, store))
        yield store


def hub_sends_to(server: hostile.Server, store: hostile.Server) -> hostile.Trick:
    plain = hostile.honest

    def answer(at: hostile.Handler, body: bytes) -> None:
        if at.server is server:
            at.head(302, Location=server.heads[at.path]["Location"], Content_Length=0)
        else:
            plain(at, body)

    return answer


def add(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    monkeypatch.setitem(CORPORA, corpus.name, corpus)


def tales() -> Corpus:
    """Two splits on the hub, sizes and checksums untold."""
    at = f"hub:me/tales@{REVISION}/data"
    parts = [
        Remote(f"{at}/train.txt", 17_000, "train", exact=False),
        Remote(f"{at}/val.txt", 3_000, "val", exact=False),
    ]
    return Corpus(
        "tales", "two tales", "CC0-1.0", "huggingface.co/datasets/me/tales", lambda choice: parts, switches=(SPLIT,)
    )


def served(name: str, at: str) -> Corpus:
    """A corpus of the table, its first file at another address."""
    corpus = CORPORA[name]
    return replace(corpus, remote=lambda choice: [replace(corpus.remote(choice)[0], at=at)])


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def block() -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the network was used")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return block


@pytest.mark.parametrize(("corpus", "file"), FACTS, ids=[f"{c.name}-{f.name}" for c, f in FACTS])
def test_every_file_of_the_table_is_pinned(corpus: Corpus, file: Remote) -> None:
    assert file.bytes > 0
    assert file.split in ("", "train", "val", "test")
    assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    if file.at.startswith("hub:"):
        assert re.fullmatch(r"hub:[\w.-]+/[\w.-]+@[0-9a-f]{40}/[\w./-]+\.(parquet|jsonl\.zst|txt)", file.at)
    else:
        assert file.at.startswith("https://")
        assert (file.sha256 and re.search("/[0-9a-f]{40}/", file.at)) or file.check
    assert place(Path("folder"), file.name).name == file.at.rpartition("/")[2]


def test_checksums_of_small_corpora_are_those_of_the_texts_at_hand(test_data: Path) -> None:
    for name, file in (("shakespeare", "tinyshakespeare.txt"), ("the-verdict", "the-verdict.txt")):
        [remote] = CORPORA[name].files({})
        data = (test_data / file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (remote.bytes, remote.sha256)


def test_switches_choose_files_and_say_what_they_take() -> None:
    corpus, choice = find_corpus("pile:files=0-2,29")
    names = [each.name.rpartition("/")[2] for each in corpus.files(choice)]
    assert names == ["00.jsonl.zst", "01.jsonl.zst", "02.jsonl.zst", "29.jsonl.zst", "val.jsonl.zst"]
    assert corpus.splits(choice) == ["train", "val"]
    corpus, choice = find_corpus("wikitext-2:raw=no:split=test")
    [test] = corpus.files(choice)
    assert test.name.endswith("wikitext-2-v1/test-00000-of-00001.parquet")
    for mistake, says in {
        "pile:files=30": "numbers from 0 to 29",
        "pile:files=2-1": "numbers from 0 to 29",
        "pile:files=x": "numbers from 0 to 29",
        "pile:file=1": "did you mean files",
        "wikitext-2:raw=maybe": "one of yes, no",
        "shakespeare:clean=yes": "no such switch",
        "pile:": "no such switch",
    }.items():
        with pytest.raises(UserError, match=says):
            find_corpus(mistake)


def test_a_corpus_with_another_variant_is_another_text(monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    book = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\nHence!\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n"
    path = empty_home / "corpora" / "julius-caesar" / "pg1522.txt"
    path.parent.mkdir(parents=True)
    path.write_text(book)
    bare, framed = find_source("julius-caesar"), find_source("julius-caesar:frame=yes")
    assert [document.text for document in bare.documents()] == ["Hence!\n"]
    assert [document.text for document in framed.documents()] == [book]
    assert bare.signature() != framed.signature()


def test_half_a_book_is_not_kept(server: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    book = b"*** START OF THE PROJECT GUTENBERG EBOOK X ***\nHence!\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n"
    server.contents["/pg1522.txt"] = book
    add(monkeypatch, served("julius-caesar", server.url("/pg1522.txt")))
    server.tricks = [hostile.no_length_cut] * 5
    with pytest.raises(MachineError, match="not a whole book"):
        find_source("julius-caesar")
    assert not list(empty_home.rglob("pg*"))
    server.tricks = []
    assert [document.text for document in find_source("julius-caesar").documents()] == ["Hence!\n"]


def test_installed_python_is_more_than_the_library_and_all_of_it_can_be_read() -> None:
    source = find_source("installed-python")
    names = {path.name for path in source.files}
    assert {"argparse.py", "textwrap.py"} <= names
    assert any(
        path.match("site-packages/pydantic/main.py") or path.match("dist-packages/pydantic/main.py")
        for path in source.files
    )
    assert len(set(source.files)) == len(source.files)
    assert source.bytes_on_disk() > 2 * find_source("python-stdlib").bytes_on_disk()
    for path in source.files:
        path.read_bytes().decode("utf-8-sig")


def test_hub_files_are_proven_by_the_hubs_checksum_and_bring_their_splits(
    hub: hostile.Server, server: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    add(monkeypatch, tales())
    hub.tricks = [hostile.cut_after(5000), hostile.range_that_is_not_what_it_says, hostile.wrong_bytes]
    monkeypatch.setattr("hornbook.base.download._pause", lambda seconds: None)
    found = [(document.split, document.text) for document in find_source("tales").documents()]
    assert found == [("train", TRAIN), ("val", VAL)]
    assert {asked.headers.get("authorization") for asked in server.asked} == {"Bearer hf_secret"}
    assert all("/datasets/me/tales/resolve/" in asked.path for asked in server.asked), "nothing else is asked for"
    assert all("authorization" not in asked.headers for asked in hub.asked)
    before = len(server.asked) + len(hub.asked)
    [only] = list(find_source("tales:split=val").documents())
    assert (only.split, only.text) == ("", VAL)
    assert len(server.asked) + len(hub.asked) == before


def test_splits_of_the_corpus_are_those_of_the_shards(
    hub: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    add(monkeypatch, tales())
    shards = open_or_prepare("tales", TokenizerConfig(kind="byte"), ShardsConfig())
    ends = [256]
    for split, text in (("train", TRAIN), ("val", VAL)):
        tokens = shards.split(split)
        assert tokens.read(0, len(tokens)).tolist() == [*text.encode(), *ends]
    assert shards.manifest["split_rule"] == "the corpus's own"
    assert list(shards.manifest["splits"]) == ["train", "val"]


def test_training_needs_no_network_once_the_cache_is_filled(
    hub: hostile.Server,
    server: hostile.Server,
    monkeypatch: pytest.MonkeyPatch,
    empty_home: Path,
    tiny: Callable[..., RunConfig],
    tmp_path: Path,
    no_sockets: Callable[[], None],
) -> None:
    add(monkeypatch, tales())
    find_source("tales")
    no_sockets()
    with pytest.raises(AssertionError, match="network was used"):
        socket.create_connection(("127.0.0.1", 1))
    outcome = fit(tiny(data="tales"), tmp_path / "run")
    assert outcome.reason
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@long
def test_every_command_on_text_works_with_sockets_blocked_once_the_cache_is_filled(
    hub: hostile.Server,
    server: hostile.Server,
    monkeypatch: pytest.MonkeyPatch,
    empty_home: Path,
    test_data: Path,
    tmp_path: Path,
    no_sockets: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(monkeypatch, tales())
    hub.contents["/ranks/r50k_base.tiktoken"] = (test_data / "r50k_base.tiktoken").read_bytes()
    monkeypatch.setattr("hornbook.text.gpt2.RANKS_AT", hub.url("/ranks"))
    assert cli.main(["corpora", "tales", "--show", "--tokenizer.kind", "gpt2"]) == 0
    corpus, choice = find_corpus("tales")
    assert [each.split for each in corpus.missing(choice)] == ["val"]  # a look takes the first file only
    find_source("tales")
    no_sockets()
    with pytest.raises(AssertionError, match="network was used"):
        socket.create_connection(("127.0.0.1", 1))
    small = ["--model.n-layer", "1", "--model.n-embd", "16", "--model.n-head", "2", "--model.context", "16"]
    train = ["train", "--data", "tales", "--out", str(tmp_path / "run"), *small, "--train.steps", "2"]
    for words in (
        ["corpora"],
        ["corpora", "tales"],
        ["corpora", "tales", "--show", "--tokenizer.kind", "gpt2"],
        ["prepare", "tales", "--tokenizer.kind", "gpt2"],
        ["prepare", "tales", "--tokenizer.kind", "wordpiece"],
        [*train, "--tokenizer.kind", "gpt2", "--train.batch-tokens", "64", "--train.device", "cpu"],
        ["eval", str(tmp_path / "run"), "--data", "tales:split=val"],
    ):
        assert cli.main(words) == 0, capsys.readouterr().err


def test_an_offline_hub_is_one_line(hub: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    add(monkeypatch, tales())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE"):
        find_source("tales")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match=r"127.0.0.1:9: no answer .*--data PATH"):
        find_source("tales")


def test_a_hub_file_that_is_not_there_is_the_users_line(
    server: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    add(monkeypatch, tales())
    with pytest.raises(UserError, match="404"):
        find_source("tales")


@pytest.mark.parametrize(
    "at",
    [
        "https://example.org/..",
        "https://example.org/a\\..\\out.txt",
        "https://example.org/",
        f"hub:me/tales@{REVISION}/../../../out.txt",
        f"hub:me/tales@{REVISION}//etc/../../out.txt",
        f"hub:me/tales@../../{REVISION}/out.txt",
        f"hub:me/tales@{REVISION}/a/.hidden",
    ],
)
def test_an_entry_cannot_write_outside_its_folder(
    at: str, server: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    files = [Remote(at, 5, sha256="0" * 64)]
    add(monkeypatch, Corpus("evil", "evil", "none", "nowhere", lambda choice: files))
    with pytest.raises(UserError, match="not a name for a file"):
        find_source("evil")
    assert server.asked == []
    assert not list(empty_home.parent.rglob("*out*"))


def test_wrong_bytes_of_the_right_size_end_a_command_in_one_line(server: hostile.Server, empty_home: Path) -> None:
    """The command itself, against a mirror that does not send what the table has pinned."""
    [file] = CORPORA["wikitext-2"].files(find_corpus("wikitext-2:split=test")[1])
    repository, revision, path = file.hub_parts()
    server.contents[f"/datasets/{repository}/resolve/{revision}/{path}"] = b"x" * file.bytes
    done = subprocess.run(
        [sys.executable, "-m", "hornbook", "prepare", "wikitext-2:split=test"],
        env={**os.environ, "HF_ENDPOINT": server.url("")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert re.match(r"error: test-00000-of-00001.parquet: 127.0.0.1:\d+ does not send the right file \(sha256 ", line)
    assert len(server.asked) == 3
    assert not list(empty_home.rglob("[!.]*.parquet"))


def test_train_fetches_and_says_from_where_how_much_and_where_to(
    server: hostile.Server,
    test_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    empty_home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.contents["/input.txt"] = (test_data / "tinyshakespeare.txt").read_bytes()
    add(monkeypatch, served("shakespeare", server.url("/input.txt")))
    words = ["--model.n-layer", "1", "--model.n-embd", "32", "--model.n-head", "2", "--model.context", "32"]
    words += ["--train.steps", "3", "--tokenizer.train-bytes", "100000"]
    assert cli.main(["train", "--data", "shakespeare", "--out", str(tmp_path / "run"), *words]) == 0
    shown = capsys.readouterr().out
    assert "fetching shakespeare from github.com/karpathy/char-rnn: 1.12M bytes, once; kept in " in shown
    assert "(HORNBOOK_HOME)" in shown
    assert len(server.asked) == 1
    assert cli.main(["corpora", "shakespeare", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bytes_here"], facts["bytes_to_fetch"]) == (1_115_394, 0)


def test_offline_with_nothing_cached_is_one_line_with_the_mend(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    assert cli.main(["train", "--data", "shakespeare", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: input.txt: cannot be fetched from raw.githubusercontent.com (Temporary failure in name resolution); "
        "try again with a network, or train on text that is here: --data PATH"
    ]


def test_the_list_tells_what_is_here_and_what_the_rest_would_cost(
    empty_home: Path, capsys: pytest.CaptureFixture[str], no_sockets: Callable[[], None]
) -> None:
    no_sockets()
    assert cli.main(["corpora"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(CORPORA) <= set(rows)
    assert re.search(r"shakespeare +0 +1.12M ", rows["shakespeare"])
    assert re.search(r"wikitext-103 +0 +315M +train, val, test", rows["wikitext-103"])
    assert re.search(r"pile +0 +about 11.4G +train, val", rows["pile"])
    assert re.search(r"python-stdlib +[\d.]+M +- ", rows["python-stdlib"])


def test_sizes_for_a_run_are_known_before_anything_is_fetched(no_sockets: Callable[[], None], empty_home: Path) -> None:
    no_sockets()
    assert compose(None, {"data": "shakespeare"}).recipe == "own-text"
    assert compose(None, {"data": "shakespeare"}).data == "shakespeare"
    assert compose(None, {"data": "python-stdlib"}).recipe == "demo"
    assert compose(None, {"data": "pile"}).train.minutes == compose(None, {}).train.minutes
    assert not empty_home.exists()


def test_the_document_on_corpora_lists_them_all() -> None:
    text = (ROOT / "docs" / "corpora.md").read_text()
    for corpus in CORPORA.values():
        facts = corpus.facts(corpus.choose([]))
        switches = ", ".join(
            f"`{each['name']}={each['chosen'] if '-' not in each['values'] else each['values']}`"
            for each in facts["switches"]
        )
        size = (
            "here"
            if corpus.local
            else ("" if facts["exact"] else "about ") + count(float(sum(each["bytes"] for each in facts["files"])))
        )
        splits = ", ".join(facts["splits"])
        row = " | ".join(
            (f"| `{corpus.name}`", corpus.about, corpus.licence, corpus.origin, size, splits, f"{switches} |")
        )
        assert row in text, f"docs/corpora.md needs the row:\n{row}"


def test_the_entry_that_the_document_shows_is_all_it_takes(
    server: hostile.Server, monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    text = (ROOT / "docs" / "corpora.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    corpus = eval(code.strip().removesuffix(","), {"Corpus": Corpus, "Remote": Remote})
    add(monkeypatch, served_entry(corpus, server))
    assert [document.text for document in find_source("limericks").documents()] == [LIMERICK]


LIMERICK = "There was an Old Man with a beard,\nWho said, 'It is just as I feared!'\n"


def served_entry(corpus: Corpus, server: hostile.Server) -> Corpus:
    server.contents["/limericks.txt"] = LIMERICK.encode()
    [remote] = corpus.remote({})
    return replace(corpus, remote=lambda choice: [replace(remote, at=server.url("/limericks.txt"))])
