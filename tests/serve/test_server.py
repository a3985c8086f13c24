"""The real command, and real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hornbook.cli import main
from hornbook.serve.server import show_in_browser

ENDLESS = {"prompt": "ab", "max_tokens": 4096, "temperature": 0, "repetition_penalty": 2.0, "stream": True}
# A model that takes its time, behind the real command.
COMMAND = """
import sys, time
from hornbook.cli import main
from hornbook.model.gpt import GPT
logits_of = GPT.logits_of
GPT.logits_of = lambda self, x: (time.sleep({seconds}), logits_of(self, x))[1]
sys.exit(main(["serve", *sys.argv[1:]]))
"""


class Command:
    def __init__(self, *words: str, step_seconds: float = 0.0, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND.format(seconds=step_seconds), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []

    def address(self) -> str:
        """Of the API, once it is served."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        else:
            raise AssertionError(self.process.stderr and self.process.stderr.read())
        return next(line.split()[1] for line in self.lines if line.startswith("API")).removesuffix("/v1")

    def ends(self, seconds: float = 20.0) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    begun: list[Command] = []

    def begin(*words: str, **options: Any) -> Command:
        begun.append(Command(*words, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        each.process.communicate()


def test_a_signal_lets_what_runs_finish_and_takes_nothing_new(command: Callable[..., Command], toy: Path) -> None:
    server = command(str(toy), "--port", "0", "--rows", "1", step_seconds=0.02)
    address = server.address()
    with httpx2.Client(base_url=address, timeout=30) as client, httpx2.Client(base_url=address) as other:
        with client.stream("POST", "/v1/completions", json=ENDLESS | {"max_tokens": 60}) as answer:
            lines = answer.iter_lines()
            next(lines)
            other.get("/health").raise_for_status()
            for _ in range(2):  # a closed terminal and its shell each say so
                server.process.send_signal(signal.SIGHUP)
            while (health := httpx2.get(f"{address}/health", verify=False)).status_code == 200:
                time.sleep(0.01)
            assert health.status_code == 503
            refused = httpx2.post(f"{address}/v1/completions", json={"prompt": "a"})
            assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.ends() == (0, "")


def test_a_second_signal_ends_at_once_and_cleanly(command: Callable[..., Command], toy: Path) -> None:
    """Of a server for others than this machine, which has a key."""
    server = command(str(toy), "--host", "0.0.0.0", "--port", "0", step_seconds=0.02, HORNBOOK_KEY="sesame")
    address = server.address().replace("0.0.0.0", "127.0.0.1")
    assert any(line.endswith("/?key=sesame\n") for line in server.lines)
    assert httpx2.get(f"{address}/v1/models", verify=False).status_code == 401
    knows = {"authorization": "Bearer sesame"}
    with httpx2.stream("POST", f"{address}/v1/completions", json=ENDLESS, headers=knows, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert server.ends(10) == (0, "")


def test_an_address_in_use_is_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(toy), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: --port {port}: in use by another program; choose another, or 0 for any\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such/model"], "no such model or run"),
        (["."], "neither a model"),
        (["{toy}", "{toy}"], "served already"),
        (["{toy}", "--rows", "0"], "--rows: "),
        (["{toy}", "--loaded", "0"], "--loaded: "),
        (["{toy}", "--key", "a\nb"], "--key: "),
        (["{toy}", "--port", "70000"], "--port 70000: should be from 0 to 65535"),
        (["{toy}", "--host", "no such host"], "--host"),
        (["{toy}", "--host", "0.0.0.0"], "HORNBOOK_KEY"),
        (["{toy}", "--device", "abacus"], "abacus"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], message: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HORNBOOK_KEY", raising=False)
    assert main(["serve", *(word.format(toy=toy) for word in words)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors


@pytest.mark.parametrize("screen", [True, False])
def test_the_page_is_shown_where_there_is_a_screen(
    screen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("hornbook.serve.server.sys.platform", "linux")
    monkeypatch.setattr("hornbook.serve.server.webbrowser.open", opened.append)
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
    if showing := show_in_browser("http://127.0.0.1:8000/"):
        showing.join(10)
    assert opened == (["http://127.0.0.1:8000/"] if screen else [])
    assert ("no screen here" in capsys.readouterr().err) is not screen
