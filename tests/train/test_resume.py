"""Real processes, really killed: what an interrupted run leaves is what the uninterrupted one would have.

Each case is killed once, or twice in make test-long; HORNBOOK_SOAK=100 repeats it a hundred times.
"""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from trial import all_of, good_checkpoints, knob_words, leftovers, metrics, tiniest

from effort import long, tries
from hornbook.base.files import read_json
from hornbook.base.machine import choose_machine
from hornbook.runs.folder import RunFolder
from hornbook.train import precision
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

STEPS = 60
ROUNDS = int(os.environ.get("HORNBOOK_SOAK", "1"))


def wait_until(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until the process has written down `step`, or has ended."""
    until = time.monotonic() + 120
    while process.poll() is None and len([each for each in metrics(run) if "loss" in each]) < step:
        assert time.monotonic() < until, f"step {step} never came"
        time.sleep(0.002)


def sixty_steps(text: Path, optimizer: str, dtype: str) -> RunConfig:
    knobs = {"steps": STEPS, "save_every_steps": 7, "eval_every_steps": 20, "dtype": dtype, "threads": 1}
    return tiniest(text, optim={"kind": optimizer}, train=knobs)


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [("muon", "float32"), pytest.param("adamw", "float32", marks=long), pytest.param("muon", "bfloat16", marks=long)],
)
def test_a_run_killed_at_random_steps_is_the_uninterrupted_run_bit_for_bit(
    optimizer: str,
    dtype: str,
    round_: int,
    short_text: Path,
    tmp_path: Path,
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    """With dropout on, over several epochs."""
    if dtype == "bfloat16" and choose_machine("cpu").dtype != "bfloat16":
        pytest.skip("this processor does not compute in bfloat16")
    threads = torch.get_num_threads()
    config, run = sixty_steps(short_text, optimizer, dtype), tmp_path / "run"
    fit(config, tmp_path / "peace")
    torch.set_num_threads(threads)
    fitted = RunConfig.model_validate(read_json(tmp_path / "peace" / "run.json")["config"])
    assert config.model.dropout > 0
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    words = ["train", *knob_words(config), f"--out={run}"]
    for first, last in tries(((1, STEPS - 5),), ((1, STEPS // 2), (STEPS // 2 + 1, STEPS - 5))):
        process = child(*words)
        wait_until(process, run, chance.randint(first, last))
        time.sleep(chance.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL or last > STEPS // 2
        if RunFolder(run).checkpoints():
            words = ["resume", str(run)]
    assert RunConfig.model_validate(read_json(run / "run.json")["config"]) == fitted
    process = child(*words, "--json")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert all_of(run) == all_of(tmp_path / "peace"), f"chance seed {seed}"
    assert leftovers(run) == []


# Where a scale begins that overflows, and how soon it tries to grow, so that in sixty steps it does both.
FIRST_SCALE, STEPS_TO_GROW = 2.0**30, 9
NOTEBOOK = f"""
import sys
from hornbook.cli import main
from hornbook.train import precision
precision.FIRST_SCALE, precision.STEPS_TO_GROW = {FIRST_SCALE}, {STEPS_TO_GROW}
sys.exit(main())
"""


@long
def test_a_day_of_a_free_card_in_small(short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4's numbers; disconnected twice; each time the folder is copied away and onto another machine, which has
    neither the tokens nor anything else of before but the text."""
    config, run = sixty_steps(short_text, "muon", "float16"), tmp_path / "run"
    monkeypatch.setattr(precision, "FIRST_SCALE", FIRST_SCALE)
    monkeypatch.setattr(precision, "STEPS_TO_GROW", STEPS_TO_GROW)
    fit(config, tmp_path / "peace")
    words = ["train", *knob_words(config), f"--out={run}"]
    for day, killed_at in enumerate((19, 41, None)):
        home = tmp_path / f"machine-{day}"
        command = [sys.executable, "-c", NOTEBOOK, *words]
        env = os.environ | {"MPLBACKEND": "agg", "HORNBOOK_HOME": str(home)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
        try:
            if killed_at is not None:
                wait_until(process, run, killed_at)
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == (0 if killed_at is None else -signal.SIGKILL), errors
        finally:
            process.kill()
        shutil.rmtree(home)
        drive = shutil.copytree(run, tmp_path / f"drive-{day}")
        shutil.rmtree(run)
        shutil.copytree(drive, run)
        words = ["resume", str(run)]
    assert all_of(run) == all_of(tmp_path / "peace")
    scales = [entry["loss_scale"] for entry in metrics(run) if "loss" in entry]
    assert {after / before for before, after in pairwise(scales)} == {0.5, 1.0, 2.0}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=long)])
def test_a_signal_saves_the_finished_step_and_leaves(
    number: signal.Signals, short_text: Path, tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    """A second one, while it saves, does no harm; of this model that takes a while."""
    run = tmp_path / "run"
    config = sixty_steps(short_text, "muon", "float32")
    endless = config.with_(
        train={"steps": 100_000, "save_every_steps": None},
        schedule={"kind": "constant"},
        model={"n_embd": 256, "mlp_width": 1024},
    )
    process = child("train", *knob_words(endless), f"--out={run}")
    wait_until(process, run, 10)
    process.send_signal(number)
    time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.count("this step is finished and saved first") == 1
    step = metrics(run)[-1]["step"]
    assert good_checkpoints(run)[0] == step
    assert read_json(RunFolder(run).checkpoints()[0] / "state.json")["step"] == step
    assert f"stopped at step {step}, all of it saved; go on with: hornbook resume {run}" in output


@pytest.mark.parametrize("lost", ["terminal", pytest.param("reader", marks=long)])
def test_a_run_outlives_those_who_listen(lost: str, short_text: Path, tmp_path: Path) -> None:
    """A closed terminal ends it, with all of it saved; a pipe that nobody reads any more does not even do that."""
    run = tmp_path / "run"
    config = sixty_steps(short_text, "muon", "float32")
    if lost == "terminal":
        config = config.with_(train={"steps": 100_000, "save_every_steps": None}, schedule={"kind": "constant"})
    ours, theirs = pty.openpty() if lost == "terminal" else os.pipe()
    command = [sys.executable, "-m", "hornbook", "train", *knob_words(config), f"--out={run}"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"MPLBACKEND": "agg"})
    try:
        os.close(theirs)
        assert os.read(ours, 1)
        wait_until(process, run, 2)
        os.close(ours)
        if lost == "terminal":
            process.send_signal(signal.SIGHUP)
        assert process.wait(60) == (130 if lost == "terminal" else 0)
    finally:
        process.kill()
        process.wait()
    step = metrics(run)[-1]["step"]
    assert good_checkpoints(run)[0] == step
    assert step == STEPS or lost == "terminal"
    assert (run / "loss.png").is_file()
