"""Who watches over the processes of this host.

In: how many there are to be, and the other hosts, as they meet.  Out: how the processes ended. PyTorch's elastic agent
begins them, and all of them again when one is lost, whatever it ended with; this one only where that may help, and
also where another host falls silent.
"""

from __future__ import annotations

import datetime
import io
import pickle
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError, RendezvousStateError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousTimeout,
)
from torch.distributed.launcher.api import LaunchConfig

from hornbook.base.console import warn
from hornbook.base.errors import MachineError, UserError
from hornbook.base.world import OthersLostError
from hornbook.cli.meeting import LOCALHOST, SECONDS_TO_MEET
from hornbook.cli.words import INTERRUPTED

# To be saved in when it is told to end, after which a process is killed; where one was lost there is nothing to save.
SECONDS_TO_END, SECONDS_WITHOUT_ANOTHER = 600, 30
# In a row, unless they lived for a while.
TIMES_TO_BEGIN_AGAIN, SECONDS_OF_A_GOOD_LIFE = 10, 600
# That others are lost counts less, unless it happens all the time, as where they find no way to one another.
LOSSES_FOR_ONE = 10
# A host that gives no sign for three times as long is lost.
SECONDS_BETWEEN_SIGNS = 3
# When there are enough hosts, others may still come for so long; later ones are taken in by beginning again.
SECONDS_FOR_MORE_HOSTS = 10
# So old is at most what is known of other hosts.
SECONDS_UNTIL_TOLD = 2.0
# What PyTorch's agent has, though it promises nobody so, and is used or replaced here.
OF_THE_AGENT = ("_monitor_workers", "_start_workers", "_stop_workers", "_shutdown", "_pcontext", "_remaining_restarts")
# All that PyTorch's record of who has met is made of.
IN_A_RECORD = {
    *((DynamicRendezvousHandler.__module__, name) for name in ("_RendezvousState", "_NodeDesc")),
    *(("datetime", name) for name in ("datetime", "timedelta", "timezone")),
}


class WhoMet(RendezvousBackend):
    """What is written down of it. That is pickled, and whoever reaches the place may write it, so that it is read here
    before PyTorch does, which would do whatever it says."""

    def __init__(self, name: str, store: Any) -> None:
        # A connection of its own: in another a host may wait for the others to end, and still has to give signs.
        self._kept = C10dRendezvousBackend(store.clone(), name)
        self.hosts = 0
        """That are at work together."""
        self.is_left = False
        """From then on nothing is said to the others, nor heard of them."""

    @property
    def name(self) -> str:
        return self._kept.name

    def get_state(self) -> tuple[bytes, Any] | None:
        self._must_be_there()
        found = self._kept.get_state()
        if found is not None:
            self._read(found[0])
        return found

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        self._must_be_there()
        found = self._kept.set_state(state, token)
        if found is not None:
            self._read(found[0])
        return found

    def _must_be_there(self) -> None:
        if self.is_left:
            raise RendezvousConnectionError("left")

    def _read(self, state: bytes) -> None:
        try:
            self.hosts = len(_OfARecord(io.BytesIO(state)).load().participants)
        except Exception as error:
            raise RendezvousStateError(
                f"what was written down where hosts meet is no record of theirs: {error}"
            ) from None


