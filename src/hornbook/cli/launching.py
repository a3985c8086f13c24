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
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

from hornbook.base.console import say, warn
from hornbook.base.errors import MachineError, UserError
from hornbook.base.machine import cores_to_use
from hornbook.cli.meeting import (
    LOCALHOST,
    SECONDS_TO_MEET,
    interface_of,
    own_address,
    place,
    place_found_at,
    place_kept_at,
)
from hornbook.cli.words import INTERRUPTED

# Each must be given by as many words.
OPTIONS = ("--processes", "--hosts", "--meet")


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
    """`hornbook WORDS` by each of them; the first one's output is what is seen. Where the place to meet is lost, it is
    looked for again: a link may come back, and who keeps the place."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch comes in
    from torch.distributed.elastic.rendezvous import api

    # Or, begun again, they would look for one another where they were before.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores_to_use() // asked.processes, 1)))
    of_the_agent = logging.getLogger("torch.distributed.elastic")
    of_the_agent.addHandler(logging.NullHandler())
    of_the_agent.propagate = False  # what a user is to know, is told here
    hosts = "" if asked.meet is None else f" on this host, of {asked.least_hosts} to {asked.most_hosts}"
    say(f"starting {asked.processes} {'process' if asked.processes == 1 else 'processes'}{hosts}")
    host, told_at = Host(asked, words), 0.0
    while True:
        try:
            return host.run()
        except api.RendezvousClosedError:
            raise MachineError("the other hosts have ended this run; the same command goes on with it") from None
        except api.RendezvousTimeoutError:
            few = f"fewer than {asked.least_hosts} hosts met at {asked.meet} in {SECONDS_TO_MEET // 60} minutes"
            raise MachineError(f"--hosts: {few}; is --meet the same on each of them?") from None
        except (api.RendezvousError, RuntimeError, ConnectionError) as error:  # the second is the store's
            if asked.meet is None:
                raise
            why = str(error).splitlines()[0][:80]
            if time.monotonic() - host.met_at > SECONDS_TO_MEET:
                raise MachineError(f"--meet: nobody keeps {asked.meet}; hornbook meet does ({why})") from None
            if (lost_at := host.met_at) != told_at:
                warn(f"{asked.meet}, where hosts meet, is not reached ({why}); trying again")
            told_at = lost_at
            time.sleep(1)


class Host:
    """This one, among the others."""

    def __init__(self, asked: Launch, words: list[str]) -> None:
        self._asked, self._words = asked, words
        self._name = _name_of_this_launch(asked, words)
        self._round: str | None = None
        self._address = ""
        self._kept: Any = None
        self.met_at = time.monotonic()
        """When the place to meet was reached last."""

    def run(self) -> int:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        from hornbook.cli.agent import TIMES_TO_BEGIN_AGAIN, Agent, Meeting, exit_codes, how_it_ended

        asked, (name, store) = self._asked, self._place()
        meeting = Meeting(name, store, (asked.least_hosts, asked.most_hosts), self._address)
        agent = Agent([sys.executable, "-m", "hornbook", *self._words], asked.processes, meeting, self._name)
        try:
            codes = exit_codes(agent.run())
        except SignalException:
            return INTERRUPTED
        finally:
            self.met_at = agent.seen_at
        own = [code for code in codes.values() if code in (UserError.exit_code, INTERRUPTED)]
        if codes and not own:
            raise UserError(f"{how_it_ended(codes)}, and did so {TIMES_TO_BEGIN_AGAIN + 1} times in a row")
        return own[0] if own else 0

    def _place(self) -> tuple[str, Any]:
        """The name of the round in which hosts meet, and the store where they do."""
        from hornbook.cli.agent import round_of

        meet = self._asked.meet
        self._address = self._address or (own_address(meet) if meet else LOCALHOST)  # while there is a link
        # Or gloo takes that of the host's name, which on many a host is 127.0.1.1.
        if interface := interface_of(self._address):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if meet is None:
            return self._name, place_kept_at(LOCALHOST, 0)
        if self._kept is None:
            with contextlib.suppress(MachineError):  # another host's, or kept already
                self._kept = place_kept_at(*place(meet))
        store = place_found_at(*place(meet))
        self._round = round_of(self._name, store, self._round)
        return self._round, store


def _taken(words: list[str], name: str) -> str | None:
    for number, word in enumerate(words):
        if word == name:
            if number + 1 == len(words):
                raise UserError(f"{name}: a value is missing")
            value = words[number + 1]
            del words[number : number + 2]
            return value
        if word.startswith(f"{name}="):
            return words.pop(number).partition("=")[2]
    return None


def _name_of_this_launch(asked: Launch, words: list[str]) -> str:
    """Of one host a new one each time; of several the same on all of them, and when the same words come again."""
    if asked.meet is None:
        return uuid.uuid4().hex
    job = os.environ.get("SLURM_JOB_ID", "")
    return hashlib.sha256("\0".join([job, *words]).encode()).hexdigest()[:16]
