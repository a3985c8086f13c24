from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.report.curves import Curves
from hornbook.runs.logs import Log
from hornbook.serve.config import ServeConfig
from hornbook.serve.models import Models
from hornbook.serve.tally import Counts
from hornbook.serve.watch import MOST_POINTS, Watch
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {"n_layer": 1, "n_head": 1, "n_embd": 8, "context": 16}
    how = {"steps": 20, "batch_tokens": 64, "eval_every_steps": 4, "save_every_steps": 5, "keep_checkpoints": 2}
    config = tiny(model=model, sample={"prompts": ["a", "b"]}, train=how)
    return fit(config, tmp_path_factory.mktemp("watched") / "grown").folder


def test_points_are_what_the_run_kept_in_the_order_of_steps(run: Path) -> None:
    points = Watch(run).points()
    assert [(each["step"], each["kind"]) for each in points] == [
        *((step, "snapshot") for step in (1, 2, 4, 8)),
        (15, "checkpoint"),
        (16, "snapshot"),
        (20, "checkpoint"),
    ]
    assert {each["id"] for each in points} == {f"grown@{each['step']}" for each in points}
    assert all(each["tokens"] == 64 * each["step"] for each in points)
    losses = {each["step"]: each["val_loss"] for each in points}
    curves = Curves.read(run)
    known = dict(zip(curves.val_steps, curves.val_losses, strict=True))
    assert losses == {step: known.get(step) for step in losses}
    assert losses[1] is None
    assert losses[8] == known[8]


def test_where_a_step_has_both_its_checkpoint_is_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.copytree(copy / "checkpoints" / "step-00000020", copy / "snapshots" / "step-00000020")
    assert [each["kind"] for each in Watch(copy).points() if each["step"] == 20] == ["checkpoint"]


def test_the_curve_is_what_the_report_draws(run: Path) -> None:
    curves, curve = Curves.read(run), Watch(run).curve()
    assert curve["train"] == list(zip(curves.steps, curves.losses, strict=True))
    assert curve["val"] == list(zip(curves.val_steps, curves.val_losses, strict=True))
    assert {name: curve[name] for name in ("run", "step", "steps_total", "training")} == {
        "run": "grown", "step": 20, "steps_total": 20, "training": False,
    }  # fmt: skip
    assert [step for step, _ in Watch(run).curve(after=17)["train"]] == [18, 19, 20]


def test_samples_are_the_newest_last(run: Path) -> None:
    watch = Watch(run)
    said = watch.samples(4)
    assert [(each["step"], each["prompt"]) for each in said] == [(16, "a"), (16, "b"), (20, "a"), (20, "b")]
    assert watch.samples(4) == said
    assert watch.samples(0) == []


def test_a_run_of_which_nothing_is_there_yet_is_empty(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    assert (watch.points(), watch.samples(9), watch.training) == ([], [], False)
    curve = watch.curve()
    assert (curve["train"], curve["val"], curve["step"], curve["steps_total"]) == ([], [], 0, None)


def long_log(run: Path, steps: int) -> list[float]:
    draw = random.Random(0)
    losses = [8 / (1 + step / 1000) + draw.random() for step in range(1, steps + 1)]
    losses[steps // 3], losses[steps // 2] = 99.0, -99.0
    lines = [
        json.dumps({"step": step, "tokens": step, "loss": loss, "seconds": step}) for step, loss in enumerate(losses, 1)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return losses


def test_a_long_curve_is_thinned_and_keeps_its_ends_and_extremes(tmp_path: Path) -> None:
    losses = long_log(tmp_path, 30_000)
    train = Watch(tmp_path).curve()["train"]
    assert MOST_POINTS / 2 < len(train) <= MOST_POINTS
    assert all(losses[step - 1] == loss for step, loss in train)
    steps = [step for step, _ in train]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 30_000)
    assert {99.0, -99.0} <= {loss for _, loss in train}
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert max(gaps) < 3 * 30_000 / (MOST_POINTS / 2)


def test_a_curve_that_was_cut_back_is_one_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    for step in range(1, 11):
        log.write({"step": step, "tokens": step, "loss": 1.0, "seconds": step})
    kept = log.sync()
    for step in range(11, 31):
        log.write({"step": step, "tokens": step, "loss": 2.0, "seconds": step})
    log.close()
    watch = Watch(tmp_path)
    assert watch.curve()["step"] == 30
    again = Log(tmp_path / "metrics.jsonl", kept)
    for step in range(11, 41):
        again.write({"step": step, "tokens": step, "loss": 3.0, "seconds": step + 0.5})
    again.close()
    assert watch.curve()["train"] == [*((step, 1.0) for step in range(1, 11)), *((step, 3.0) for step in range(11, 41))]


def test_many_who_ask_at_once_are_told_the_same(tmp_path: Path) -> None:
    long_log(tmp_path, 3000)
    watch, told = Watch(tmp_path), []
    threads = [threading.Thread(target=lambda: told.append(watch.curve(after=2900)["train"])) for _ in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(told) == 16
    assert all(each == told[0] and len(each) == 100 for each in told)


def test_a_run_trains_as_long_as_its_process_lives(tmp_path: Path) -> None:
    """Also where that was killed, and leaves its lock's file behind."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom hornbook.base import files\n"
        "with files.locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    watch = Watch(tmp_path)
    assert not watch.training
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert watch.training
        with pytest.raises(UserError, match="another process is at work"), files.locked(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".lock").exists()
    assert not watch.training


def test_one_who_looks_keeps_no_run_from_beginning(tmp_path: Path) -> None:
    files.make_folder(tmp_path)
    (tmp_path / ".lock").touch()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            files.is_locked(tmp_path)
            time.sleep(0.0005)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            with files.locked(tmp_path):
                pass
    finally:
        stop.set()
        looking.join()


def test_a_server_takes_the_next_checkpoint_where_one_goes_while_it_is_loaded(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    tried = []

    def load(folder: Path) -> Speaker:
        tried.append(folder.name)
        if len(tried) == 1:
            files.remove(folder)
        return Speaker(folder, "cpu")

    models = Models([copy], ServeConfig(), Counts(), load)

    async def ask() -> Path:
        async with models.engine("copy@newest") as engine:
            return engine.speaker.folder

    assert asyncio.run(ask()).name == "step-00000016"
    assert tried == ["step-00000020", "step-00000016"]
    assert models.end(5)


@pytest.mark.parametrize("vanishes", ["before its files are read", "while it is checked"])
def test_a_checkpoint_that_goes_while_it_is_loaded_gives_way_to_the_next(
    vanishes: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    newest = copy / "checkpoints" / "step-00000020"

    def gone(function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Path, *rest: Any) -> Any:
            if newest.exists() and newest in (path, path.parent):
                files.remove(newest)
            return function(path, *rest)

        return instead

    if vanishes == "while it is checked":
        monkeypatch.setattr(ours, "sha256", gone(files.sha256))
    else:
        monkeypatch.setattr("hornbook.infer.speaker.load_model", gone(load_speaker.__globals__["load_model"]))
    speaker = load_speaker(copy, "newest", device="cpu")
    assert not newest.exists()
    assert speaker.folder.name in ("step-00000016", "step-00000015")
    assert speaker.generate("a", max_tokens=3, seed=0) == load_speaker(copy, "newest").generate(
        "a", max_tokens=3, seed=0
    )
