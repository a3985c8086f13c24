"""Connections that do not wait for ever.

In: uvicorn's protocol, and when an application begins and ends with a request.  Out: a limit to how long a client may
take for a request's headers, how long it may take nothing of its answer, and how many connections there are; uvicorn
has none of these. Of uvicorn, only what asyncio calls and what ASGI tells is used.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
READER_SECONDS = 30.0
MOST = 512

Address = tuple[str, int]


class Connections:
    """Those of one server, by their clients' addresses."""

    def __init__(self) -> None:
        self._open: dict[Address, asyncio.Transport] = {}
        self._resting: dict[Address, asyncio.TimerHandle] = {}  # with no request under way, the longest first

    def begin(self, client: Address, transport: asyncio.Transport) -> None:
        self._open[client] = transport
        self.rest(client)
        if len(self._open) > MOST:
            longest = next(iter(self._resting))
            self._open[longest].abort()
            self.end(longest)

    def rest(self, client: Address) -> None:
        """It owes the headers of its next request. Also of one that was answered before its body had come: what still
        comes of that keeps nothing open."""
        if client in self._open:
            self.work(client)
            loop = asyncio.get_running_loop()
            self._resting[client] = loop.call_later(HEADER_SECONDS, self._open[client].abort)

    def work(self, client: Address) -> None:
        """Its request's headers are there."""
        if (waiting := self._resting.pop(client, None)) is not None:
            waiting.cancel()

    def end(self, client: Address) -> None:
        self.work(client)
        self._open.pop(client, None)


def protocol_of(connections: Connections) -> type[asyncio.Protocol]:
    class Connection(H11Protocol):
        _address: Address
        _out: asyncio.Transport
        _reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            host, port, *_ = transport.get_extra_info("peername") or ("", id(self))  # or it has left already
            self._out, self._address = transport, (host, port)
            transport.set_write_buffer_limits(high=0)  # so that pause_writing tells of every byte not taken
            connections.begin(self._address, transport)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.end(self._address)
            self._has_read()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reader()

        def resume_writing(self) -> None:
            self._has_read()
            super().resume_writing()

        def _watch_reader(self, unread: float = float("inf")) -> None:
            now = self._out.get_write_buffer_size()
            if now >= unread:
                self._out.abort()
            else:
                self._reader = asyncio.get_running_loop().call_later(READER_SECONDS, self._watch_reader, now)

        def _has_read(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

    return Connection
