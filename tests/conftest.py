"""What the tests share: a cache of their own, real text where it is at hand, and a run small enough for a second."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hornbook.base.settings import merge
from hornbook.cli import conclusion
from hornbook.report import curves
from hornbook.train.config import RunConfig, override

ROOT = Path(__file__).parent.parent
DRAW, DRAWN_BESIDE = curves.draw, conclusion.drawn_beside
FREEZE, UNFREEZE = gc.freeze, gc.unfreeze

# As in a terminal, for these processes and their children: a shell's background ignores the one, nohup the other.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Compiled once for all processes of all runs, but not for a plain processor and this one (make test-plain) alike.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    f"{tempfile.gettempdir()}/hornbook-tests-{os.getuid()}-{os.environ.get('ATEN_CPU_CAPABILITY', 'as-it-is')}",
)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """What is long does not stand in the name of a test, which all workers keep and send."""
    return argname if isinstance(val, str | bytes) and len(val) > 100 else None


@pytest.fixture(scope="session", autouse=True)
def hornbook_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that no other run of the tests, and no user, has filled."""
    home = tmp_path_factory.mktemp("home")
    os.environ["HORNBOOK_HOME"] = str(home)
    return home


@pytest.fixture(scope="session", autouse=True)
def no_garbage_among_libraries() -> Iterator[None]:
    """Their half a million objects, and the tests' own, live as long as the tests: to search through them again and
    again, as after each text that is prepared, would take a quarter of the time."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "freeze", lambda: None)
        patch.setattr(gc, "unfreeze", lambda: None)
        yield


@pytest.fixture
def garbage_anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is sought there after all."""
    monkeypatch.setattr(gc, "freeze", FREEZE)
    monkeypatch.setattr(gc, "unfreeze", UNFREEZE)
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """What is written in this process is there for the next; to wait for the disk as well would take most of the time
    of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_pictures() -> Iterator[None]:
    """Commands read a run's curves and draw them, which takes longer than to train what is trained here."""

    def read_alone(run: Path, **_: object) -> list[Path]:
        curves.Curves.read(run)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", read_alone)
        patch.setattr(conclusion, "drawn_beside", lambda run: contextlib.nullcontext(lambda: curves.draw(run)))
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They draw them after all."""
    monkeypatch.setattr(curves, "draw", DRAW)
    monkeypatch.setattr(conclusion, "drawn_beside", DRAWN_BESIDE)


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `hornbook WORDS` as a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hornbook", *words]
        env = os.environ | {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real text: $HORNBOOK_TEST_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("HORNBOOK_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data: set HORNBOOK_TEST_DATA to a folder with it (looked in {folder.name})")
    return folder


@pytest.fixture(scope="session")
def some_text() -> str:
    """About 100 kB of Python's own sources, on every machine."""
    library = Path(sysconfig.get_path("stdlib"))
    return "".join((library / name).read_text() for name in ("textwrap.py", "heapq.py", "bisect.py", "shlex.py"))


@pytest.fixture(scope="session")
def text_file(some_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(some_text)
    return path


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> Callable[..., RunConfig]:
    """A run of a few fast steps in fp32; keyword arguments turn knobs, nested as in a file."""
    base: dict[str, Any] = {
        "data": str(text_file),
        "tokenizer": {"kind": "byte"},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32},
        "schedule": {"warmup_steps": 2},
        "sample": {"tokens": 4},
        "train": {"steps": 6, "batch_tokens": 256, "dtype": "float32", "compile": False, "device": "cpu"},
    }

    def build(**knobs: Any) -> RunConfig:
        return override(RunConfig.model_validate({"train": {"steps": 1}}), merge(base, knobs))

    return build
