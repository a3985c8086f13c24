"""The processes that train one model together.

In: what each of them knows.  Out: what all of them agree on.
One process alone is a world in which everybody agrees. Several are begun by torchrun, or by `hornbook train --processes
N`, which tell each its number in the environment; then what all must agree on (whether to stop, what time it is) goes
through here, and so does what only the first of them may do (write, print). No pickle travels: numbers, and JSON.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from hornbook.base import output
from hornbook.base.background import Background
from hornbook.base.errors import HornbookError, MachineError, UserError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

T = TypeVar("T")
# How long one waits for the others in the middle of a step before they are taken for lost.
PATIENCE_SECONDS = "HORNBOOK_PATIENCE_SECONDS"
USUAL_PATIENCE = 600
# As often a process leaves word of how far it is, so that it can be told who is waited for.
WORD_EVERY_SECONDS = 1.0
SECONDS_TO_LEAVE = 5.0
SECONDS_BETWEEN_LOOKS = 0.02


def patience_seconds() -> float:
    return float(os.environ.get(PATIENCE_SECONDS, USUAL_PATIENCE))


class ToldElsewhereError(HornbookError):
    """What is wrong is told by another process."""


class OthersLostError(MachineError):
    """Another process is gone, or is silent for too long: no fault of this one, says its exit code."""

    exit_code = 75


class World:
    rank = 0
    size = 1
    rank_on_host = 0
    size_of_host = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, said: bool) -> bool:
        """Whether one of them says so."""
        return said

    def from_first(self, value: T) -> T:
        """What the first of them has: its clock, its disk. Numbers, or what JSON can say."""
        return value

    def by_first(self, act: Callable[[], T]) -> T:
        """What the first of them does for all, who wait as long as it takes; where it fails, it fails for all."""
        return act()

    def host_by_host(self, act: Callable[[], T]) -> T:
        """What each of them does, but first the first, then the first of each host, then the others, who find it done:
        hosts may share a disk or not."""
        return act()

    def gathered(self, numbers: torch.Tensor) -> torch.Tensor:
        """Those of all, in the order of their ranks, (size, ...)."""
        return numbers[None]

    def fill_from_first(self, *tensors: torch.Tensor) -> None:
        """Overwrite them with the first process's, of the same shapes."""

    def in_groups(self, size: int) -> World:
        """Those of its group, where so many in a row make one; what tensors say is said among them alone."""
        return self

    def sent_to_first(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What each of them has, all of it with the first; elsewhere nothing."""
        return tensors

    def meeting(self, about: str) -> Meeting:
        """For what threads beside the work have to say to one another."""
        raise NotImplementedError("alone there is nobody to meet")

    def leave(self) -> None:
        """At the end."""


class Ranks(World):
    """Several, over torch.distributed."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.rank_on_host = int(os.environ.get("LOCAL_RANK", 0))
        self.size_of_host = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self._everyone = (self.rank, self.size)
        self.group: dist.ProcessGroup | None = None  # of torch's, where these are not all
        # As it is called since torch 2.12, and was before.
        self._gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        self._dist, self._asked, self._stops, self._told_at = dist, 0, 0, 0.0
        patience = datetime.timedelta(seconds=patience_seconds())
        with self._together():
            self._store = self._kept_here() or next(rendezvous("env://"))[0]
            on_gpu = torch.cuda.is_available()
            if on_gpu:
                torch.cuda.set_device(self.rank_on_host % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=patience)
            self.any(False)  # whoever cannot be reached is missed now, not in the first step

    def _kept_here(self) -> Any:
        """The store, by the first of them and by the address that all were given alone, where PyTorch listens at all
        that its host has; nothing where the address is not this host's, or torchrun keeps the store."""
        if not self.is_first or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            server = socket.create_server((address, port))
        except OSError:
            return None
        return self._dist.TCPStore(  # type: ignore[attr-defined]
            address, port, self.size, is_master=True, master_listen_fd=server.detach()
        )

    def any(self, said: bool) -> bool:
        import torch

        self._leave_word()
        flag = torch.tensor(float(said))
        with self._together():
            self._dist.all_reduce(flag, op=self._dist.ReduceOp.MAX)
        return bool(flag)

    def from_first(self, value: T) -> T:
        if isinstance(value, float):
            import torch

            number = torch.tensor(value, dtype=torch.float64)
            with self._together():
                self._dist.broadcast(number, 0)
            return number.item()  # type: ignore[return-value]
        return self.by_first(lambda: value)

    def by_first(self, act: Callable[[], T]) -> T:
        key, self._asked = f"hornbook/first/{self._asked}", self._asked + 1
        if self.is_first:
            try:
                value = act()
            except HornbookError as error:
                self._say(key, {"mistakes": error.mistakes, "by_user": isinstance(error, UserError)})
                raise
            self._say(key, {"value": value})
            return value
        heard = self._hear(key)
        if "mistakes" in heard:
            told = ToldElsewhereError(*heard["mistakes"])
            told.exit_code = UserError.exit_code if heard["by_user"] else MachineError.exit_code
            raise told
        return heard["value"]

    def host_by_host(self, act: Callable[[], T]) -> T:
        turn = 0 if self.is_first else 1 if self.rank_on_host == 0 else 2
        key, self._asked = f"hornbook/turn/{self._asked}", self._asked + 1
        for before in range(turn):
            self._hear(f"{key}/{before}")
        result = act()
        with self._together():
            there = self._store.add(f"{key}/count/{turn}", 1)
        if there == self._in_turn(turn):
            self._say(f"{key}/{turn}", True)
        if turn == 0 and self._in_turn(1) == 0:
            self._say(f"{key}/1", True)
        for each in range(3):
            if self._in_turn(each):
                self._hear(f"{key}/{each}")
        return result

    def gathered(self, numbers: torch.Tensor) -> torch.Tensor:
        import torch

        there = torch.empty(self.size * numbers.numel(), dtype=numbers.dtype, device=numbers.device)
        self.gather_into(there, numbers.contiguous().flatten())
        return there.view(self.size, *numbers.shape)

    def gather_into(self, there: torch.Tensor, numbers: torch.Tensor) -> None:
        """The same, in one row that is there already; these may stand in their own place of it."""
        with self._together():
            self._gather(there, numbers, group=self.group)

    def fill_from_first(self, *tensors: torch.Tensor) -> None:
        for each in tensors:
            row = each.contiguous()
            with self._together():
                self._dist.broadcast(row, 0)
            each.copy_(row)

    def exchanged(self, parts: list[torch.Tensor] | torch.Tensor, expected: list[int]) -> torch.Tensor:
        """One part to each of them; what all sent to this one, in the order of their ranks."""
        import torch

        sent = parts.flatten() if isinstance(parts, torch.Tensor) else torch.cat(parts)
        heard = torch.empty(sum(expected), dtype=sent.dtype, device=sent.device)
        with self._together():
            self._dist.all_to_all_single(heard, sent, expected, [len(part) for part in parts], group=self.group)
        return heard

    def in_groups(self, size: int) -> World:
        if size == self.size:
            return self
        groups = [list(range(first, first + size)) for first in range(0, self.size, size)]
        patience = datetime.timedelta(seconds=patience_seconds())
        with self._together():
            made = [self._dist.new_group(ranks, timeout=patience) for ranks in groups]
        own = copy.copy(self)
        own.group, own.rank, own.size = made[self.rank // size], self.rank % size, size
        return own

    def sent_to_first(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        names = [[name, str(each.dtype).removeprefix("torch."), *each.shape] for name, each in tensors.items()]
        key, self._asked = f"hornbook/sent/{self._asked}", self._asked + 1
        if not self.is_first:
            self._say(f"{key}/{self.rank}", names)
            with self._together():
                for each in tensors.values():
                    self._dist.send(each.detach().cpu().contiguous(), 0)
            return {}
        everything = dict(tensors)
        for rank in range(1, self.size):
            for name, dtype, *shape in self._hear(f"{key}/{rank}"):
                everything[name] = torch.empty(shape, dtype=getattr(torch, dtype))
                with self._together():
                    self._dist.recv(everything[name], rank)
        return everything

    def meeting(self, about: str) -> Meeting:
        self._asked += 1
        return Meeting(self._store.clone(), f"hornbook/{about}/{self._asked}", self.rank, self.size)

    def leave(self) -> None:
        """The first, who keeps the store, goes last, lest others find it gone while they still read."""

        def take_leave() -> None:
            left = self._store.add("hornbook/left", 1)
            while self.is_first and left < self.size:
                time.sleep(0.01)
                left = self._store.add("hornbook/left", 0)

        _within(SECONDS_TO_LEAVE, take_leave, None)
        with contextlib.suppress(Exception):
            self._dist.destroy_process_group()

    def _say(self, key: str, value: Any) -> None:
        with self._together():
            self._store.set(key, json.dumps(value))

    def _hear(self, key: str) -> Any:
        """As long as it takes: a text may be prepared for hours. Where who speaks is gone, so is the store, or torchrun
        ends this process."""
        while True:
            try:
                self._store.wait([key], datetime.timedelta(seconds=20))
                break
            except RuntimeError as error:
                if "timeout" not in str(error).lower():
                    raise self._lost(error) from None
        with self._together():
            return json.loads(self._store.get(key))

    def _in_turn(self, turn: int) -> int:
        hosts = max(self.size // self.size_of_host, 1)
        return (1, hosts - 1, self.size - hosts)[turn]

    def _leave_word(self) -> None:
        self._stops += 1
        if time.monotonic() - self._told_at > WORD_EVERY_SECONDS:
            self._told_at = time.monotonic()
            with contextlib.suppress(RuntimeError):
                self._store.set(f"hornbook/at/{self.rank}", f"{self._stops} {socket.gethostname()}")

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> OthersLostError:
        why = re.sub(r"^\[\S+:\d+\] ?", "", str(error).splitlines()[0])  # where in gloo's sources
        unknown = "" if self._everyone[0] == 0 else f", rank 0 at {os.environ['MASTER_ADDR']} does not answer"
        return OthersLostError(
            f"lost the other processes{_within(SECONDS_TO_LEAVE, self._who_is_behind, unknown)} ({why[:80]}); "
            "what was saved is whole: go on with the same command, or hornbook resume RUN"
        )

    def _who_is_behind(self) -> str:
        """Who left word longest ago, where that can still be told."""
        try:
            at = {}
            own, everyone = self._everyone
            for rank in range(everyone):
                if rank != own and self._store.check([f"hornbook/at/{rank}"]):
                    times, host = self._store.get(f"hornbook/at/{rank}").decode().split(" ", 1)
                    at[rank] = (int(times), host)
            rank = min(at, key=lambda each: at[each][0])
            return f", rank {rank} on {at[rank][1]} was heard of last"
        except ValueError:  # nobody left any
            return ""


def _within(seconds: float, ask: Callable[[], T], otherwise: T) -> T:
    """What the store answers; over a link that is cut, that may take for ever."""
    with contextlib.suppress(RuntimeError, TimeoutError), Background() as beside:
        return beside.submit(ask).result(seconds)
    return otherwise


class Meeting:
    """A way to the store of one's own, on which one may wait while the work goes on."""

    def __init__(self, store: Any, about: str, rank: int, size: int) -> None:
        self._store, self._about = store, about
        self.rank, self.size, self.is_first = rank, size, rank == 0

    def say(self, key: str, value: Any) -> None:
        self._store.set(f"{self._about}/{key}", json.dumps(value))

    def hear(self, key: str) -> Any:
        """As long as it takes; a process that is lost is missed by those at work."""
        while not self._store.check([f"{self._about}/{key}"]):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return json.loads(self._store.get(f"{self._about}/{key}"))


@functools.cache
def world() -> World:
    """The one that this process was started in; all but its first process are silent from then on."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "RANK" not in os.environ:
        return World()
    if int(os.environ["RANK"]) > 0:
        output.be_silent(f"rank {os.environ['RANK']} on {socket.gethostname()}: ")
    return Ranks()


def leave_world() -> None:
    if world.cache_info().currsize:
        world().leave()
