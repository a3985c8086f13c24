"""Files of data sets and models on the Hugging Face hub come into the cache.

In: a data set or a model, its revision, and the path of a file in it.  Out: the file in its place, proven as
base/download.py proves any. The hub's library knows the mirror and the token. The rest is ours: the library begins a
file anew that was killed on its way, compares sizes only, and asks its server for other things too.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any, Literal

from hornbook.base import download
from hornbook.base.console import Progress
from hornbook.base.download import Redirects, fetch, in_words, is_there, place
from hornbook.base.errors import MachineError, UserError

LARGEST_LISTING = 64 << 20
Kind = Literal["dataset", "model"]


class AbsentError(UserError):
    """The hub has no such file, or does not show it to everybody."""


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
    kind: Kind = "dataset",
    otherwise: str = "train on text that is here: --data PATH",
) -> Path:
    """A file of a data set or model on the Hugging Face hub, or on the mirror that HF_ENDPOINT names, with the token
    that its users have. Where no sha256 is known, the hub's own for that revision counts."""
    final = place(folder, name)
    if is_there(final, size):
        return final
    url, headers = _address(repository, revision, path, kind)
    if sha256 is None:
        told = _told_by_hub(url, headers, otherwise)
        tag = (told.get("X-Linked-Etag") or told.get("ETag") or "").removeprefix("W/").strip('"')
        length = told.get("X-Linked-Size") or told.get("Content-Length") or ""
        sha256 = tag if re.fullmatch("[0-9a-f]{64}", tag) else None
        size = int(length) if size is None and length.isdecimal() else size
        if sha256 is None and size is None:
            raise MachineError(
                f"{url}: neither checksum nor size is told there; try without the mirror: unset HF_ENDPOINT"
            )
    return fetch(url, folder, name, sha256=sha256, size=size, headers=headers, progress=progress, otherwise=otherwise)


def commit_of(repository: str, revision: str, path: str, otherwise: str) -> str:
    """The commit that a branch or tag of a model is at now, as the hub tells it of a file there."""
    url, headers = _address(repository, revision, path, "model")
    commit: str = _told_by_hub(url, headers, otherwise).get("X-Repo-Commit", "")
    if not is_commit(commit):
        raise MachineError(f"{url}: no commit is told there; name one, {repository}@COMMIT, or unset HF_ENDPOINT")
    return commit


def listed_on_hub(repository: str, revision: str) -> dict[str, Any]:
    """Of a data set at a revision: its commit, its files with their sizes, and what its card says of them."""
    endpoint, headers = _endpoint_and_token(repository)
    quoted = urllib.parse.quote(revision, safe="")
    url = f"{endpoint}/api/datasets/{repository}/revision/{quoted}?blobs=true"
    request = urllib.request.Request(url, headers={"User-Agent": "hornbook", **headers})
    with _answered(request, "train on text that is here: --data PATH") as response:
        try:
            data = response.read(LARGEST_LISTING + 1)
            told: Any = json.loads(data) if len(data) <= LARGEST_LISTING else None
            card = told.get("cardData") or {}
            listed = {
                "commit": told["sha"],
                "licence": card.get("license"),
                "configs": card.get("configs"),
                "files": [_listed(each) for each in told["siblings"]],
            }
        except (KeyError, TypeError, ValueError, AttributeError, OSError, http.client.HTTPException):
            listed = {}
    if not is_commit(str(listed.get("commit"))):
        raise MachineError(f"{url}: no list of its files is told there; try without the mirror: unset HF_ENDPOINT")
    return listed


def _listed(told: dict[str, Any]) -> dict[str, Any]:
    """Small files have no sha256 there."""
    kept = told.get("lfs") or {}
    sha256 = kept.get("sha256") or None
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(sha256)
    return {"path": str(told["rfilename"]), "bytes": int(told["size"]), "sha256": sha256}


def is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def _address(repository: str, revision: str, path: str, kind: Kind) -> tuple[str, dict[str, str]]:
    """Where a file is, and what to show for it."""
    endpoint, headers = _endpoint_and_token(path)
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, path, repo_type=kind, revision=revision, endpoint=endpoint)
    return url, headers


def _endpoint_and_token(what: str) -> tuple[str, dict[str, str]]:
    """The hub or its mirror, and what to show there; not where the hub is not to be asked."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise MachineError(f"{what}: not on this machine, and HF_HUB_OFFLINE forbids to fetch it; unset it once")
    import huggingface_hub

    token = huggingface_hub.get_token()
    endpoint = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
    return endpoint.rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}


def _told_by_hub(url: str, headers: dict[str, str], otherwise: str) -> Message:
    """Checksum, size and commit of a file, from the hub's answer to a HEAD."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "hornbook", **headers})
    with _answered(request, otherwise) as response:
        told: Message = response.headers
        return told


@contextlib.contextmanager
def _answered(request: urllib.request.Request, otherwise: str) -> Iterator[Any]:
    """The hub's answer, or why there is none. One that sends on to where a file lies tells of it, too."""
    url = request.full_url
    try:
        answer = urllib.request.build_opener(Redirects()).open(request, timeout=download.STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if not error.headers.get("X-Linked-Etag"):
            error.close()
            busy = error.code >= 500 or error.code == 429
            kind = MachineError if busy else AbsentError if error.code == 404 else UserError
            raise kind(f"{url}: {error.code}; not there, or it needs an account: hf auth login, or HF_TOKEN") from None
        answer = error
    except (OSError, http.client.HTTPException, ValueError) as error:
        host, why = urllib.parse.urlsplit(url).netloc, in_words(getattr(error, "reason", error))
        raise MachineError(f"{host}: no answer ({why}); try again with a network, or {otherwise}") from None
    with answer:
        yield answer
