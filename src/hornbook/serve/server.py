"""A server, from its first line to its last.

In: models, an address, limits.  Out: requests answered until a signal says to stop; then no new ones are taken, what
runs has a while to finish, and a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn

from hornbook.base.console import note, say
from hornbook.base.errors import UserError
from hornbook.base.machine import BY_HAND, signals_to_end
from hornbook.base.output import settle
from hornbook.base.process import garbage_sought_among_new_objects
from hornbook.infer.speaker import Speaker, machine_to_speak
from hornbook.serve.access import Guard, is_loopback
from hornbook.serve.app import build_app
from hornbook.serve.config import ServeConfig
from hornbook.serve.connection import Connections, protocol_of
from hornbook.serve.models import Models
from hornbook.serve.tally import Counts

LARGEST_PORT = 65_535
ENDING_SECONDS = 30.0
LAST_STEP_SECONDS = 5.0
LOOK_EVERY_SECONDS = 0.05
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")


class Server(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, models: Models) -> None:
        super().__init__(settings)
        self.models = models
        self.threads_are_gone = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig not in BY_HAND:
            return
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but what was asked for by a signal and done is no failure."""
        if threading.current_thread() is not threading.main_thread():  # where signals never come
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in signals_to_end()}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.models.close()
        loop = asyncio.get_running_loop()
        last = loop.time() + ENDING_SECONDS
        while self.server_state.tasks and loop.time() < last and not self.force_exit:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        self.threads_are_gone = await asyncio.to_thread(self.models.end, 0.0 if self.force_exit else LAST_STEP_SECONDS)
        await super().shutdown(sockets)


def build_server(models: Models, host: str, key: str | None = None, names: Sequence[str] = ()) -> Server:
    connections = Connections()
    settings = uvicorn.Config(
        Guard(build_app(models), host, models.tally, connections, key, names),
        http=protocol_of(connections),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(LAST_STEP_SECONDS),
    )
    return Server(settings, models)


def serve(
    paths: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    names: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    config: ServeConfig | None = None,
    to_open: bool = False,
) -> None:
    """Until a signal comes; with `to_open`, the page is shown in a browser as well."""
    config = config or ServeConfig()
    if key is None and not is_loopback(host):
        raise UserError(f"--host {host}: others can reach it, so it needs a key: --key KEY, or HORNBOOK_KEY=KEY")
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise UserError("--key: should be letters, digits and signs of ASCII, with no blank at its ends")
    machine_to_speak(device, dtype)  # what is wrong with them is told before anything is loaded
    models = Models(paths, config, Counts(), lambda folder: Speaker(folder, device, dtype))
    with _listening(host, port) as listener:
        models.load_first()
        server = build_server(models, host, key, names)
        page = _tell(models, host, listener.getsockname()[1], key)
        if to_open:
            show_in_browser(page)
        with garbage_sought_among_new_objects():  # to parse a request may be five times faster
            server.run([listener])
    if not server.threads_are_gone:
        # A thread in the middle of a step cannot be stopped, and Python would crash if it ended under it.
        settle()
        os._exit(0)


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= LARGEST_PORT:  # a larger one would be taken for what is left of it in 16 bits
        raise UserError(f"--port {port}: should be from 0 to {LARGEST_PORT}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=socket.SOMAXCONN, dualstack_ipv6=both)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: no address of this machine ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: in use by another program; choose another, or 0 for any") from None
        if error.errno == errno.EACCES:
            raise UserError(f"--port {port}: may not be used by you; choose one from 1024 on") from None
        raise UserError(f"--host {host}: cannot be listened on ({error.strerror})") from None


def show_in_browser(page: str) -> threading.Thread | None:
    """Where there is a screen: a browser of plain text would take the terminal."""
    has_screen = sys.platform == "darwin" or any(os.environ.get(name) for name in ("BROWSER", *SCREENS))
    if not has_screen:
        note("--open: no screen here; open the page's address in a browser")
        return None
    showing = threading.Thread(target=webbrowser.open, args=(page,), daemon=True)
    showing.start()
    return showing


def _tell(models: Models, host: str, port: int, key: str | None) -> str:
    """What is served and where; the page's address."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"
    for served in models.served.values():
        model = served.config()
        yet = ", no checkpoint yet" if served.is_run and not served.kept else ""
        say(f"serving  {served.name}  ({model.n_params():,} parameters, context {model.context:,}{yet})")
    page = f"{address}/" + ("" if key is None else f"?key={quote(key, safe='')}")
    say(f"page     {page}")
    say(f"API      {address}/v1  (OpenAI's; docs/serving.md)\nCtrl-C ends it.")
    return page
