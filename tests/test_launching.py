"""One run by several processes, as users start it: found again after one of them is killed."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousStateError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

from hornbook.base.errors import MachineError, UserError
from hornbook.cli import agent, meeting
from hornbook.cli.agent import Meeting, round_of
from hornbook.cli.launching import Launch
from hornbook.cli.meeting import interface_of, own_address, place, place_found_at, place_kept_at
from hornbook.runs.folder import Record, RunFolder
from hornbook.runs.logs import read_log
from hornbook.train.start import was_begun_by_this_launch
from train.worlds import digest

ROOT = Path(__file__).parent.parent
WORDS = (
    "--tokenizer.kind byte --model.n-layer 1 --model.n-embd 16 --model.n-head 1 --model.context 32 "
    "--train.batch-tokens 256 --train.micro-batch 1 --train.threads 1 --train.save-every-steps 5 --train.device cpu "
    "--train.dtype float32 --sample.tokens 1"
)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("demo", None),
        ("demo --processes 2", Launch(2)),
        ("demo --hosts=1:4 --meet there:29400 --processes 8", Launch(8, 1, 4, "there:29400")),
        ("demo --hosts 2 --meet there", Launch(1, 2, 2, "there")),
    ],
)
def test_what_is_asked_for_is_taken_out_of_the_words(words: str, asked: Launch | None) -> None:
    left = words.split()
    assert Launch.taken_from(left) == asked
    assert left == ["demo"]


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ("--processes none", "give 1 or more"),
        ("--processes", "a value is missing"),
        ("--hosts 4:1 --meet there", "give 4, or 1:4"),
        ("--hosts 2", "--meet HOST:PORT"),
    ],
)
def test_what_cannot_be_meant_is_told(words: str, mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        Launch.taken_from(words.split())


def test_a_place_is_kept_by_one_and_remembers_who_met_and_parted() -> None:
    kept = place_kept_at("127.0.0.1", 0)
    with pytest.raises(MachineError, match="give another"):
        place_kept_at("127.0.0.1", kept.port)
    with pytest.raises(MachineError, match="give another"):
        place_kept_at("192.0.2.1", 29400)  # an address of no host
    store = place_found_at("127.0.0.1", kept.port)
    for expected in ("run", "run-1", "run-2"):
        assert round_of("run", store) == expected == round_of("run", store)
        Meeting(expected, store, (1, 1), "localhost").handler.set_closed()
    assert round_of("run", store, before="run-1") == "run-1"
    assert round_of("run", store, before="run-9") == "run-3", "kept by another since"


def test_who_waits_for_the_others_to_end_still_gives_signs() -> None:
    kept = place_kept_at("127.0.0.1", 0)
    store = place_found_at("127.0.0.1", kept.port)
    of_one = Meeting("run", store, (1, 2), "127.0.0.1")
    waiting = threading.Thread(target=store.wait, args=(["the others"], datetime.timedelta(seconds=60)))
    waiting.start()
    time.sleep(0.1)
    began = time.monotonic()
    assert not of_one.others_wait()
    assert time.monotonic() - began < 30
    kept.set("the others", "here")
    waiting.join()


def test_a_place_is_kept_by_the_address_that_was_given_alone() -> None:
    ours, all_of_them = place_kept_at("127.0.0.2", 0), place_kept_at("", 0)
    assert is_heard(f"127.0.0.2:{ours.port}")
    assert not is_heard(f"127.0.0.1:{ours.port}")
    assert interface_of("127.0.0.1") in ("lo", "lo0")
    assert is_heard(f"127.0.0.1:{all_of_them.port}")
    assert is_heard(f"127.0.0.2:{all_of_them.port}")


def is_heard(meet: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(place(meet)):
        return True
    return False


def test_a_host_whose_own_name_is_a_loopback_address_to_itself_keeps_the_place_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Debian has it in /etc/hosts."""
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1" if name == "node-0" else name)
    kept = place_kept_at("node-0", 0)
    assert is_heard(f"127.0.0.1:{kept.port}")
    reached = {"node-0": "127.0.0.1", "192.0.2.1": "10.1.2.3"}
    monkeypatch.setattr(meeting, "_reached_from", lambda host, port: reached.get(host, host))
    assert own_address("node-0:29400") == "10.1.2.3"
    assert own_address("127.0.0.1:29400") == "127.0.0.1"
    del reached["192.0.2.1"]
    assert own_address("10.1.2.4") == "10.1.2.4"


