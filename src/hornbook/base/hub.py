"""Files of data sets and models on the Hugging Face hub come into the cache.

In: a data set or a model, its revision, and the path of a file in it.  Out: the file in its place, proven as
base/download.py proves any. The hub's library knows the mirror and the token; the transfer is ours, since it begins a
file anew that was cut off, and compares sizes only.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal

from hornbook.base import download
from hornbook.base.console import Progress
from hornbook.base.download import Redirects, fetch, in_words, is_there, place
from hornbook.base.errors import MachineError, UserError


def fetch_from_hub(
    repository: str,
    revision: str,
    path: str,
    folder: Path,
    name: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    kind: Literal["dataset", "model"] = "dataset",
    otherwise: str = "train on text that is here: --data PATH",
) -> Path:
    """A file of a data set or model on the Hugging Face hub, or on the mirror that HF_ENDPOINT names, with the token
    that its users have. Where no sha256 is known, the hub's own for that revision counts."""
    final = place(folder, name)
    if is_there(final, size):
        return final
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise MachineError(f"{path}: not on this machine, and HF_HUB_OFFLINE forbids to fetch it; unset it once")
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(
        repository, path, repo_type=kind, revision=revision, endpoint=os.environ.get("HF_ENDPOINT")
    )
    token = huggingface_hub.get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if sha256 is None:
        sha256, size = _told_by_hub(url, headers, size, otherwise)
    return fetch(url, folder, name, sha256=sha256, size=size, headers=headers, progress=progress)


class AbsentError(UserError):
    """The hub has no such file, or does not show it to everybody."""


class _UpToTheStore(Redirects):
    """Stops where the hub sends one on to the file itself, having told its checksum and size."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if headers.get("X-Linked-Etag"):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _told_by_hub(
    url: str, headers: Mapping[str, str], size: int | None, otherwise: str
) -> tuple[str | None, int | None]:
    """sha256 and size of a file as the hub has them. Asked without the hub's library, which would ask its server for
    other things too."""
    host = urllib.parse.urlsplit(url).netloc
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "hornbook", **headers})
    try:
        with urllib.request.build_opener(_UpToTheStore()).open(request, timeout=download.STALL_SECONDS) as response:
            told = response.headers
    except urllib.error.HTTPError as error:
        error.close()
        told = error.headers
        if not told.get("X-Linked-Etag"):
            busy = error.code >= 500 or error.code == 429
            kind = MachineError if busy else AbsentError if error.code == 404 else UserError
            raise kind(f"{url}: {error.code}; not there, or it needs an account: hf auth login, or HF_TOKEN") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MachineError(
            f"{host}: no answer ({in_words(getattr(error, 'reason', error))}); try again with a network, or {otherwise}"
        ) from None
    etag = (told.get("X-Linked-Etag") or told.get("ETag") or "").removeprefix("W/").strip('"')
    length = told.get("X-Linked-Size") or told.get("Content-Length") or ""
    if size is None and length.isdecimal():
        size = int(length)
    is_sha256 = len(etag) == 64 and all(letter in "0123456789abcdef" for letter in etag)
    if not is_sha256 and size is None:
        raise MachineError(f"{url}: neither checksum nor size is told there; try without the mirror: unset HF_ENDPOINT")
    return etag if is_sha256 else None, size
