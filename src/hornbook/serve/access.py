"""Who may ask, and how much.

In: every request before it comes to a route.  Out: the same with its whole body at hand; or 401, 403, 408 or 413.
A page of another site cannot ask: by Host (its name may lead here), by Origin, and by a cookie that is sent to our own
pages alone.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from fastapi.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hornbook.serve.connection import Connections
from hornbook.serve.refusals import KEY_WANTED, ApiError
from hornbook.serve.tally import Counts

OPEN = {"/health"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0
LINGER_BYTES = 16 << 20
LINGER_SECONDS = 2.0
HEADERS = {
    b"content-security-policy": b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


class Guard:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        tally: Counts,
        connections: Connections,
        key: str | None,
        names: Iterable[str] = (),
    ) -> None:
        self.app, self.tally, self.connections = app, tally, connections
        self.names = LOOPBACK | {host.lower(), *(name.lower() for name in names)}
        address = _address(host)
        self.is_everywhere = address is not None and address.is_unspecified
        if self.is_everywhere:
            self.names.add(socket.gethostname().lower())
        self.key = None if key is None else key.encode()
        # Not the key itself: who reads a browser's cookies has no key for other programs.
        self.pass_value = "" if key is None else hmac.digest(key.encode(), b"hornbook page", "sha256").hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.connections.work(scope["client"])
        try:
            await self._answer(scope, receive, self._counting(send))
        finally:
            self.connections.rest(scope["client"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            entry = self._let_in(scope)
            body = b"" if entry else await self._body(scope, receive)
        except ApiError as error:
            entry = error.response()
        if entry is not None:
            await entry(scope, receive, send)
        else:
            await self.app(scope, _first(body, receive), send)

    def _counting(self, send: Send) -> Send:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.tally.answer(message["status"])
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in HEADERS.items() if each[0] not in there)]
            await send(message)

        return counting

    def _let_in(self, scope: Scope) -> Response | None:
        """Nothing, where the request may go on; a redirection, where a browser came with the key; or an error."""
        headers: dict[bytes, bytes] = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            name = _name_of(host)[:80]
            raise ApiError(403, f"this server does not go by the name {name!r}; start it with --name {name or 'NAME'}")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise ApiError(403, "asked by a page of another site")
        if self.key is None or scope["path"] in OPEN:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[-1] if scope["path"] == "/" else ""
        if given and hmac.compare_digest(given.encode(), self.key):
            entry = RedirectResponse("/", 303)
            entry.set_cookie(self._cookie(scope), self.pass_value, httponly=True, samesite="strict")
            return entry
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        bears = kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.key)
        if not bears and not self._has_pass(headers.get(b"cookie", b""), scope):
            raise ApiError(401, KEY_WANTED, code="invalid_api_key")
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        return name in self.names or (self.is_everywhere and _address(name) is not None)

    def _cookie(self, scope: Scope) -> str:
        """Cookies of one host are shared by all its ports."""
        return f"hornbook-{scope['server'][1]}"

    def _has_pass(self, cookie: bytes, scope: Scope) -> bool:
        try:
            found = SimpleCookie(cookie.decode("latin-1")).get(self._cookie(scope))
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.pass_value.encode())

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        body, more = bytearray(), True
        try:
            if int(headers.get(b"content-length", b"0")) > BODY_BYTES:
                if b"expect" not in headers:
                    await _linger(receive)
                raise _too_large()
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client left before its body was whole")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > BODY_BYTES:
                        await _linger(receive)
                        raise _too_large()
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {BODY_SECONDS:g} seconds") from None
        return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, f"a body of more than {BODY_BYTES:,} bytes, which this server takes at most")


async def _linger(receive: Receive) -> None:
    """Take in what is being sent: a client that is cut off while it sends never reads why."""
    taken = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while taken < LINGER_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _first(body: bytes, receive: Receive) -> Receive:
    """The body at once, and then what else comes: that the client has left."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def first() -> Message:
        return waiting.pop() if waiting else await receive()

    return first


def _name_of(host: str) -> str:
    """Without its port, and without the brackets of an IPv6 address."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
