"""Files come from the network into the cache.

In: an address, a place in a folder, and what is known beforehand of the file: its sha256, its size, how it looks.
Out: the file in its place, proven to be the right one. Until then its bytes have a name of their own, under which a
later process goes on where this one stopped. One process at a time fetches a file; the others wait for it.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hornbook.base import files
from hornbook.base.console import Progress, count, duration
from hornbook.base.errors import MachineError, UserError
from hornbook.base.unfinished import Partial, turn_at

STALL_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 100
ATTEMPTS = 5  # in a row that bring next to nothing
RESTARTS = 3  # from the first byte, because what came was not the file
LONGEST_PAUSE_SECONDS = 60.0
PIECE_BYTES = 1 << 18
WORTHWHILE_BYTES = 1 << 16
MOST_BYTES_UNANNOUNCED = 1 << 30
MOST_REDIRECTS = 8


def fetch(
    url: str,
    folder: Path,
    name: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    check: Callable[[Path], str | None] | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    otherwise: str = "train on text that is here: --data PATH",
) -> Path:
    """The file at `url` as `folder`/`name`. It is proven by its sha256, else by its size, or by `check`, which says
    what is wrong with it. A file that is there is not fetched again. `otherwise` is a way without a network."""
    if sha256 is None and size is None and check is None:
        raise ValueError(f"{url}: nothing is known by which the file could be told from another")
    final = place(folder, name)
    partial = Partial(final)
    progress = progress or Progress(live=False)
    if is_there(final, size):
        return final
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses are fetched")
    files.make_folder(final.parent)
    with turn_at(final, lambda: progress.note(f"{name}: another process is fetching it; waiting for that")):
        if not is_there(final, size):
            if os.path.lexists(final):  # none of ours, which had its size proven; or the disk has damaged it
                files.set_aside(final, "is not the file that is fetched by this name")
            _Transfer(url, partial, sha256, size, check, dict(headers or {}), progress, otherwise).run()
    return final


def place(folder: Path, name: str) -> Path:
    """`folder`/`name`, where the name stays inside the folder."""
    parts = PurePosixPath(name).parts
    outside = not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]
    if outside or not name.isprintable() or parts[-1].startswith("."):
        raise UserError(f"{name!r}: not a name for a file below {folder}; it must not lead out of there")
    return folder.joinpath(*parts)


def is_there(final: Path, size: int | None) -> bool:
    """Whether a file was fetched before; its bytes were proven when it got its name."""
    return final.is_file() and (size is None or final.stat().st_size == size)


class _CutError(Exception):
    """The connection failed; a new one may go on."""

    def __init__(self, why: str, hopeless: bool = False, wait: float | None = None) -> None:
        super().__init__(why)
        self.hopeless = hopeless
        self.wait = wait


class _WrongFileError(Exception):
    """What came cannot be, or cannot become, the file; only the first byte is a place to begin again."""


@dataclass
class _Transfer:
    url: str
    partial: Partial
    sha256: str | None
    size: int | None
    check: Callable[[Path], str | None] | None
    headers: dict[str, str]
    progress: Progress
    otherwise: str
    ranges_work: bool = True
    received: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return self.partial.final.name

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc.rpartition("@")[2]

    def run(self) -> None:
        fruitless = restarts = 0
        while True:
            before = self.partial.size()
            try:
                self._receive()
                self._prove()
                break
            except _WrongFileError as error:
                self.partial.discard()
                restarts += 1
                if restarts >= RESTARTS:
                    raise MachineError(
                        f"{self.name}: {self.host} does not send the right file ({error}); "
                        "none of it was kept; try again later"
                    ) from None
                _pause(0.1)
            except _CutError as error:
                gained = self.partial.size() - before
                worthwhile = self.sha256 is not None and gained >= min(WORTHWHILE_BYTES, (self.size or 1 << 30) // 100)
                fruitless = 0 if worthwhile else fruitless + 1
                if fruitless >= ATTEMPTS or (error.hopeless and not self.received):
                    kept = f"{count(self.partial.size())} bytes are kept; " if self.partial.size() else ""
                    raise MachineError(
                        f"{self.name}: cannot be fetched from {self.host} ({error}); {kept}"
                        f"try again with a network, or {self.otherwise}"
                    ) from None
                pause = 0.25 * 2**fruitless if error.wait is None else error.wait
                self.progress.update(f"fetching {self.name}: {error}; trying again")
                _pause(min(pause, LONGEST_PAUSE_SECONDS))
        self.partial.finish()

    def _receive(self) -> None:
        """All that is missing, in one connection."""
        have = self._kept_bytes()
        if have and have == self.size:
            return
        request = urllib.request.Request(self.url, headers=self._request_headers(have))
        try:
            response = urllib.request.build_opener(Redirects()).open(request, timeout=STALL_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            self._refused(error, have)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            hopeless = isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError, ConnectionRefusedError))
            raise _CutError(in_words(reason), hopeless) from None
        with response:
            have, total = self._begin(response, have)
            self._store(response, have, total)

    def _kept_bytes(self) -> int:
        """How many bytes of earlier tries are worth going on from. Without a hash nothing would prove that the pieces
        belong together."""
        have = self.partial.size()
        if have and have == self.size and self.sha256:
            return have
        notes = self.partial.notes() if have else {}
        fits = notes.get("sha256") == self.sha256 and (self.size is None or have < self.size)
        if have and not (self.sha256 and self.ranges_work and fits):
            self.partial.discard()
            return 0
        return have

    def _request_headers(self, have: int) -> dict[str, str]:
        # Not compressed on the way: ranges and sizes are those of the file itself.
        headers = {"User-Agent": "hornbook"} | self.headers | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            notes = self.partial.notes()
            if notes.get("validator") and notes.get("url") == self.url:
                headers["If-Range"] = notes["validator"]
        return headers

    def _refused(self, error: urllib.error.HTTPError, have: int) -> None:
        """An answer without the file; returns where that means that all of it is here."""
        code = error.code
        if code == 416 and have:
            if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                return
            self.ranges_work = False
            raise _WrongFileError("the rest that is asked for does not exist")
        if code in (408, 425, 429) or code >= 500:
            wait = error.headers.get("Retry-After", "")
            raise _CutError(f"{code} {error.reason}", wait=float(wait) if wait.isdecimal() else None)
        if 300 <= code < 400:
            raise UserError(f"{self.url}: redirects that lead nowhere ({code})")
        if code in (401, 403):
            raise UserError(f"{self.url}: {code} {error.reason}; it may need an account: hf auth login, or HF_TOKEN")
        raise UserError(f"{self.url}: {code} {error.reason}; nothing to fetch there")

    def _begin(self, response: Any, have: int) -> tuple[int, int | None]:
        """Where the answer's bytes belong, and how long the file will be."""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        validator = _validator(response.headers)
        if response.status == 206:
            start, whole = _content_range(response.headers.get("Content-Range", ""))
            known = self.partial.notes().get("validator")
            if not have or start != have or (known and validator and known != validator):
                self.ranges_work = start == have  # else it does not keep to what is asked of it
                raise _WrongFileError("it answers with other bytes than were asked for")
            total = whole if whole is not None else (have + total if total is not None else None)
        elif response.status == 200:
            notes = {"url": self.url, "sha256": self.sha256, "validator": validator}
            self.partial.begin(notes)
            have = 0
        else:
            raise _WrongFileError(f"status {response.status}")
        if None not in (total, self.size) and total != self.size:
            raise _WrongFileError(f"{total:,} bytes are announced instead of {self.size:,}")
        missing = (total or self.size or 0) - have
        free = files.free_bytes(self.partial.final.parent)
        if missing > free:
            raise MachineError(
                f"{self.name}: {count(float(missing))} bytes to fetch and {count(float(free))} free; "
                "make room, or set HORNBOOK_HOME to a folder on a larger disk"
            )
        return have, total if total is not None else self.size

    def _store(self, response: Any, have: int, total: int | None) -> None:
        most = MOST_BYTES_UNANNOUNCED if total is None else total
        window_began, window_bytes = time.monotonic(), 0
        with self.partial.appending() as append:
            while True:
                try:
                    piece = response.read1(PIECE_BYTES)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise _CutError(in_words(error)) from None
                if not piece:
                    break
                if have + len(piece) > most:
                    raise _WrongFileError(f"more than {most:,} bytes")
                append(piece)
                have += len(piece)
                self.received += len(piece)
                self._show(have, total)
                window_bytes += len(piece)
                seconds = time.monotonic() - window_began
                if seconds > STALL_SECONDS:
                    if window_bytes < LEAST_BYTES_PER_SECOND * seconds:
                        raise _CutError("it sends next to nothing")
                    window_began, window_bytes = time.monotonic(), 0
        if total is not None and have < total:
            raise _CutError(f"the connection ended after {have:,} of {total:,} bytes")

    def _show(self, have: int, total: int | None) -> None:
        rate = self.received / max(time.monotonic() - self.began, 1e-3)
        of = f"{have / total:.0%} of {count(float(total))}" if total else count(float(have))
        left = f", {duration((total - have) / rate)} left" if total else ""
        self.progress.update(f"fetching {self.name}: {of} bytes, {count(rate)}/s{left}")

    def _prove(self) -> None:
        have = self.partial.size()
        if self.size is not None and have != self.size:
            raise _WrongFileError(f"{have:,} bytes instead of {self.size:,}")
        if self.sha256 is not None:
            self.progress.update(f"fetching {self.name}: comparing the checksum")
            found = files.sha256(self.partial.path)
            if found != self.sha256:
                raise _WrongFileError(f"sha256 {found[:8]}... instead of {self.sha256[:8]}...")
        wrong = self.check(self.partial.path) if self.check else None
        if wrong:
            raise _WrongFileError(wrong)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where http and https lead; a token goes to the host that it was meant for, and to no other."""

    max_redirections = MOST_REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise UserError(f"{req.full_url}: redirects to {newurl[:60]}, which is not followed")
        fp.close()  # or its body would be read to the end, however long
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


def _validator(headers: Message) -> str | None:
    """What says that the file is still the same: a strong entity tag, or a date."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _content_range(text: str) -> tuple[int | None, int | None]:
    """`bytes 5-9/10` to (5, 10)."""
    unit, _, rest = text.partition(" ")
    span, _, whole = rest.partition("/")
    start = span.partition("-")[0]
    if unit.lower() != "bytes" or not start.isdecimal():
        return None, None
    return int(start), int(whole) if whole.isdecimal() else None


def in_words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {STALL_SECONDS:.0f} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _pause(seconds: float) -> None:
    time.sleep(seconds)
