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
LOCALHOST = "127.0.0.1"
ANYWHERE = "192.0.2.1"  # of no host, but on the way to most
SECONDS_TO_FIND, SECONDS_TO_ANSWER, SECONDS_TO_MEET = 10, 60, 900


def meet(words: list[str]) -> int:
    parser = parser_of(
        "meet",
        "Keep the place where the hosts of a run find one another, until Ctrl-C: "
        "hornbook train ... --hosts 1:4 --meet THIS-HOST:PORT. Kept by one of those hosts, it is lost with it. It asks "
        "nobody who he is: for a network that you trust, by one address of this host if it has others, too.",
    )
    parser.add_argument("at", nargs="?", default=str(USUAL_PORT), metavar="[ADDRESS:]PORT", help="29400 when not given")
    at = parse(parser, words).at
    host, port = place(at) if ":" in at else ("", _port(at, at))
    store = place_kept_at(host, port)
    say(f"hosts meet here: --meet {host or socket.gethostname()}:{store.port}")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


def place_kept_at(host: str, port: int) -> Any:
    """As long as what is returned is held; by that address of this host alone, by all of them where none is given."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        address = socket.gethostbyname(host) if host else host
        # Its own name, which on many a host is 127.0.1.1 to itself, and nowhere else.
        server = socket.create_server(("" if _is_loopback(address) and not _is_loopback(host) else address, port))
    except OSError as error:
        raise MachineError(f"{host}:{port}: {error.strerror or error}; give another") from None
    with server:
        port = server.getsockname()[1]
        here = address or LOCALHOST
        return TCPStore(here, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


def place_found_at(host: str, port: int) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:  # PyTorch would try for longer, and tell of it
        socket.create_connection((host, port), SECONDS_TO_FIND).close()
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from None
    return TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=SECONDS_TO_ANSWER))


def place(meet: str) -> tuple[str, int]:
    host, colon, port = meet.rpartition(":")
    return (host, _port(port, meet)) if colon else (meet, USUAL_PORT)


def _port(port: str, meet: str) -> int:
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise UserError(f"{meet}: {port} is no number of a port; give HOST:PORT, such as node-0:{USUAL_PORT}")
    return int(port)


def own_address(meet: str) -> str:
    """That by which this host reaches the others."""
    host, port = place(meet)
    try:
        address = _reached_from(host, port)
    except OSError as error:  # a name that is not known yet, or no link
        raise ConnectionError(error.strerror or str(error)) from None
    if _is_loopback(address) and not _is_loopback(host):  # this is the host that is named, see above
        with contextlib.suppress(OSError):
            return _reached_from(ANYWHERE, port)
    return address


def _reached_from(host: str, port: int) -> str:
    """Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def interface_of(address: str) -> str | None:
    """The network interface that has it, where that can be told."""
    try:
        import fcntl  # not on Windows

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    there = fcntl.ioctl(probe, ASK_ADDRESS, struct.pack("256s", name.encode()))[20:24]
                    if socket.inet_ntoa(there) == address:
                        return name
    except (ImportError, OSError):
        pass
    return None