def test_a_place_that_nobody_keeps_is_looked_for_again_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="refused"):
        place_found_at("127.0.0.1", 1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("text", ["node-0:x", "node-0:", "node-0:-1", "node-0:65536"])
def test_a_place_has_a_port(text: str) -> None:
    with pytest.raises(UserError, match="no number of a port"):
        place(text)


def test_what_is_written_where_hosts_meet_can_run_nothing(tmp_path: Path) -> None:
    """PyTorch keeps a pickle there, and whoever reaches the place can write it."""

    class Harmful:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "done"),))

    kept = place_kept_at("127.0.0.1", 0)
    C10dRendezvousBackend(kept, "run").set_state(pickle.dumps(Harmful()))
    with pytest.raises(RendezvousStateError, match=r"no record of theirs: posix.mkdir"):
        round_of("run", kept)
    assert not (tmp_path / "done").exists()


def test_another_torch_is_told_rather_than_met_as_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent._shutdown")
    monkeypatch.delattr("torch.distributed.elastic.agent.server.api.SimpleElasticAgent._shutdown")
    monkeypatch.setattr(agent.Agent, "__abstractmethods__", frozenset())
    of_two = Meeting("run", place_kept_at("127.0.0.1", 0), (1, 2), "127.0.0.1")
    with pytest.raises(MachineError, match=r"torch .* begins processes otherwise .*\(no _shutdown\)"):
        agent.Agent(["true"], 1, of_two, "run")


def test_a_port_that_was_served_a_moment_ago_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # who closes first waits a minute
            client.recv(1)
    assert place_kept_at("127.0.0.1", port).port == port


@pytest.mark.parametrize(
    ("launch", "restarts", "goes_on"), [("a", "0", True), ("b", "0", False), ("none", "0", False), ("none", "1", True)]
)
def test_a_launch_goes_on_with_its_own_run_alone(
    launch: str, restarts: str, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    begun_by = launch if launch == "none" else "a"
    run.path.mkdir()
    run.write(Record({}, tmp_path / "shards", "f").with_(launch=begun_by))
    run.checkpoint(2).mkdir(parents=True)
    (run.checkpoint(2) / "config.json").write_text("{}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    assert was_begun_by_this_launch(run) == goes_on


@pytest.mark.long
def test_a_process_that_is_killed_costs_seconds_and_no_bit(
    child: Callable[..., subprocess.Popen[str]], text_file: Path, tmp_path: Path
) -> None:
    run, alone = tmp_path / "two", tmp_path / "alone"
    words = ["train", "--data", str(text_file), *WORDS.split(), "--train.steps", "60", "--schedule.kind", "constant"]
    started = child(*words, "--processes", "2", "--out", str(run))
    wait_until(lambda: bool(RunFolder(run).checkpoints()), started)
    os.kill(ranks_of(started)[-1], signal.SIGKILL)
    output, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert "was killed (SIGKILL); going on from the newest checkpoint" in errors
    assert "going on from" in output
    assert child(*words, "--out", str(alone)).wait(timeout=200) == 0
    assert digest(run) == digest(alone)


@pytest.mark.long
def test_ctrl_c_stops_all_and_saves(
    child: Callable[..., subprocess.Popen[str]], text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", "--data", str(text_file), *WORDS.split(), "--train.steps", "100000", "--processes", "2"]
    started = child(*words, "--out", str(run))
    wait_until(lambda: bool(RunFolder(run).checkpoints()), started)
    ranks = ranks_of(started)
    for each in (started.pid, *ranks):  # as a terminal does
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGINT)
    output, errors = started.communicate(timeout=120)
    assert started.returncode == 130, errors
    assert "all of it saved; go on with" in output
    assert "Traceback" not in errors
    assert "torch" not in errors
    assert not any(Path(f"/proc/{each}").exists() for each in ranks)


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
    return [each for each in children if b"hornbook" in Path(f"/proc/{each}/cmdline").read_bytes()]


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + 200
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < patience
        time.sleep(0.05)


def namespaces_may_be_made() -> bool:
    """As root, with iproute2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.skipif(not namespaces_may_be_made(), reason="network namespaces: as root, with iproute2")
def test_a_host_that_falls_silent_is_gone_on_without_and_taken_in_again(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--trials", "1", "--only", "killed"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, "bench/hosts.py", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = read_log(tmp_path / "tally.jsonl")
    assert told["ok"]
    assert told["seconds"].keys() == {"two go on", "three again"}
