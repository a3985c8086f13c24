"""A web server on loopback that behaves as badly as it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Trick = Callable[["Handler", bytes], None]
ENDLESS = 256 << 20  # bytes: far more than sockets hold, so that a client took them who sends so many


class Server(ThreadingHTTPServer):
    """Serves `contents`, path to bytes. Each request takes the next of `tricks`; without one, the answer is honest."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.tricks: list[Trick] = []
        self.asked: list[Asked] = []
        self.heads: dict[str, dict[str, str]] = {}
        """What HEAD answers, with status 302, as the hub does for a large file."""
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what the tests are about."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    sent: int = field(default=0)


class Handler(BaseHTTPRequestHandler):
    server: Server
    asked: Asked

    def do_GET(self) -> None:
        self.close_connection = True
        self.asked = Asked(self.path, {key.lower(): value for key, value in self.headers.items()})
        with self.server.lock:
            self.server.asked.append(self.asked)
            trick = self.server.tricks.pop(0) if self.server.tricks else honest
        body = self.server.contents.get(self.path)
        if body is None:
            self.send_error(404)
        else:
            trick(self, body)

    def do_HEAD(self) -> None:
        self.close_connection = True
        self.server.asked.append(Asked(f"HEAD {self.path}", {k.lower(): v for k, v in self.headers.items()}))
        if self.path in self.server.heads:
            self.send_response(302)
            for key, value in self.server.heads[self.path].items():
                self.send_header(key, value)
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass

    def head(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.asked.sent += len(data)  # first: who has the last byte may look at the sum at once
        self.wfile.write(data)

    def start_asked_for(self) -> int:
        text = self.asked.headers.get("range", "")
        return int(text.removeprefix("bytes=").removesuffix("-")) if text else 0


def honest(at: Handler, body: bytes) -> None:
    answer(at, body, body)


def answer(at: Handler, body: bytes, sent: bytes, most: int | None = None) -> None:
    """What an honest server would say of `body`, and at most `most` bytes of `sent`."""
    start = at.start_asked_for()
    if start >= len(body) > 0 and start:
        at.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
        return
    rest = sent[start:]
    if start:
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        at.head(206, Content_Range=span, Content_Length=len(body) - start)
    else:
        at.head(200, Content_Length=len(body))
    at.send(rest if most is None else rest[:most])


def cut_after(count: int) -> Trick:
    return lambda at, body: answer(at, body, body, count)


def stall_after(count: int, seconds: float = 30.0) -> Trick:
    def trick(at: Handler, body: bytes) -> None:
        answer(at, body, body, count)
        at.wfile.flush()
        at.server.closing.wait(seconds)

    return trick


def trickle(piece: int, every_seconds: float) -> Trick:
    def trick(at: Handler, body: bytes) -> None:
        at.head(200, Content_Length=len(body))
        for start in range(0, len(body), piece):
            at.send(body[start : start + piece])
            if at.server.closing.wait(every_seconds):
                return

    return trick


def wrong_bytes(at: Handler, body: bytes) -> None:
    answer(at, body, bytes(byte ^ 0x20 for byte in body))


def range_of_another_place(at: Handler, body: bytes) -> None:
    start = at.start_asked_for()
    other = max(start - 7, 0)
    span = f"bytes {other}-{len(body) - 1}/{len(body)}"
    at.head(206, Content_Range=span, Content_Length=len(body) - other)
    at.send(body[other:])


def range_that_is_not_what_it_says(at: Handler, body: bytes) -> None:
    """The right label, and the file's first bytes again."""
    start = at.start_asked_for()
    if start:
        at.head(206, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", Content_Length=len(body) - start)
        at.send(body[: len(body) - start])
    else:
        honest(at, body)


def range_without_a_label(at: Handler, body: bytes) -> None:
    at.head(206, Content_Length=len(body) - at.start_asked_for())
    at.send(body[at.start_asked_for() :])


def range_ignored(at: Handler, body: bytes) -> None:
    at.head(200, Content_Length=len(body))
    at.send(body)


def range_refused(at: Handler, body: bytes) -> None:
    at.head(416, Content_Range=f"bytes */{len(body) + 3}", Content_Length=0)


def another_file(at: Handler, body: bytes) -> None:
    """The file changed since the last request: other bytes, another length and tag."""
    other = body[::-1] + b"!"
    answer(at, other, other)


def another_file_of_the_size(at: Handler, body: bytes) -> None:
    answer(at, body[::-1], body[::-1])


def no_length(at: Handler, body: bytes) -> None:
    at.head(200)
    at.send(body)


def no_length_cut(at: Handler, body: bytes) -> None:
    at.head(200)
    at.send(body[: len(body) // 2])


def chunked_cut(at: Handler, body: bytes) -> None:
    at.protocol_version = "HTTP/1.1"
    at.head(200, Transfer_Encoding="chunked")
    half = body[: len(body) // 2]
    at.wfile.write(b"%x\r\n" % len(half))
    at.send(half)
    at.wfile.write(b"\r\nzzz")


def more_than_announced(at: Handler, body: bytes) -> None:
    at.head(200)
    at.send(body + b"and more" * 100)


def less_than_announced(at: Handler, body: bytes) -> None:
    at.head(200, Content_Length=len(body) + 1000)
    at.send(body)


def another_length(at: Handler, body: bytes) -> None:
    at.head(200, Content_Length=len(body) // 2)
    at.send(body[: len(body) // 2])


def nothing_said(at: Handler, body: bytes) -> None:
    """The connection ends before an answer."""


def not_http(at: Handler, body: bytes) -> None:
    at.wfile.write(b"\x00\xff garbage" * 10)


def busy(at: Handler, body: bytes) -> None:
    at.head(503, Retry_After=0, Content_Length=0)


def empty(at: Handler, body: bytes) -> None:
    at.head(200, Content_Length=0)


def redirect_to(target: str) -> Trick:
    return lambda at, body: at.head(302, Location=target, Content_Length=0)


def redirect_with_endless_body(target: str) -> Trick:
    def trick(at: Handler, body: bytes) -> None:
        at.head(302, Location=target)
        while at.asked.sent < ENDLESS:
            at.send(b"x" * 65536)

    return trick
