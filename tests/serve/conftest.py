"""A model with weights drawn at random, served on loopback by a real uvicorn."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running

from hornbook.infer.speaker import Speaker
from hornbook.model.config import modern
from hornbook.model.folder import save_model
from hornbook.model.init import untrained
from hornbook.serve.config import ServeConfig
from hornbook.serve.models import Models
from hornbook.serve.server import build_server
from hornbook.serve.tally import Counts
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from spread import spread


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Opinionated about every byte, for no reason; context 64."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    folder.mkdir()
    model = spread(untrained(modern(vocab_size=257, n_layer=2, n_head=2, n_embd=16, context=64)), std=0.3)
    save_model(model, train_tokenizer(TokenizerConfig(kind="byte"), [], 0), folder)
    return folder


@pytest.fixture(scope="session")
def toy_speaker(toy: Path) -> Speaker:
    return Speaker(toy, "cpu")


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Running]]:
    """`start(folder, key=..., load=..., queue=...)`"""
    with contextlib.ExitStack() as stack:

        def begin(
            *folders: Path,
            host: str = "127.0.0.1",
            key: str | None = None,
            load: Callable[[Path], Speaker] | None = None,
            unread_bytes: int | None = None,
            **limits: Any,
        ) -> Running:
            models = Models(folders, ServeConfig(**limits), Counts(), load or (lambda folder: Speaker(folder, "cpu")))
            models.load_first()
            listener = socket.create_server((host, 0))
            if unread_bytes:  # what the system keeps for a client that does not read
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, unread_bytes)
            server = build_server(models, host, key)
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
            thread.start()
            running = Running(server, models, listener.getsockname()[1], thread)
            stack.callback(running.stop)
            assert running.settles(lambda: server.started)
            return running

        yield begin


@pytest.fixture(scope="session")
def running(start: Callable[..., Running], toy: Path) -> Running:
    """With its defaults."""
    return start(toy)
