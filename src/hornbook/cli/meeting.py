"""Where hosts meet.

In: HOST:PORT, as it was given to all of them.  Out: whether this host is to keep the place, by which address it reaches
the others, and the place kept by a process of its own, `hornbook meet`, so that no host's loss ends the run.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import struct
import threading
from typing import Any

from hornbook.base.console import say
from hornbook.base.errors import MachineError, UserError
from hornbook.cli.words import parse, parser_of

USUAL_PORT = 29400
ASK_ADDRESS = 0x8915  # of an interface, in Linux: SIOCGIFADDR


def meet(words: list[str]) -> int:
    parser = parser_of(
        "meet",
        "Keep the place where the hosts of a run find one another, until Ctrl-C: "
        "hornbook train ... --hosts 1:4 --meet THIS-HOST:PORT. Kept by one of those hosts, it is lost with it.",
    )
    parser.add_argument("port", nargs="?", type=int, default=USUAL_PORT, help=f"{USUAL_PORT} when not given")
    store = place_kept_at(parse(parser, words).port)
    say(f"hosts meet here: --meet {socket.gethostname()}:{store.port}")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


def place_kept_at(port: int) -> Any:
    """As long as what is returned is held."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        return TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        raise MachineError(f"port {port}: {str(error).splitlines()[0][:120]}; give another") from None


def place(meet: str) -> tuple[str, int]:
    host, colon, port = meet.rpartition(":")
    if not colon:
        return meet, USUAL_PORT
    if not port.isdigit():
        raise UserError(f"--meet: {meet} is no HOST:PORT")
    return host, int(port)


def own_address(meet: str) -> str:
    """That by which this host reaches the others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(place(meet))
        except OSError as error:
            raise UserError(f"--meet: {meet} cannot be reached ({error.strerror or error})") from None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The network interface that has it, where that can be told; none of the loopback's, which reaches nobody."""
    try:
        import fcntl  # not on Windows

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    there = fcntl.ioctl(probe, ASK_ADDRESS, struct.pack("256s", name.encode()))[20:24]
                    if socket.inet_ntoa(there) == address and not address.startswith("127."):
                        return name
    except (ImportError, OSError):
        pass
    return None


def is_this_host(meet: str) -> bool:
    """Whether the place to meet is here, and nobody keeps it yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the store does; else a port that was served a minute ago seems taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place(meet))
        except OSError:
            return False
        return True


def round_of(name: str, meet: str, before: str | None = None) -> str:
    """A name under which the hosts have not yet met and parted, since a place that is kept remembers those; the one
    from before, where it remembers that."""
    if is_this_host(meet):
        return name
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

    host, port = place(meet)
    store: Any = TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=60))
    if before is not None and C10dRendezvousBackend(store, before).get_state() is not None:
        return before
    number, tried = 0, name
    while True:
        backend = C10dRendezvousBackend(store, tried)
        if not DynamicRendezvousHandler.from_backend(tried, store, backend, 1, 1, "localhost").is_closed():
            return tried
        number += 1
        tried = f"{name}-{number}"
