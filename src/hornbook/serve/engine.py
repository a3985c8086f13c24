"""Requests become tokens.

In: jobs, each a request's texts to continue, from any thread.  Out: to each job, what every step added to its texts,
and then its end, once: `complete`, `cancelled`, `closing` or `failed`.
One thread owns a Batch. Between two steps it takes texts in where rows are free, and out where they have ended or
nobody wants them any more.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hornbook.base.errors import one_line
from hornbook.base.output import tell
from hornbook.infer.continuation import Continuation
from hornbook.infer.decode import Batch, Chosen, Growing
from hornbook.infer.speaker import Speaker
from hornbook.serve.tally import Counts

REST_SECONDS = 60
FAILURES_IN_A_ROW = 3


class RefusedError(Exception):
    """A job was not taken: `full`, `closing` or `failed`."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome


@dataclass(frozen=True)
class Added:
    """What a step added to a text of a job."""

    index: int
    piece: str
    """Text that is certain now."""
    ended: str | None
    tokens: int
    """How many the text has with it, and how many characters."""
    characters: int


Tell = Callable[[list[Added], str | None], None]


class Job:
    """A request's texts. `tell` is called in the engine's thread, or in that of who cancels."""

    def __init__(self, texts: Sequence[tuple[Growing, Continuation]], tell: Tell) -> None:
        self.texts, self.tell = list(texts), tell
        self.outcome: str | None = None
        self.unbegun = deque(range(len(self.texts)))
        self.unended = len(self.texts)
        self.came_at = time.monotonic()
        self.has_spoken = False


class Engine:
    def __init__(self, speaker: Speaker, rows: int, queue: int, tally: Counts) -> None:
        self.speaker, self.rows, self.queue = speaker, rows, queue
        self.users = 0
        """Who holds it, so that it stays in memory; counted by whoever lends it out."""
        self._tally = tally
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()  # jobs of which some text has no row yet
        self._in_rows: dict[Growing, tuple[Job, int]] = {}
        self._unwanted: set[Job] = set()
        self._closing = self._ending = False
        self._failures, self._failed_at = 0, 0.0
        # Its memory is taken here, so that where there is not enough, whoever loads the model is told.
        self._thread = threading.Thread(target=self._work, args=(self._new_batch(),), name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def rows_in_use(self) -> int:
        return len(self._in_rows)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._in_rows

    @property
    def is_healthy(self) -> bool:
        """After failures in a row, a while later it may be tried again."""
        is_resting = self._failures >= FAILURES_IN_A_ROW and time.monotonic() < self._failed_at + REST_SECONDS
        return self.is_alive and not is_resting

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        with self._changed:
            if self._closing or not self.is_healthy:
                raise RefusedError("closing" if self._closing else "failed")
            if len(self._waiting) >= self.queue + self.rows - len(self._in_rows):
                raise RefusedError("full")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """A job that has no row yet ends at once, any other before the next step."""
        with self._changed:
            if job.outcome is not None:
                return
            if len(job.unbegun) == len(job.texts):
                self._finish(job, "cancelled")
            else:
                self._unwanted.add(job)

    def close(self) -> None:
        """Take no more jobs; those that wait end, those that run go on."""
        with self._changed:
            self._closing = True
            for job in [each for each in self._waiting if len(each.unbegun) == len(each.texts)]:
                self._finish(job, "closing")
            self._changed.notify()

    def end(self, wait_seconds: float) -> bool:
        """End what runs, and the thread. Whether it is gone."""
        self.close()
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(wait_seconds)
        return not self._thread.is_alive()

    def _work(self, batch: Batch) -> None:
        try:
            while self._take_in(batch):
                try:
                    self._step(batch)
                    self._failures = 0
                except BaseException as error:  # a panic in a library's Rust is no Exception
                    self._fail(error)
                    batch = self._new_batch()  # the old one may hold anything
        finally:  # also where there is no memory for another batch
            with self._changed:
                self._failures = FAILURES_IN_A_ROW
                for job in self._jobs():
                    self._finish(job, "failed")

    def _new_batch(self) -> Batch:
        speaker = self.speaker
        return Batch(speaker.model, self.rows, speaker.tokenizer.vocab_size, speaker.cache_dtype)

    def _take_in(self, batch: Batch) -> bool:
        """Wait until there is something to do, and let it begin; False where the thread is to end."""
        with self._changed:
            while True:
                for text in [text for text, (job, _) in self._in_rows.items() if job in self._unwanted]:
                    self._leave(batch, text)
                for job in list(self._unwanted):
                    self._finish(job, "cancelled")
                if self._ending:
                    for job in self._jobs():
                        self._finish(job, "closing")
                    self._in_rows.clear()
                    return False
                if self._waiting or batch.texts:
                    break
                self._changed.wait()
            while self._waiting and batch.has_room:
                job = self._waiting.popleft()
                index = job.unbegun.popleft()
                if job.unbegun:  # behind the others, so that one request of many texts does not keep all rows
                    self._waiting.append(job)
                text, _ = job.texts[index]
                self._in_rows[text] = (job, index)
                batch.add(text)
            return True

    def _step(self, batch: Batch) -> None:
        began = time.monotonic()
        taken = batch.step()
        now = time.monotonic()
        self._tally.measure("step_seconds", now - began)
        self._tally.count("generated_tokens", len(taken))
        told: dict[Job, list[Added]] = {}
        with self._changed:
            for text, chosen in taken:
                job, index = self._in_rows[text]
                if not job.has_spoken:
                    job.has_spoken = True
                    self._tally.measure("first_token_seconds", now - job.came_at)
                told.setdefault(job, []).append(self._added(job, index, chosen))
                if text.ended:
                    self._leave(batch, text)
                    job.unended -= 1
            for job, added in told.items():
                job.tell(added, None)
                if not job.unended:
                    self._finish(job, "complete")

    def _added(self, job: Job, index: int, chosen: Chosen) -> Added:
        text, continuation = job.texts[index]
        kept = text.take(chosen, self.speaker.tokenizer.stop)
        piece = continuation.feed(kept, text.ended)
        text.ended = continuation.ended
        return Added(index, piece, text.ended, len(continuation.tokens), len(continuation.text))

    def _leave(self, batch: Batch, text: Growing) -> None:
        batch.remove(text)
        del self._in_rows[text]

    def _finish(self, job: Job, outcome: str) -> None:
        """Under the lock. A job ends once, whoever ends it."""
        self._unwanted.discard(job)
        if job in self._waiting:
            self._waiting.remove(job)
        if job.outcome is not None:
            return
        job.outcome = outcome
        self._tally.end(outcome)
        job.tell([], outcome)

    def _jobs(self) -> set[Job]:
        return {job for job, _ in self._in_rows.values()} | set(self._waiting)

    def _fail(self, error: BaseException) -> None:
        """What was computed together ends together; what waits gets a new batch, unless errors go on."""
        traceback.print_exception(error)
        tell(f"error: {one_line(f'{type(error).__name__}: {error}')}")
        self._tally.count("engine_failures")
        with self._changed:
            self._failures, self._failed_at = self._failures + 1, time.monotonic()
            jobs = {job for job, _ in self._in_rows.values()}
            if not self.is_healthy:
                jobs |= set(self._waiting)
            self._in_rows.clear()
            for job in jobs:
                self._finish(job, "failed")
