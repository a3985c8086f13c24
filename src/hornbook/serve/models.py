"""Which models are served.

In: paths of runs and model folders.  Out: names, ids, and an engine for an id.
An id is a NAME, the folder's; of a run also NAME@newest and NAME@STEP, and its NAME alone is the best checkpoint.
Models are loaded when they are first asked for; a few stay in memory, and the one that was idle longest makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hornbook.base.errors import UserError
from hornbook.infer.speaker import Speaker
from hornbook.model.config import ModelConfig
from hornbook.model.folder import CONFIG, RUN, config_of_run, kept_folders, load_config, resolve, step_of
from hornbook.serve.config import ServeConfig
from hornbook.serve.engine import Engine, RefusedError
from hornbook.serve.tally import Tally

BUSY_RETRY_SECONDS = 5
LONGEST_STEP = 15  # digits


@dataclass(frozen=True)
class Served:
    name: str
    path: Path
    is_run: bool

    @property
    def kept(self) -> list[Path]:
        """Of a run, what can be spoken with, newest first."""
        return kept_folders(self.path) if self.is_run else []

    def ids(self) -> dict[str, Path]:
        """Every id with a folder that tells its age."""
        kept = self.kept
        if not self.is_run:
            return {self.name: self.path}
        steps = {f"{self.name}@{step_of(folder)}": folder for folder in kept}
        return ({self.name: kept[0], f"{self.name}@newest": kept[0]} if kept else {}) | steps

    def identities(self) -> tuple[Identity, ...]:
        return tuple(map(Identity.of, self.kept if self.is_run else [self.path]))

    def config(self) -> ModelConfig:
        return config_of_run(self.path) if self.is_run else load_config(self.path)


@dataclass(frozen=True)
class Identity:
    """A folder of weights, and which one of that name it is: a run may begin anew, a model be written again."""

    folder: Path
    mark: tuple[int, int]

    @classmethod
    def of(cls, folder: Path) -> Identity:
        try:
            found = (folder / CONFIG).stat()
        except OSError:
            return cls(folder, (0, 0))
        return cls(folder, (found.st_ino, found.st_mtime_ns))


class Models:
    def __init__(
        self,
        paths: Sequence[Path],
        config: ServeConfig,
        tally: Tally,
        load: Callable[[Path], Speaker] = Speaker,
    ) -> None:
        self.config, self.tally = config, tally
        self.served: dict[str, Served] = {}
        for path in paths:
            self._serve(path)
        self._load = load
        self._engines: dict[Identity, Engine] = {}  # the one asked for last stands last
        self._changing = threading.Lock()
        self._has_spoken = {served.name for served in self.served.values() if served.kept or not served.is_run}
        self._resolved: dict[str, tuple[tuple[Identity, ...], Identity]] = {}
        self._loader = ThreadPoolExecutor(1, "loader")
        self._waiting = 0  # for a model to be loaded
        self.closing = False

    def _serve(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"{path}: no such model or run; hornbook train makes one")
        if not (path / CONFIG).is_file() and not (path / RUN).is_file():
            raise UserError(f"{path}: neither a model (no {CONFIG}) nor a run (no {RUN})")
        name = path.resolve().name
        if name in self.served:
            raise UserError(f"{path}: a model called {name} is served already; rename one of the two folders")
        self.served[name] = Served(name, path, is_run=not (path / CONFIG).is_file())

    @property
    def loaded(self) -> list[tuple[Path, Engine]]:
        return [(identity.folder, engine) for identity, engine in self._engines.items()]

    def find(self, model: str | None) -> tuple[Served, str]:
        """Which is meant by an id, and which of its checkpoints."""
        if model is None and len(self.served) == 1:
            model = next(iter(self.served))
        if model is None:
            raise UserError(f"model: must be given, one of {', '.join(self.served)}")
        if model in self.served:
            return self.served[model], "best"
        name, _, at = model.rpartition("@")
        if name not in self.served or not self.served[name].is_run or not (at == "newest" or _is_step(at)):
            names = ", ".join(self.served)[:120]
            raise UserError(f"model {model!r} is not served here; served are {names}, and what GET /v1/models lists")
        return self.served[name], at if at == "newest" else str(int(at))

    @contextlib.asynccontextmanager
    async def engine(self, model: str | None) -> AsyncIterator[Engine]:
        """The engine for an id; it stays in memory while it is held."""
        served, at = self.find(model)
        engine = self._at_hand(served, at)
        if engine is None:
            engine = await self._load_in_turn(served, at)
        try:
            yield engine
        finally:
            self._give_back(engine)

    async def _load_in_turn(self, served: Served, at: str) -> Engine:
        """Whoever leaves meanwhile leaves the queue too, or gives back what was loaded for nobody."""
        if self._waiting >= self.config.queue + self.config.rows:
            raise RefusedError("full", BUSY_RETRY_SECONDS)
        self._waiting += 1
        loading = self._loader.submit(self._loaded, served, at)
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            if not loading.cancel():
                loading.add_done_callback(self._give_back_loaded)
            raise
        finally:
            self._waiting -= 1

    def _give_back_loaded(self, loading: Future[Engine]) -> None:
        if loading.exception() is None:
            self._give_back(loading.result())

    def _give_back(self, engine: Engine) -> None:
        with self._changing:
            engine.users -= 1
            is_left = not engine.users and engine not in self._engines.values()
        if is_left:
            engine.end(0)

    def why_silent(self, served: Served) -> str | None:
        """What is the matter with a model of which there is nothing to speak with."""
        if not (served.path / (RUN if served.is_run else CONFIG)).is_file():
            return f"{served.name}: its folder was deleted or moved since the server began; put it back and ask again"
        if not served.is_run or served.kept:
            return None
        if served.name in self._has_spoken:
            return f"{served.name}: its checkpoints were deleted; ask again when it has trained for a while"
        return f"{served.name} has no checkpoint yet; ask again when it has trained for a while"

    def load_first(self) -> None:
        """So that a broken model is told at the start, and the first answer comes soon."""
        served = next(iter(self.served.values()))
        if not served.is_run or served.kept:
            self._loaded(served, "best").users -= 1

    def close(self) -> None:
        """Take no more jobs."""
        self.closing = True
        for _, engine in self.loaded:
            engine.close()

    def end(self, wait_seconds: float) -> bool:
        """End what runs; whether all threads are gone."""
        self.close()
        self._loader.shutdown(wait=False, cancel_futures=True)
        gone = [engine.end(wait_seconds) for _, engine in self.loaded]
        return all(gone)

    def _at_hand(self, served: Served, at: str) -> Engine | None:
        known = self._resolved.get(f"{served.name}@{at}")
        with self._changing:
            if known is None or known[0] != served.identities() or known[1] not in self._engines:
                return None
            return self._lent(known[1])

    def _lent(self, identity: Identity) -> Engine | None:
        engine = self._engines.pop(identity)
        if not engine.is_alive:
            return None
        self._engines[identity] = engine
        engine.users += 1
        return engine

    def _loaded(self, served: Served, at: str) -> Engine:
        """In the loader's thread, one at a time."""
        if (engine := self._at_hand(served, at)) is not None:
            return engine
        kept = served.identities()
        if (silence := self.why_silent(served)) is not None:
            raise UserError(silence)
        self._has_spoken.add(served.name)
        folder = resolve(served.path, at)
        identity = Identity.of(folder)
        with self._changing:
            self._resolved[f"{served.name}@{at}"] = (kept, identity)
            if identity in self._engines and (engine := self._lent(identity)) is not None:
                return engine
            self._make_room()
        try:
            speaker = self._load(folder)
        except (UserError, OSError):
            if folder.exists():
                raise
            return self._loaded(served, at)  # a run that trains let go of it meanwhile
        with self._changing:
            engine = Engine(speaker, self.config.rows, self.config.queue, self.tally)
            self._engines[identity] = engine
            if self.closing:
                engine.close()
            engine.users += 1
            return engine

    def _make_room(self) -> None:
        while len(self._engines) >= self.config.loaded:
            idle = next((each for each, engine in self._engines.items() if engine.is_idle and not engine.users), None)
            if idle is None:
                raise RefusedError("full", BUSY_RETRY_SECONDS)
            self._engines.pop(idle).end(0)


def _is_step(at: str) -> bool:
    return at.isascii() and at.isdigit() and len(at) <= LONGEST_STEP