class _OfARecord(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in IN_A_RECORD:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class Meeting:
    """Of this host with the others, at a place that is kept: a round of it whenever a host came or is lost."""

    def __init__(self, name: str, store: TCPStore, hosts: tuple[int, int], address: str) -> None:
        join, more = (datetime.timedelta(seconds=each) for each in (SECONDS_TO_MEET, SECONDS_FOR_MORE_HOSTS))
        self._record = WhoMet(name, store)
        self.handler = DynamicRendezvousHandler.from_backend(
            name,
            store,
            self._record,
            *hosts,
            address,
            RendezvousTimeout(join=join, last_call=more),
            keep_alive_interval=SECONDS_BETWEEN_SIGNS,
        )

    def others_wait(self) -> bool:
        """To be taken in."""
        return self.handler.num_nodes_waiting() > 0

    def misses_one_of(self, hosts: int | None) -> bool:
        return not self.others_wait() and self._record.hosts < (hosts or 0)

    def part(self) -> None:
        """From the others, who go on."""
        self._record.is_left = True
        self.handler.shutdown()


def round_of(name: str, store: TCPStore, before: str | None = None) -> str:
    """A name under which the hosts have not yet met and parted, since a place that is kept remembers those; the one
    from before, where it remembers that."""
    if before is not None and WhoMet(before, store).get_state() is not None:
        return before
    number, tried = 0, name
    while Meeting(tried, store, (1, 1), LOCALHOST).handler.is_closed():
        number += 1
        tried = f"{name}-{number}"
    return tried


class Agent(LocalElasticAgent):
    def __init__(self, command: Sequence[str], processes: int, meeting: Meeting, name: str) -> None:
        """`name`: by which a process knows its own run."""
        usual = LaunchConfig(1, 1, processes)
        spec = WorkerSpec(
            role="hornbook",
            local_world_size=processes,
            entrypoint=command[0],
            args=tuple(command[1:]),
            rdzv_handler=meeting.handler,
            max_restarts=TIMES_TO_BEGIN_AGAIN,
            monitor_interval=usual.monitor_interval,
            numa_options=usual.numa_options,
        )
        meeting.handler.get_run_id = lambda: name
        logs = usual.logs_specs or DefaultLogsSpecs()
        super().__init__(spec, logs, start_method=usual.start_method, shutdown_timeout=SECONDS_TO_END)
        if absent := [each for each in OF_THE_AGENT if not hasattr(self, each)]:
            raise MachineError(
                f"torch {torch.__version__} begins processes otherwise than Hornbook knows (no {', '.join(absent)}); "
                "take another torch, or begin them by torchrun -m hornbook"
            )
        self._meeting = meeting
        self.seen_at = self._began = time.monotonic()
        self._missed_since: float | None = None
        self._lost_others = 0

    def run(self, role: str = "hornbook") -> RunResult:
        """Where all is done, or nothing helps, the others are told that the meeting is over."""
        try:
            result = super().run(role)
        except SignalException:
            raise
        except Exception:
            # To part from the others, rather than to end the meeting for all of them.
            self._meeting.part()
            ended = self._pcontext.wait(0) if self._pcontext else None
            failures = ended.failures if ended else {}
            if any(each.exitcode == UserError.exit_code for each in failures.values()):
                return RunResult(state=WorkerState.FAILED, failures=failures)
            raise
        self._meeting.handler.shutdown()
        return result

    def _start_workers(self, group: WorkerGroup) -> dict[int, Any]:
        self._began, self._missed_since = time.monotonic(), None
        return super()._start_workers(group)

    def _stop_workers(self, group: WorkerGroup) -> None:
        """Who is well has something to save."""
        well = group.state is WorkerState.HEALTHY
        self._shutdown(timeout=SECONDS_TO_END if well else SECONDS_WITHOUT_ANOTHER)

    def _monitor_workers(self, group: WorkerGroup) -> RunResult:
        found = super()._monitor_workers(group)
        if time.monotonic() - self._began > SECONDS_OF_A_GOOD_LIFE:
            self._remaining_restarts = TIMES_TO_BEGIN_AGAIN
        if found.is_failed():
            codes = exit_codes(found)
            if INTERRUPTED in codes.values() and self._others_begin_again():
                return RunResult(state=WorkerState.HEALTHY)  # so that this host does, too
            if any(code in (UserError.exit_code, INTERRUPTED) for code in codes.values()):
                self._remaining_restarts = 0
            elif set(codes.values()) == {OthersLostError.exit_code}:
                warn("other processes were lost; going on from the newest checkpoint")
                self._lost_others += 1
                self._remaining_restarts += self._lost_others % LOSSES_FOR_ONE > 0
            elif self._remaining_restarts > 0:
                warn(f"{how_it_ended(codes)}; going on from the newest checkpoint")
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
            return self._meeting.others_wait()
        except RendezvousError:  # whose place it was has stopped, too
            return False

    def _misses_a_host(self, group: WorkerGroup) -> bool:
        misses = self._meeting.misses_one_of(group.group_world_size)
        self.seen_at = time.monotonic()
        self._missed_since = (self._missed_since or self.seen_at) if misses else None
        return self._missed_since is not None and self.seen_at - self._missed_since > SECONDS_UNTIL_TOLD


def exit_codes(result: RunResult | None) -> dict[int, int]:
    """Of those that failed; there is no result where this host was not needed."""
    return {rank: failure.exitcode for rank, failure in result.failures.items()} if result else {}


def how_it_ended(codes: Mapping[int, int]) -> str:
    """The first that was killed, since the others are then ended because of it."""
    because = (-signal.SIGTERM, OthersLostError.exit_code)
    rank = min(codes, key=lambda each: (codes[each] in because, codes[each] >= 0, each))
    code = codes[rank]
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    return f"rank {rank} {how}"
