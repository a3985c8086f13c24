"""A run that says that it continues exactly does, and one that does not says what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from trial import all_of, metrics, tiniest

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.base.machine import Machine
from hornbook.cli import main
from hornbook.runs.folder import RunFolder
from hornbook.train.proof import Proof
from hornbook.train.replay import replay
from hornbook.train.start import fit, resume

SAVES = {"steps": 4, "save_every_steps": 2, "eval_every_steps": 4}


@pytest.fixture(scope="module")
def trained(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(tiniest(short_text, train=SAVES), run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def told_otherwise(run: Path, at: int, **values: float) -> None:
    """In the line of a step."""
    entries = [each | (values if each["step"] == at and "loss" in each else {}) for each in metrics(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries))


def flip_a_bit_of(checkpoint: Path, file: str, tensor: str) -> None:
    """And let the manifest say that it was so from the first."""
    tensors = safetensors.torch.load_file(checkpoint / file)
    tensors[tensor].view(-1).numpy().view("int32")[-1] ^= 1
    safetensors.torch.save_file(tensors, checkpoint / file, {"format": "pt"})
    manifest = files.read_json(checkpoint / files.MANIFEST)
    facts = {"bytes": (checkpoint / file).stat().st_size, "sha256": files.sha256(checkpoint / file)}
    manifest["files"][file] = facts
    (checkpoint / files.MANIFEST).write_text(json.dumps(ours.with_own_hash(manifest)))


def test_a_run_that_is_trained_again_is_the_same_and_stays_as_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in run.rglob("*")}
    capsys.readouterr()
    assert main(["verify", str(run), "--replay"]) == 0
    told = capsys.readouterr().out
    assert "continues exactly: steps 3 to 4, their losses, and weights and moments after them" in told
    assert before == {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in run.rglob("*")}


def test_the_first_step_with_other_numbers_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = metrics(run)
    (length,) = [each["grad_norm"] for each in was if each["step"] == 4 and "loss" in each]
    told_otherwise(run, 4, grad_norm=length * (1 + 2**-52))
    capsys.readouterr()
    assert main(["verify", str(run), "--replay", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["replay"]
    assert told.startswith(f"does not continue exactly: step 4 had grad norm {length * (1 + 2**-52)}, now {length};")
    assert told.endswith("the machine, torch and the threads are the same as then")


@pytest.mark.parametrize(
    ("file", "tensor", "named"),
    [
        ("model.safetensors", "model.norm.weight", "norm"),
        ("optimizer.safetensors", None, None),
    ],
)
def test_the_first_tensor_with_another_bit_is_named(
    file: str, tensor: str | None, named: str | None, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is another on this machine."""
    newest = RunFolder(run).checkpoints()[0]
    chosen = tensor or sorted(safetensors.torch.load_file(newest / file))[-1]
    flip_a_bit_of(newest, file, chosen)
    facts = Machine.facts
    monkeypatch.setattr(Machine, "facts", lambda machine: facts(machine) | {"torch": "9.9"})
    found = replay(run)
    assert found.difference is not None
    assert "after step 4" in found.difference
    assert (named or chosen) in found.difference
    assert "torch was" in str(found)
    assert str(found).endswith("now it is 9.9")


def test_a_run_by_the_clock_is_trained_again_at_the_rates_that_it_had(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a clock that goes faster and faster."""
    monkeypatch.setattr("hornbook.train.loop.seconds_since_beginning", lambda run: float(run.state.step**2))
    knobs = {"steps": None, "minutes": 64 / 60, "save_every_steps": 3, "eval_every_steps": 1000}
    fit(tiniest(short_text, train=knobs, schedule={"kind": "cosine"}), tmp_path / "run")
    assert len({each["lr_factor"] for each in metrics(tmp_path / "run") if "loss" in each}) > 2
    assert replay(tmp_path / "run").difference is None


def test_what_cannot_be_replayed_says_why(run: Path) -> None:
    with files.locked(run), pytest.raises(UserError, match="another process is at work"):
        replay(run)
    told_otherwise(run, 4, step=5)
    with pytest.raises(UserError, match="no line for step 4"):
        replay(run)
    shutil.rmtree(RunFolder(run).checkpoints()[0])
    with pytest.raises(UserError, match="fewer than two good checkpoints"):
        replay(run)


def test_a_resumed_run_says_that_it_continues_exactly(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the log has the steps that it takes again, as of a process that was killed."""
    shutil.rmtree(RunFolder(run).checkpoints()[0])
    capsys.readouterr()
    resume(run)
    assert (
        capsys.readouterr().out.count("continues exactly: steps 3 and 4 have the loss and the gradients of before") == 1
    )
    assert all_of(run) == all_of(trained)
    resume(run, {"train": {"steps": 6}})
    assert "exactly" not in capsys.readouterr().out  # nothing was cut off


def test_a_resumed_run_that_does_not_says_what_differs(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(RunFolder(run).checkpoints()[0])
    told_otherwise(run, 3, loss=1.5)
    facts = Machine.facts
    monkeypatch.setattr(Machine, "facts", lambda machine: facts(machine) | {"threads": 64})
    capsys.readouterr()
    resume(run)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "exactly" in line]
    assert line.startswith("does not continue exactly: step 3 had loss 1.5, now ")
    assert line.endswith("now it is 64")


def test_a_step_after_another_rate_is_not_compared() -> None:
    """As of a run by the clock, or one whose end was moved."""
    entries: list[dict[str, Any]] = [
        {"step": step, "loss": 2.0, "grad_norm": 1.0, "lr_factor": 0.5} for step in (3, 4, 5)
    ]
    proof = Proof(entries, 2, ())
    told = proof.compare(3, 2.0, 1.0, 0.25)
    assert told == "continues exactly: step 3 has the loss and the gradients of before"
    assert proof.compare(4, 9.0, 9.0, 0.25) is None
    proof = Proof(entries, 2, ())
    assert [proof.compare(step, 2.0, 1.0, 0.5) is None for step in (3, 4, 5)] == [True, False, True]
