"""One run by several processes, on one host or on several.

In: the words of a command, how many processes it is to have on this host, and where hosts meet.  Out: the command, run
by each of them, and its exit code. PyTorch's elastic agent starts them and tells each its number; when one is lost, all
begin again from the newest checkpoint, with the hosts that are there then.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import signal
import socket
import sys
import uuid
from dataclasses import dataclass
from typing import Any

from hornbook.base.console import say, warn
from hornbook.base.errors import UserError
from hornbook.base.machine import cores_to_use
from hornbook.cli.words import INTERRUPTED

# Each must be given by as many words.
OPTIONS = ("--processes", "--hosts", "--meet")
LOCALHOST, MEETING_PORT = "127.0.0.1", 29400
# To be saved in when it is told to end, after which a process is killed.
SECONDS_TO_END = 600
TIMES_TO_BEGIN_AGAIN = 10
SECONDS_TO_MEET = 900


@dataclass(frozen=True)
class Launch:
    """What was asked for."""

    processes: int
    least_hosts: int = 1
    most_hosts: int = 1
    meet: str | None = None

    @classmethod
    def taken_from(cls, words: list[str]) -> Launch | None:
        """Out of the words of a command, which no longer have them; None where the command is to run as it is."""
        given = {name: value for name in OPTIONS if (value := _taken(words, name)) is not None}
        if not given:
            return None
        if not re.fullmatch(r"[1-9]\d*", given.get("--processes", "1")):
            raise UserError(f"--processes: {given['--processes']} is no number of processes; give 1 or more")
        hosts = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", given.get("--hosts", "1"))
        if hosts is None or int(hosts[2] or hosts[1]) < int(hosts[1]):
            raise UserError(f"--hosts: {given['--hosts']} is no number of hosts; give 4, or 1:4 for one to four")
        least, most = int(hosts[1]), int(hosts[2] or hosts[1])
        if most > 1 and "--meet" not in given:
            raise UserError("--hosts: tell where they meet: --meet HOST:PORT, the same on each of them")
        return cls(int(given.get("--processes", "1")), least, most, given.get("--meet"))

    @property
    def is_of_one(self) -> bool:
        return self.processes == 1 and self.most_hosts == 1 and self.meet is None


def launch(asked: Launch, words: list[str]) -> int:
    """`hornbook WORDS` by each of them; the first one's output is what is seen."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api

    class Agent(LocalElasticAgent):
        """PyTorch's, which begins again whatever a process ended with; this one only where that may help."""

        def _monitor_workers(self, group: Any) -> Any:
            found = super()._monitor_workers(group)
            if found.is_failed():
                codes = {rank: failure.exitcode for rank, failure in found.failures.items()}
                if any(code in (UserError.exit_code, INTERRUPTED) for code in codes.values()):
                    self._remaining_restarts = 0
                elif self._remaining_restarts > 0:
                    warn(f"{_how_it_ended(codes)}; going on from the newest checkpoint")
            return found

    # Or, begun again, they would look for one another where they were before.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores_to_use() // asked.processes, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    vars(api)["LocalElasticAgent"] = Agent
    config = api.LaunchConfig(
        min_nodes=asked.least_hosts,
        max_nodes=asked.most_hosts,
        nproc_per_node=asked.processes,
        run_id=_name_of_this_launch(asked, words),
        rdzv_backend="c10d",
        rdzv_endpoint=asked.meet or f"{LOCALHOST}:0",
        rdzv_configs={
            "timeout": SECONDS_TO_MEET,
            "is_host": asked.meet is None or _is_this_host(asked.meet),
        },
        local_addr=LOCALHOST if asked.meet is None else _own_address(asked.meet),
        max_restarts=TIMES_TO_BEGIN_AGAIN,
        shutdown_timeout=SECONDS_TO_END,
    )
    hosts = "" if asked.meet is None else f" on this host, of {asked.least_hosts} to {asked.most_hosts}"
    say(f"starting {asked.processes} processes{hosts}")
    try:
        api.elastic_launch(config, sys.executable)("-m", "hornbook", *words)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        own = [code for code in codes.values() if code in (UserError.exit_code, INTERRUPTED)]
        if not own:
            raise UserError(f"{_how_it_ended(codes)}, and did so {TIMES_TO_BEGIN_AGAIN + 1} times") from None
        return own[0]
    except SignalException:
        return INTERRUPTED
    return 0


def _taken(words: list[str], name: str) -> str | None:
    for place, word in enumerate(words):
        if word == name:
            if place + 1 == len(words):
                raise UserError(f"{name}: a value is missing")
            value = words[place + 1]
            del words[place : place + 2]
            return value
        if word.startswith(f"{name}="):
            return words.pop(place).partition("=")[2]
    return None


def _how_it_ended(codes: dict[int, int]) -> str:
    """The first that was killed, since the others are then ended because of it."""
    rank = min(codes, key=lambda each: (codes[each] >= 0, codes[each] == -signal.SIGTERM, each))
    code = codes[rank]
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    return f"rank {rank} {how}"


def _name_of_this_launch(asked: Launch, words: list[str]) -> str:
    """Of one host a new one each time; of several the same on all of them, and when the same words come again."""
    if asked.meet is None:
        return uuid.uuid4().hex
    job = os.environ.get("SLURM_JOB_ID", "")
    return hashlib.sha256("\0".join([job, *words]).encode()).hexdigest()[:16]


def _place(meet: str) -> tuple[str, int]:
    host, colon, port = meet.rpartition(":")
    if not colon:
        return meet, MEETING_PORT
    if not port.isdigit():
        raise UserError(f"--meet: {meet} is no HOST:PORT")
    return host, int(port)


def _own_address(meet: str) -> str:
    """That by which this host reaches the others."""
    host, port = _place(meet)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except OSError as error:
            raise UserError(f"--meet: {meet} cannot be reached ({error.strerror or error})") from None
        return str(probe.getsockname()[0])


def _is_this_host(meet: str) -> bool:
    """Whether the place to meet is here, and nobody keeps it yet (`hornbook meet` does)."""
    host, port = _place(meet)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, port))
        return True
    except OSError:
        return False


def keep_meeting_place(port: int) -> int:
    """Until it is ended: a store through which hosts find one another, whichever of them is lost."""
    import threading

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)
    say(f"hosts meet here: --meet THIS-HOST:{store.port}")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0
