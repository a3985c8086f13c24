from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Endless, Slow, read_metrics

from effort import tries
from hornbook.infer.config import SamplerConfig
from hornbook.infer.continuation import Continuation
from hornbook.infer.decode import Growing
from hornbook.infer.speaker import Speaker
from hornbook.serve.engine import Added, Engine, Job, RefusedError
from hornbook.serve.tally import Counts

WAIT = 60.0


class Listener:
    """A job, and all that was told of it."""

    def __init__(self, speaker: Speaker, prompt: str = "ab", n: int = 1, **options: Any) -> None:
        self.added: list[Added] = []
        self.outcomes: list[str] = []
        self.over, self.spoken = threading.Event(), threading.Event()
        seed, most, stop = options.pop("seed", 0), options.pop("max_tokens", 20), options.pop("stop", ())
        rules = SamplerConfig().with_(**options)
        texts = [
            (
                Growing(speaker.tokenizer.encode_prompt(prompt), rules, seed + own, most),
                Continuation(speaker.tokenizer, prompt, stop, seed + own),
            )
            for own in range(n)
        ]
        self.job = Job(texts, self._tell)
        self.beside: Job | None = None
        self.left_beside = 0
        """Of another job, the texts that had not ended when this one was over."""

    def _tell(self, added: list[Added], outcome: str | None) -> None:
        self.added += added
        if added:
            self.spoken.set()
        if outcome is not None:
            self.outcomes.append(outcome)
            self.left_beside = self.beside.unended if self.beside else 0
            self.over.set()

    @property
    def texts(self) -> list[str]:
        return [continuation.text for _, continuation in self.job.texts]


@pytest.fixture
def engine(toy_speaker: Speaker) -> Iterator[Engine]:
    engine = Engine(toy_speaker, 4, 32, Counts())
    yield engine
    assert engine.end(WAIT)


@pytest.fixture
def slow_engine(toy: Path) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def build(rows: int = 2, queue: int = 4, step_seconds: float = 0.01) -> Engine:
        made.append(Engine(Endless(toy, step_seconds), rows, queue, Counts()))
        return made[-1]

    yield build
    for each in made:
        assert each.end(WAIT)


def settles(is_so: Callable[[], bool]) -> bool:
    last = time.monotonic() + WAIT
    while not is_so() and time.monotonic() < last:
        time.sleep(0.001)
    return is_so()


def test_texts_equal_offline_ones_however_they_came_and_went(toy_speaker: Speaker, engine: Engine) -> None:
    """Requests in fp32: of any length, at random moments, a third of them cancelled on the way."""
    draw = random.Random(7)
    asked, gone = [], []
    for number in range(tries(16, 60)):
        options: dict[str, Any] = {
            "prompt": "".join(draw.choices("abcdé ", k=draw.choice([0, 3, 30, 63, 64, 65, 150]))),
            "n": draw.choice([1, 1, 2, 3]),
            "seed": number,
            "max_tokens": draw.choice([1, 5, 40, 90]),
            "temperature": draw.choice([0.0, 0.7, 1.5]),
            "top_p": draw.choice([0.9, 1.0]),
            "repetition_penalty": draw.choice([1.0, 1.2]),
            "stop": draw.choice([(), ("a", "\x01")]),
        }
        listener = Listener(toy_speaker, **options)
        while True:
            try:
                engine.submit(listener.job)
                break
            except RefusedError:
                time.sleep(0.002)
        if draw.random() < 1 / 3:
            gone.append(listener)
            threading.Timer(draw.random() * 0.05, engine.cancel, [listener.job]).start()
        else:
            asked.append((options, listener))
        time.sleep(draw.choice([0, 0, 0.01]))
    for options, listener in asked:
        assert listener.over.wait(WAIT)
        prompt = options.pop("prompt")
        alone = toy_speaker.generate_batch([prompt], rows=1, **options)
        assert listener.texts == [each.text for each in alone]
        assert [continuation.ended for _, continuation in listener.job.texts] == [each.ended for each in alone]
        assert "".join(each.piece for each in listener.added if each.index == 0) == alone[0].text
    assert all(listener.over.wait(WAIT) for listener in gone)
    assert all(len(each.outcomes) == 1 for each in [*gone, *(listener for _, listener in asked)])
    assert settles(lambda: engine.is_idle)


def test_a_cancelled_text_leaves_its_row_before_the_next_token(slow_engine: Callable[..., Engine]) -> None:
    engine = slow_engine(rows=2)
    for _ in range(tries(15, 50)):
        gone, stays = (Listener(engine.speaker, max_tokens=10_000) for _ in range(2))
        for each in (gone, stays):
            engine.submit(each.job)
            assert each.spoken.wait(WAIT)
        waits = Listener(engine.speaker, max_tokens=10_000)
        engine.submit(waits.job)
        engine.cancel(gone.job)
        before = len(gone.added)
        assert gone.over.wait(WAIT)
        assert len(gone.added) <= before + 1
        assert waits.spoken.wait(WAIT)
        engine.cancel(stays.job)
        engine.cancel(waits.job)
        assert settles(lambda: engine.is_idle)
        assert [gone.outcomes, stays.outcomes, waits.outcomes] == [["cancelled"]] * 3


