"""Connections that do not wait for ever.

In: uvicorn's protocol.  Out: one with a limit to how long a request's headers may take, how long a client may take
nothing of its answer, and how many connections there are; uvicorn has none of these.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hornbook.serve.config import ServeConfig


def connections_within(config: ServeConfig) -> type[H11Protocol]:
    """The protocol of one server."""
    silent: dict[H11Protocol, None] = {}  # those that have no whole request under way, the oldest first

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _reader: asyncio.TimerHandle | None = None
        _unread = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # so that pause_writing tells of every byte not taken
            self._await_headers()
            if len(self.connections) > config.connections and silent:
                next(iter(silent)).transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._have_headers()
            elif self._deadline is None:
                self._await_headers()
            if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
                silent.pop(self, None)

        def on_response_complete(self) -> None:
            unread = self.conn.their_state is h11.SEND_BODY
            super().on_response_complete()
            silent[self] = None
            if unread:  # answered before its body came: what still comes of it keeps nothing open
                self.loop.call_later(config.header_seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._have_headers()
            silent.pop(self, None)
            self._stop_watching()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reader()

        def resume_writing(self) -> None:
            self._stop_watching()
            super().resume_writing()

        def _await_headers(self) -> None:
            silent[self] = None
            self._deadline = self.loop.call_later(config.header_seconds, self.transport.abort)

        def _have_headers(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _watch_reader(self) -> None:
            self._unread = self.transport.get_write_buffer_size()
            self._reader = self.loop.call_later(config.reader_seconds, self._give_up_reader)

        def _give_up_reader(self) -> None:
            if self.transport.get_write_buffer_size() >= self._unread:
                self.transport.abort()
            else:
                self._watch_reader()

        def _stop_watching(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

    return Connection
