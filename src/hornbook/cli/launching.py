"""One run by several processes, on one host or on several.

In: the words of a command, how many processes it is to have on this host, and where hosts meet.  Out: the command, run
by each of them, and its exit code. PyTorch's elastic agent starts them and tells each its number; when one is lost, all
begin again from the newest checkpoint, with the hosts that are there then.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

from hornbook.base.console import say, warn
from hornbook.base.errors import MachineError, UserError
from hornbook.base.machine import cores_to_use
from hornbook.cli.meeting import interface_of, is_this_host, own_address, round_of
from hornbook.cli.words import INTERRUPTED

# Each must be given by as many words.
OPTIONS = ("--processes", "--hosts", "--meet")
LOCALHOST = "127.0.0.1"
# To be saved in when it is told to end, after which a process is killed.
SECONDS_TO_END = 600
# In a row, unless they lived for a while.
TIMES_TO_BEGIN_AGAIN, SECONDS_OF_A_GOOD_LIFE = 10, 600
SECONDS_TO_MEET = 900
# A host that gives no sign for three times as long is lost.
SECONDS_BETWEEN_SIGNS = 3
# When there are enough hosts, others may still come for so long; later ones are taken in by beginning again.
SECONDS_FOR_MORE_HOSTS = 10
# So old is at most what is known of other hosts.
SECONDS_UNTIL_TOLD = 2.0


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
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    hosts = "" if asked.meet is None else f" on this host, of {asked.least_hosts} to {asked.most_hosts}"
    say(f"starting {asked.processes} {'process' if asked.processes == 1 else 'processes'}{hosts}")
    attempt = Attempt(asked, words, _name_of_this_launch(asked, words))
    while True:
        try:
            return attempt.run()
        except api.RendezvousClosedError:
            raise MachineError("the other hosts have ended this run; the same command goes on with it") from None
        except api.RendezvousTimeoutError:
            few = f"fewer than {asked.least_hosts} hosts met at {asked.meet} in {SECONDS_TO_MEET // 60} minutes"
            raise MachineError(f"--hosts: {few}; is --meet the same on each of them?") from None
        except (api.RendezvousError, RuntimeError) as error:  # the store's
            if asked.meet is None:
                raise
            if time.monotonic() - attempt.met_at > SECONDS_TO_MEET:
                why = str(error).splitlines()[0][:80]
                raise MachineError(f"--meet: nobody keeps {asked.meet}; hornbook meet does ({why})") from None
            warn(f"{asked.meet}, where hosts meet, is not reached; trying again")
            time.sleep(1)


class Attempt:
    """One life of this host among the others."""

    def __init__(self, asked: Launch, words: list[str], name: str) -> None:
        self._asked, self._words, self._name = asked, words, name
        self._round: str | None = None
        self._address: str | None = None
        self.met_at = time.monotonic()
        """When the others were seen last."""

    def run(self) -> int:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher import api

        asked, meet = self._asked, self._asked.meet
        if meet is not None:
            self._address = self._address or own_address(meet)  # that of a host whose link is cut is not found again
            # Or gloo takes that of the host's name, which on many a host is 127.0.1.1.
            if interface := interface_of(self._address):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            self._round = round_of(self._name, meet, self._round)
        config = api.LaunchConfig(
            min_nodes=asked.least_hosts,
            max_nodes=asked.most_hosts,
            nproc_per_node=asked.processes,
            run_id=self._round or self._name,
            rdzv_backend="c10d",
            rdzv_endpoint=meet or f"{LOCALHOST}:0",
            rdzv_configs={
                "timeout": SECONDS_TO_MEET,
                "join_timeout": SECONDS_TO_MEET,
                "last_call_timeout": SECONDS_FOR_MORE_HOSTS,
                "keep_alive_interval": SECONDS_BETWEEN_SIGNS,
                "is_host": meet is None or is_this_host(meet),
            },
            local_addr=self._address or LOCALHOST,
            max_restarts=TIMES_TO_BEGIN_AGAIN,
            shutdown_timeout=SECONDS_TO_END,
        )
        vars(api)["LocalElasticAgent"] = self._agent()
        try:
            api.elastic_launch(config, sys.executable)("-m", "hornbook", *self._words)
        except ChildFailedError as failed:
            codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            own = [code for code in codes.values() if code in (UserError.exit_code, INTERRUPTED)]
            if not own:
                raise UserError(
                    f"{_how_it_ended(codes)}, and did so {TIMES_TO_BEGIN_AGAIN + 1} times in a row"
                ) from None
            return own[0]
        except SignalException:
            return INTERRUPTED
        return 0

    def _agent(attempt) -> Any:  # noqa: N805
        from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
        from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous.api import RendezvousError

        class Agent(LocalElasticAgent):
            """PyTorch's, which begins again whatever a process ended with; this one only where that may help, and also
            where another host falls silent."""

            def __init__(self, spec: Any, **more: Any) -> None:
                super().__init__(spec, **more)
                self._meeting, self._began = spec.rdzv_handler, time.monotonic()
                self._missed_since: float | None = None
                self._meeting.get_run_id = lambda: attempt._name  # by which a process knows its own run

            def run(self, role: str = "default") -> Any:
                try:
                    return super().run(role)
                except (SignalException, ChildFailedError):
                    raise
                except Exception:
                    # To part from the others, rather than to end the meeting for all of them.
                    self._meeting.shutdown = self._meeting._stop_heartbeats
                    ended = self._pcontext.wait(0) if self._pcontext else None
                    failures = ended.failures if ended else {}
                    if any(each.exitcode == UserError.exit_code for each in failures.values()):
                        raise ChildFailedError("hornbook", failures) from None
                    raise

            def _start_workers(self, group: Any) -> Any:
                self._began, self._missed_since = time.monotonic(), None
                return super()._start_workers(group)

            def _monitor_workers(self, group: Any) -> Any:
                found = super()._monitor_workers(group)
                if time.monotonic() - self._began > SECONDS_OF_A_GOOD_LIFE:
                    self._remaining_restarts = TIMES_TO_BEGIN_AGAIN
                if found.is_failed():
                    codes = {rank: failure.exitcode for rank, failure in found.failures.items()}
                    if INTERRUPTED in codes.values() and self._others_begin_again():
                        return RunResult(state=WorkerState.HEALTHY)  # so that this host does, too
                    if any(code in (UserError.exit_code, INTERRUPTED) for code in codes.values()):
                        self._remaining_restarts = 0
                    elif self._remaining_restarts > 0:
                        warn(f"{_how_it_ended(codes)}; going on from the newest checkpoint")
                elif found.state is WorkerState.HEALTHY and self._misses_a_host(group):
                    warn("another host is silent; going on from the newest checkpoint without it")
                    if self._pcontext is not None:
                        self._pcontext.close(signal.SIGKILL)  # they wait for it
                    self._remaining_restarts += 1  # it is no fault of theirs
                    return RunResult(state=WorkerState.UNHEALTHY)
                return found

            def _others_begin_again(self) -> bool:
                """With a host that came: then their processes are told to stop, and these stop with them."""
                time.sleep(SECONDS_UNTIL_TOLD)
                try:
                    return bool(self._meeting.num_nodes_waiting())
                except RendezvousError:  # whose place it was has stopped, too
                    return False

            def _misses_a_host(self, group: Any) -> bool:
                waiting = self._meeting.num_nodes_waiting()
                attempt.met_at = time.monotonic()
                there = len(self._meeting._state_holder.state.participants)
                if waiting or there >= group.group_world_size:
                    self._missed_since = None
                    return False
                self._missed_since = self._missed_since or time.monotonic()
                return time.monotonic() - self._missed_since > SECONDS_UNTIL_TOLD

        return Agent


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