def test_a_cancelled_request_in_the_queue_frees_its_place_at_once(slow_engine: Callable[..., Engine]) -> None:
    engine = slow_engine(rows=1, queue=1)
    runs = Listener(engine.speaker, max_tokens=10_000)
    engine.submit(runs.job)
    assert runs.spoken.wait(WAIT)
    for _ in range(50):
        waits = Listener(engine.speaker)
        engine.submit(waits.job)
        with pytest.raises(RefusedError) as refused:
            engine.submit(Listener(engine.speaker).job)
        assert refused.value.outcome == "full"
        engine.cancel(waits.job)
        assert waits.outcomes == ["cancelled"]
        assert not waits.added
    engine.cancel(runs.job)
    engine.cancel(runs.job)
    assert runs.over.wait(WAIT)
    assert runs.outcomes == ["cancelled"]


def test_the_queue_holds_no_more_than_it_should(slow_engine: Callable[..., Engine]) -> None:
    engine = slow_engine(rows=2, queue=3)
    go_on, logits_of = threading.Event(), engine.speaker.model.logits_of
    engine.speaker.model.logits_of = lambda x: (go_on.wait(WAIT), logits_of(x))[1]  # type: ignore[method-assign]
    taken, refused = [], 0
    for _ in range(20):
        listener = Listener(engine.speaker, max_tokens=30)
        try:
            engine.submit(listener.job)
            taken.append(listener)
        except RefusedError:
            refused += 1
    assert (len(taken), refused) == (5, 15)
    go_on.set()
    assert all(each.over.wait(WAIT) for each in taken)
    assert [each.outcomes for each in taken] == [["complete"]] * 5


def test_a_request_of_many_texts_lets_others_in_between(slow_engine: Callable[..., Engine]) -> None:
    engine = slow_engine(rows=2, queue=8)
    many = Listener(engine.speaker, n=20, max_tokens=5)
    engine.submit(many.job)
    assert many.spoken.wait(WAIT)
    few = [Listener(engine.speaker, max_tokens=5) for _ in range(3)]
    for each in few:
        each.beside = many.job
        engine.submit(each.job)
    assert all(each.over.wait(WAIT) for each in few)
    assert all(each.left_beside > 10 for each in few)
    assert many.over.wait(WAIT)
    assert [each.outcomes for each in (many, *few)] == [["complete"]] * 4


def test_closing_ends_what_waits_and_lets_finish_what_runs(slow_engine: Callable[..., Engine]) -> None:
    engine = slow_engine(rows=1)
    runs, waits = Listener(engine.speaker, max_tokens=30), Listener(engine.speaker)
    engine.submit(runs.job)
    assert runs.spoken.wait(WAIT)
    engine.submit(waits.job)
    engine.close()
    assert waits.outcomes == ["closing"]
    with pytest.raises(RefusedError) as refused:
        engine.submit(Listener(engine.speaker).job)
    assert refused.value.outcome == "closing"
    assert runs.over.wait(WAIT)
    assert (runs.outcomes, len(runs.added)) == (["complete"], 30)


def test_the_end_ends_what_runs(slow_engine: Callable[..., Engine]) -> None:
    engine = slow_engine(rows=1)
    runs = Listener(engine.speaker, max_tokens=10_000)
    engine.submit(runs.job)
    assert runs.spoken.wait(WAIT)
    assert engine.end(WAIT)
    assert runs.outcomes == ["closing"]


def test_an_error_ends_what_was_computed_with_it_and_nothing_else(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker, tally = Endless(toy), Counts()
    engine = Engine(speaker, 1, 4, tally)
    good = speaker.model.logits_of
    spoil = threading.Event()

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        if spoil.is_set():
            spoil.clear()
            raise RuntimeError("out of luck")
        return good(x)

    speaker.model.logits_of = sometimes  # type: ignore[method-assign]
    runs, waits = Listener(speaker, max_tokens=10_000), Listener(speaker, max_tokens=5)
    engine.submit(runs.job)
    assert runs.spoken.wait(WAIT)
    engine.submit(waits.job)
    spoil.set()
    assert waits.over.wait(WAIT)
    assert (runs.outcomes, waits.outcomes) == (["failed"], ["complete"])
    assert waits.texts == [Endless(toy, 0.0).generate("ab", max_tokens=5)]
    assert engine.is_healthy
    assert "out of luck" in capsys.readouterr().err
    assert read_metrics(tally.text())["hornbook_engine_failures_total"] == 1
    assert engine.end(WAIT)


def test_an_engine_that_always_fails_says_so(toy: Path) -> None:
    speaker = Slow(toy)
    engine = Engine(speaker, 1, 8, Counts())

    def never(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of luck")

    speaker.model.logits_of = never  # type: ignore[method-assign]
    for _ in range(3):
        listener = Listener(speaker)
        engine.submit(listener.job)
        assert listener.over.wait(WAIT)
        assert listener.outcomes == ["failed"]
    assert settles(lambda: not engine.is_healthy)
    with pytest.raises(RefusedError) as refused:
        engine.submit(Listener(speaker).job)
    assert refused.value.outcome == "failed"
    assert engine.end(WAIT)


def test_no_job_is_left_behind_where_no_new_batch_can_be_had(
    slow_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = slow_engine(rows=1)
    runs, waits = Listener(engine.speaker, max_tokens=10_000), Listener(engine.speaker)
    engine.submit(runs.job)
    assert runs.spoken.wait(WAIT)
    engine.submit(waits.job)

    def nothing_left(*_: Any) -> Any:
        raise MemoryError("no memory left")

    monkeypatch.setattr(engine, "_new_batch", nothing_left)
    monkeypatch.setattr(engine, "_step", nothing_left)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert runs.over.wait(WAIT)
    assert waits.over.wait(WAIT)
    assert (runs.outcomes, waits.outcomes) == (["failed"], ["failed"])
    assert not engine.is_healthy
    with pytest.raises(RefusedError):
        engine.submit(Listener(engine.speaker).job)
