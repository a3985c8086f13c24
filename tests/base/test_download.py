from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostile
from effort import long
from hornbook.base import download, files
from hornbook.base.console import Progress
from hornbook.base.errors import LONGEST_LINE, HornbookError, MachineError, UserError
from hornbook.base.ours import PARTIAL, hidden

BODY = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
CASES = 60 if not os.environ.get("HORNBOOK_SOAK") else 2000
CRASHED = 17


@pytest.fixture
def server() -> Iterator[hostile.Server]:
    with hostile.Server() as running:
        running.contents["/f"] = BODY
        yield running


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(download, "_pause", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")


def fetch(server: hostile.Server, folder: Path, **facts: Any) -> Path:
    known = {"sha256": SHA, "size": len(BODY)} | facts
    return download.fetch(server.url("/f"), folder, "f.bin", **known)


def leftovers(folder: Path) -> list[str]:
    """What lies in a folder beside whole files, locks aside."""
    return [path.name for path in folder.iterdir() if path.name.startswith((".partial", ".staged", ".discarded"))]


def only_whole_under_the_final_name(monkeypatch: pytest.MonkeyPatch, final: Path) -> None:
    """From here on, look after every change of the disk."""
    plain = files._step

    def watched(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        result = plain(kind, path, act)
        assert not final.exists() or final.read_bytes() == BODY, f"after {kind} {path.name}"
        return result

    monkeypatch.setattr(files, "_step", watched)


def some_tricks(draw: random.Random, server: hostile.Server) -> list[hostile.Trick]:
    place = draw.randrange(len(BODY))
    choices: list[hostile.Trick] = [
        hostile.cut_after(place),
        hostile.cut_after(place),
        hostile.stall_after(draw.randrange(2000)),
        hostile.redirect_to(server.url("/f")),
        hostile.redirect_to("/f"),
        hostile.wrong_bytes,
        hostile.range_of_another_place,
        hostile.range_that_is_not_what_it_says,
        hostile.range_without_a_label,
        hostile.range_ignored,
        hostile.range_refused,
        hostile.another_file,
        hostile.another_file_of_the_size,
        hostile.no_length,
        hostile.no_length_cut,
        hostile.chunked_cut,
        hostile.more_than_announced,
        hostile.less_than_announced,
        hostile.another_length,
        hostile.nothing_said,
        hostile.not_http,
        hostile.busy,
        hostile.empty,
    ]
    return draw.choices(choices, k=draw.randint(1, 8))


@pytest.mark.parametrize("seed", range(CASES))
def test_no_unverified_byte_gets_the_final_name(
    seed: int, server: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    server.tricks = some_tricks(draw, server)
    only_whole_under_the_final_name(monkeypatch, tmp_path / "f.bin")
    facts: dict[str, Any] = {} if seed % 3 else {"size": None}
    said: list[str] = []
    for _ in range(20):
        try:
            assert fetch(server, tmp_path, **facts).read_bytes() == BODY
            break
        except HornbookError as error:
            said.append(str(error))
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert leftovers(tmp_path) == []
    assert all(len(line) <= LONGEST_LINE and "\n" not in line for line in said)


def test_a_cut_connection_goes_on_where_it_stopped(server: hostile.Server, tmp_path: Path) -> None:
    server.tricks = [hostile.cut_after(100_000), hostile.cut_after(50_000)]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert [asked.headers.get("range") for asked in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert sum(asked.sent for asked in server.asked) == len(BODY)


def test_a_file_that_changed_meanwhile_is_begun_anew(server: hostile.Server, tmp_path: Path) -> None:
    """The half that is there belongs to the file of before."""
    server.contents["/f"] = BODY[::-1]
    server.tricks = [hostile.cut_after(100_000)] + [hostile.nothing_said] * download.ATTEMPTS
    with pytest.raises(MachineError, match="100k bytes are kept"):
        fetch(server, tmp_path)
    server.contents["/f"] = BODY
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.asked[-1].sent == len(BODY)


def test_without_a_checksum_pieces_are_never_joined(server: hostile.Server, tmp_path: Path) -> None:
    server.tricks = [hostile.cut_after(100_000)]
    assert fetch(server, tmp_path, sha256=None).read_bytes() == BODY
    assert [asked.headers.get("range") for asked in server.asked] == [None, None]


def test_a_file_known_by_its_looks_alone_is_looked_at(server: hostile.Server, tmp_path: Path) -> None:
    known = {"sha256": None, "size": None}
    server.tricks = [hostile.no_length_cut] * download.RESTARTS
    with pytest.raises(MachineError, match="ends too early"):
        fetch(server, tmp_path, **known, check=lambda path: None if path.read_bytes() == BODY else "ends too early")
    assert list(tmp_path.glob("[!.]*")) == []
    assert fetch(server, tmp_path, **known, check=lambda path: None).read_bytes() == BODY


@pytest.mark.parametrize(
    ("trick", "says"),
    [
        (hostile.wrong_bytes, "not send the right file .sha256"),
        (hostile.another_file, "bytes are announced"),
        (hostile.another_length, "bytes are announced"),
        (hostile.more_than_announced, "more than 300,000 bytes"),
        (hostile.cut_after(0), "connection ended after 0 of 300,000 bytes"),
        (hostile.stall_after(5), "nothing came for"),
        (hostile.busy, "503"),
    ],
)
def test_a_server_that_never_mends_is_given_up_in_one_line(
    trick: hostile.Trick, says: str, server: hostile.Server, tmp_path: Path
) -> None:
    server.tricks = [trick] * 50
    with pytest.raises(MachineError, match=says) as caught:
        fetch(server, tmp_path)
    assert len(caught.value.mistakes) == 1
    assert len(server.asked) <= download.ATTEMPTS + 1
    assert not (tmp_path / "f.bin").exists()


def test_what_is_there_is_not_asked_for_again(server: hostile.Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_a_file_of_another_size_in_the_cache_is_fetched_again(server: hostile.Server, tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(BODY[:50])
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert (tmp_path / "f.bin.set-aside").read_bytes() == BODY[:50]  # nothing proves that it was ours


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_plain_no_is_not_asked_twice(code: int, server: hostile.Server, tmp_path: Path) -> None:
    server.tricks = [lambda at, body: at.head(code, Content_Length=0)]
    with pytest.raises(UserError, match=str(code)):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_redirects_lead_nowhere_but_to_http(server: hostile.Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    for target in (secret.as_uri(), "ftp://127.0.0.1/f", "data:text/plain,x", server.url("/f")):
        server.tricks = [hostile.redirect_to(target)] * 50
        with pytest.raises(UserError):
            fetch(server, tmp_path)
        assert not (tmp_path / "f.bin").exists()
    for address in (secret.as_uri(), "ftp://127.0.0.1/f", "/etc/passwd"):
        with pytest.raises(UserError, match="only http and https"):
            download.fetch(address, tmp_path, "f.bin", sha256=SHA)


def test_a_redirect_is_not_read_to_the_end(server: hostile.Server, tmp_path: Path) -> None:
    server.contents["/g"] = BODY
    server.tricks = [hostile.redirect_with_endless_body(server.url("/g"))]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.asked[0].sent < hostile.ENDLESS / 4, "but for what stands in the sockets"


def test_a_token_stays_with_the_host_that_it_is_for(server: hostile.Server, tmp_path: Path) -> None:
    with hostile.Server() as elsewhere:
        elsewhere.contents["/f"] = BODY
        server.contents["/g"] = BODY
        server.tricks = [hostile.redirect_to("/g"), hostile.redirect_to(elsewhere.url("/f"))]
        fetch(server, tmp_path, headers={"authorization": "Bearer secret"})
        assert [asked.headers.get("authorization") for asked in server.asked] == ["Bearer secret"] * 2
        assert "authorization" not in elsewhere.asked[0].headers


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/out", "..", "", ".", "a\\..\\out", "C:out", "a\nb", "a\0b", ".hidden", "a/.hidden"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, server: hostile.Server, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    with pytest.raises(UserError, match="not a name for a file"):
        download.fetch(server.url("/f"), folder, name, sha256=SHA)
    assert list(tmp_path.iterdir()) == []
    assert server.asked == []


def test_eight_at_once_fetch_it_once(server: hostile.Server, tmp_path: Path) -> None:
    waited_for, said = threading.Event(), list[str]()

    def once_another_waits(at: hostile.Handler, body: bytes) -> None:
        assert waited_for.wait(120)
        hostile.honest(at, body)

    def listen(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "another process is fetching it" in line:
                waited_for.set()

    server.tricks = [once_another_waits]
    code = (
        "import sys; from pathlib import Path; from hornbook.base import download, console\n"
        f"path = download.fetch({server.url('/f')!r}, Path({str(tmp_path)!r}), 'f.bin', sha256={SHA!r},"
        " progress=console.Progress(live=False)); import hashlib\n"
        "print('got', hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    command = [sys.executable, "-u", "-c", code]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    listening = [threading.Thread(target=listen, args=(each,)) for each in others]
    for each in listening:
        each.start()
    for each in listening:
        each.join()
    assert [each.wait() for each in others] == [0] * 8
    assert said.count(f"got {SHA}\n") == 8
    assert len(server.asked) == 1
    assert leftovers(tmp_path) == []


def test_a_killed_process_is_gone_on_from(server: hostile.Server, tmp_path: Path) -> None:
    server.tricks = [hostile.trickle(20_000, 0.05)]
    code = (
        "from pathlib import Path; from hornbook.base import download\n"
        f"download.fetch({server.url('/f')!r}, Path({str(tmp_path)!r}), 'f.bin', sha256={SHA!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    partial = tmp_path / hidden(PARTIAL, "f.bin")
    while not partial.exists() or partial.stat().st_size < 60_000:
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = partial.stat().st_size
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert 60_000 <= kept < len(BODY)
    assert server.asked[1].headers["range"] == f"bytes={kept}-"
    assert server.asked[1].sent == len(BODY) - kept
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("when", ["in", pytest.param("before", marks=long), pytest.param("after", marks=long)])
def test_a_crash_at_any_step_loses_nothing(
    when: str, server: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PIECE_BYTES", 60_000)
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        child = multiprocessing.get_context("fork").Process(target=crash_at, args=(steps, when, server, folder))
        child.start()
        child.join()
        final = folder / "f.bin"
        assert not final.exists() or final.read_bytes() == BODY
        partial = folder / hidden(PARTIAL, "f.bin")
        had = partial.stat().st_size if partial.exists() else 0
        before = len(server.asked)
        assert fetch(server, folder).read_bytes() == BODY
        assert sum(asked.sent for asked in server.asked[before:]) in (0, len(BODY) - had)
        assert leftovers(folder) == []
        if child.exitcode == 0:
            break
        assert child.exitcode == CRASHED
        steps += 1
    assert steps >= 10


def crash_at(number: int, when: str, server: hostile.Server, folder: Path) -> None:
    """Fetch, and end without a word before, in the middle of, or after a given change of the disk."""
    left = [number]

    def step(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        left[0] -= 1
        if left[0] != -1:
            return act()
        if when == "after":
            act()
        elif when == "in" and kind == "append":
            with open(path, "ab") as file:
                file.write(BODY[path.stat().st_size :][:1000])
        os._exit(CRASHED)

    files._step = step
    fetch(server, folder)
    os._exit(0)


def test_a_full_disk_is_told_before_the_transfer(
    server: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(MachineError, match=r"300k more bytes do not fit on the disk, with 1k free .*HORNBOOK_HOME"):
        fetch(server, tmp_path)
    assert server.asked[0].sent <= len(BODY)
    assert list(tmp_path.glob("[!.]*")) == []


def test_no_network_is_one_line_at_once(tmp_path: Path) -> None:
    with hostile.Server() as server:
        url = server.url("/f")
    with pytest.raises(MachineError, match=r"cannot be fetched from 127.0.0.1:\d+ \(Connection refused\); try again"):
        download.fetch(url, tmp_path, "f.bin", sha256=SHA)


def test_progress_tells_share_rate_and_time_left(
    server: hostile.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hornbook.base.console.LIVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(download, "PIECE_BYTES", 100_000)
    with Progress(live=True) as progress:
        fetch(server, tmp_path, progress=progress)
    shown = capsys.readouterr().out
    assert "% of 300k bytes, " in shown
    assert "/s, 0s left\r" in shown


def test_a_fetch_without_any_proof_is_refused(server: hostile.Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is known"):
        fetch(server, tmp_path, sha256=None, size=None)
    assert server.asked == []
