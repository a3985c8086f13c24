"""Which models are served.

In: paths of runs and model folders.  Out: names, ids, and an engine for an id.
An id is a NAME, the folder's; of a run also NAME@newest and NAME@STEP, and its NAME alone is the best checkpoint.
Models are loaded when they are first asked for; a few stay in memory, and the one that was idle longest makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.base.machine import free_memory_bytes
from hornbook.infer.speaker import Speaker
from hornbook.model.config import CONFIG, ModelConfig
from hornbook.model.folder import load_config
from hornbook.runs.folder import RECORD, RunFolder, resolve, step_of
from hornbook.serve.config import ServeConfig
from hornbook.serve.engine import Engine, RefusedError
from hornbook.serve.tally import Counts

SHARE_OF_MEMORY = 0.9  # of what is free once the weights are there; steps need some too
LONGEST_STEP = 15  # digits
MOST_RESOLVED = 256


@dataclass(frozen=True)
class Served:
    name: str
    path: Path
    is_run: bool

    @property
    def kept(self) -> list[Path]:
        """Of a run, what can be spoken with, newest first."""
        return RunFolder(self.path).kept() if self.is_run else []

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
        return RunFolder(self.path).model() if self.is_run else load_config(self.path)


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
        tally: Counts,
        load: Callable[[Path], Speaker] = Speaker,
    ) -> None:
        self.config, self.tally = config, tally
        self.served: dict[str, Served] = {}
        for path in paths:
            self._serve(path)
        self._load = load
        self._engines: OrderedDict[Identity, Engine] = OrderedDict()  # the one asked for last stands last
        self._changing = threading.Lock()
        self._has_spoken = {served.name for served in self.served.values() if served.kept or not served.is_run}
        self._looking = {name: threading.Lock() for name in self.served}
        # To find the best checkpoint, its files are hashed: once, until something is kept or deleted.
        self._resolve = lru_cache(MOST_RESOLVED)(lambda served, at, kept: Identity.of(resolve(served.path, at)))
        self._loader = ThreadPoolExecutor(1, "loader")
        self._waiting = 0  # for a model to be loaded
        self.closing = False

    def _serve(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"{path}: no such model or run; hornbook train makes one")
        if not (path / CONFIG).is_file() and not RunFolder(path).has_record():
            raise UserError(f"{path}: neither a model (no {CONFIG}) nor a run (no {RECORD})")
        name = path.resolve().name
        if name in self.served:
            raise UserError(f"{path}: a model called {name} is served already; rename one of the two folders")
        self.served[name] = Served(name, path, is_run=not (path / CONFIG).is_file())

    @property
    def engines(self) -> list[Engine]:
        return list(self._engines.values())

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
        identity = await asyncio.to_thread(self._meant, served, at)
        while (engine := self._lend(identity)) is None:
            await self._load_in_turn(identity)
            identity = await asyncio.to_thread(self._meant, served, at)
        try:
            yield engine
        finally:
            with self._changing:
                engine.users -= 1

    def _meant(self, served: Served, at: str) -> Identity:
        """Which weights an id stands for now. In a thread: a run's folder may be large, or far away."""
        kept = served.identities()
        if (silence := self.why_silent(served)) is not None:
            raise UserError(silence)
        self._has_spoken.add(served.name)
        with self._looking[served.name]:
            return self._resolve(served, at, kept)

    def _lend(self, identity: Identity) -> Engine | None:
        with self._changing:
            engine = self._engines.get(identity)
            if engine is None or not engine.is_alive:
                return None
            self._engines.move_to_end(identity)
            engine.users += 1
            return engine

    async def _load_in_turn(self, identity: Identity) -> None:
        """Whoever leaves meanwhile leaves the queue too; what has begun to be loaded is there for who comes next."""
        if self._waiting >= self.config.queue + self.config.rows:
            raise RefusedError("full")
        self._waiting += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self._loader, self._bring, identity)
        finally:
            self._waiting -= 1

    def why_silent(self, served: Served) -> str | None:
        """What is the matter with a model of which there is nothing to speak with."""
        if not (served.path / (RECORD if served.is_run else CONFIG)).is_file():
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
            self._bring(self._meant(served, "best"))

    def close(self) -> None:
        """Take no more jobs."""
        self.closing = True
        for engine in self.engines:
            engine.close()

    def end(self, wait_seconds: float) -> bool:
        """End what runs; whether all threads are gone."""
        self.close()
        self._loader.shutdown(wait=False, cancel_futures=True)
        gone = [engine.end(wait_seconds) for engine in self.engines]
        return all(gone)

    def _bring(self, identity: Identity) -> None:
        """Load it, unless it is there. In the loader's thread, so one at a time."""
        with self._changing:
            if identity in self._engines and self._engines[identity].is_alive:
                return
            self._engines.pop(identity, None)
            self._make_room()
        try:
            speaker = self._load(identity.folder)
        except (UserError, OSError):
            if identity.folder.exists():
                raise
            return  # a run that trains let go of it meanwhile: who asks looks again
        engine = Engine(speaker, rows_that_fit(speaker, self.config.rows), self.config.queue, self.tally)
        with self._changing:
            self._engines[identity] = engine
            if self.closing:
                engine.close()

    def _make_room(self) -> None:
        while len(self._engines) >= self.config.loaded:
            idle = next((each for each, engine in self._engines.items() if engine.is_idle and not engine.users), None)
            if idle is None:
                raise RefusedError("full")
            self._engines.pop(idle).end(0)


def rows_that_fit(speaker: Speaker, most: int) -> int:
    """Keys and values of every row are taken when a model is loaded, so that no text fails for want of them later."""
    model, config = speaker.model, speaker.model.config
    each = 2 * config.n_layer * config.context * config.kv_heads * config.width_of_head
    each *= speaker.cache_dtype.itemsize
    free = free_memory_bytes(str(model.embedding.weight.device))
    rows = most if free is None else min(most, int(SHARE_OF_MEMORY * free) // each)
    told = f"keys and values of a text take {each / 1e9:.2g} GB, and {(free or 0) / 1e9:.2g} GB are free"
    if not rows:
        raise UserError(f"{speaker.folder.name}: no room to speak: {told}; try --dtype bfloat16, or serve fewer models")
    if rows < most:
        warn(f"{speaker.folder.name}: {rows} texts at once, not {most}: {told}; --rows {rows} is what fits")
    return rows


def _is_step(at: str) -> bool:
    return at.isascii() and at.isdigit() and len(at) <= LONGEST_STEP
