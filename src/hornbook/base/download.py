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
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import Request

from hornbook.base import files, ours
from hornbook.base.console import Progress, count, duration
from hornbook.base.errors import MachineError, UserError
from hornbook.base.room import LARGER_DISK, Room
from hornbook.base.unfinished import AGAIN, turn_at

STALL_SECONDS = 30.0
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
            with files.disk_trouble_named(final, AGAIN):
                _Transfer(url, final, sha256, size, check, headers or {}, progress, otherwise).run()
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
    final: Path
    sha256: str | None
    size: int | None
    check: Callable[[Path], str | None] | None
    headers: Mapping[str, str]
    progress: Progress
    otherwise: str
    received: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def partial(self) -> Path:
        """What has come of it, until all of it is there and proven."""
        return self.final.with_name(ours.hidden(ours.PARTIAL, self.final.name))

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc.rpartition("@")[2]

    def run(self) -> None:
        name, fruitless, restarts = self.final.name, 0, 0
        while True:
            before = self._kept_bytes()
            try:
                self._receive(before)
                self._prove()
                break
            except _WrongFileError as error:
                files.remove(self.partial)
                restarts += 1
                if restarts >= RESTARTS:
                    raise MachineError(
                        f"{name}: {self.host} does not send the right file ({error}); "
                        "none of it was kept; try again later"
                    ) from None
                _pause(0.1)
            except _CutError as error:
                kept = self._kept_bytes()
                worthwhile = kept - before >= min(WORTHWHILE_BYTES, (self.size or 1 << 30) // 100 + 1)
                fruitless = 0 if worthwhile else fruitless + 1
                if fruitless >= ATTEMPTS or (error.hopeless and not self.received):
                    told = f"{count(kept)} bytes are kept; " if kept else ""
                    raise MachineError(
                        f"{name}: cannot be fetched from {self.host} ({error}); {told}"
                        f"try again with a network, or {self.otherwise}"
                    ) from None
                self.progress.update(f"fetching {name}: {error}; trying again")
                _pause(min(0.25 * 2**fruitless if error.wait is None else error.wait, LONGEST_PAUSE_SECONDS))
        files.sync_file(self.partial)
        files.rename(self.partial, self.final)
        files.sync_folder(self.final.parent)

    def _kept_bytes(self) -> int:
        """How many bytes of earlier tries there are to go on from. Without a hash nothing would prove that the pieces
        belong together."""
        have = self.partial.stat().st_size if self.partial.is_file() else 0
        if have and (self.sha256 is None or (self.size is not None and have > self.size)):
            files.remove(self.partial)
            return 0
        return have

    def _receive(self, have: int) -> None:
        """All that is missing, in one connection."""
        if have and have == self.size:
            return
        # Not compressed on the way: ranges and sizes are those of the file itself.
        headers = {"User-Agent": "hornbook", **self.headers, "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        request = Request(self.url, headers=headers)
        try:
            response = urllib.request.build_opener(Redirects()).open(request, timeout=STALL_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            raise _refusal(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            hopeless = isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError, ConnectionRefusedError))
            raise _CutError(in_words(reason), hopeless) from None
        with response:
            length = response.headers.get("Content-Length", "")
            if response.status == 206:
                span, _, length = response.headers.get("Content-Range", "").partition("/")
                if not have or not span.startswith(f"bytes {have}-"):
                    raise _WrongFileError("it answers with other bytes than were asked for")
            elif response.status == 200:
                have = 0
            else:
                raise _WrongFileError(f"status {response.status}")
            total = int(length) if length.isdecimal() else None
            if None not in (total, self.size) and total != self.size:
                raise _WrongFileError(f"{total:,} bytes are announced instead of {self.size:,}")
            self._store(response, have, total if total is not None else self.size)

    def _store(self, response: Any, have: int, total: int | None) -> None:
        Room(self.final.parent).ask((total or 0) - have, self.final.name, LARGER_DISK)
        most = MOST_BYTES_UNANNOUNCED if total is None else total
        with files.open_to_write(self.partial, "ab" if have else "wb", buffering=0) as file:
            while True:
                try:
                    piece = response.read1(PIECE_BYTES)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise _CutError(in_words(error)) from None
                if not piece:
                    break
                if have + len(piece) > most:
                    raise _WrongFileError(f"more than {most:,} bytes")
                files.append(file, self.partial, piece)
                have += len(piece)
                self.received += len(piece)
                self._show(have, total)
        if total is not None and have < total:
            raise _CutError(f"the connection ended after {have:,} of {total:,} bytes")

    def _show(self, have: int, total: int | None) -> None:
        rate = self.received / max(time.monotonic() - self.began, 1e-3)
        of = f"{have / total:.0%} of {count(float(total))}" if total else count(float(have))
        left = f", {duration((total - have) / rate)} left" if total else ""
        self.progress.update(f"fetching {self.final.name}: {of} bytes, {count(rate)}/s{left}")

    def _prove(self) -> None:
        have = self.partial.stat().st_size
        if self.size is not None and have != self.size:
            raise _WrongFileError(f"{have:,} bytes instead of {self.size:,}")
        if self.sha256 is not None:
            self.progress.update(f"fetching {self.final.name}: comparing the checksum")
            found = files.sha256(self.partial)
            if found != self.sha256:
                raise _WrongFileError(f"sha256 {found[:8]}... instead of {self.sha256[:8]}...")
        wrong = self.check(self.partial) if self.check else None
        if wrong:
            raise _WrongFileError(wrong)


def _refusal(error: urllib.error.HTTPError) -> Exception:
    """What an answer without the file means."""
    code, wait = error.code, error.headers.get("Retry-After", "")
    if code == 416:
        return _WrongFileError("the rest that is asked for does not exist")
    if code in (408, 425, 429) or code >= 500:
        return _CutError(f"{code} {error.reason}", wait=float(wait) if wait.isdecimal() else None)
    if 300 <= code < 400:
        return UserError(f"{error.url}: redirects that lead nowhere ({code})")
    if code in (401, 403):
        return UserError(f"{error.url}: {code} {error.reason}; it may need an account: hf auth login, or HF_TOKEN")
    return UserError(f"{error.url}: {code} {error.reason}; nothing to fetch there")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where http and https lead; a token goes to the host that it was meant for, and to no other."""

    max_redirections = MOST_REDIRECTS

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if req.get_method() == "HEAD" and headers.get("X-Linked-Etag"):
            return None  # the hub has told what the file is, and sends one on to where it lies
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise UserError(f"{req.full_url}: redirects to {newurl[:60]}, which is not followed")
        fp.close()  # or its body would be read to the end, however long
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()  # or Python 3.11 would ask for what was only asked about
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                request.remove_header("Authorization")
        return request


def in_words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {STALL_SECONDS:.0f} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _pause(seconds: float) -> None:
    time.sleep(seconds)
