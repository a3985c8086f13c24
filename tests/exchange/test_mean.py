"""The mean of checkpoints is the mean of their numbers, as another reader finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from hornbook import cli
from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.exchange.mean import average_checkpoints
from hornbook.infer.speaker import load_speaker
from hornbook.runs.folder import RunFolder
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged") / "run"
    knobs = {"steps": 4, "save_every_steps": 1, "keep_checkpoints": 4, "eval_every_steps": 4}
    fit(tiny(schedule={"kind": "constant"}, train=knobs), folder)
    return folder


@pytest.mark.parametrize(("last", "steps"), [(None, [1, 2, 3, 4]), (3, [2, 3, 4])])
def test_it_is_the_mean_of_what_safetensors_reads(
    last: int | None, steps: list[int], run: Path, tmp_path: Path
) -> None:
    assert average_checkpoints(run, tmp_path / "out", last) == steps
    ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    them = [safetensors.numpy.load_file(RunFolder(run).checkpoint(step) / "model.safetensors") for step in steps]
    for name, mean in ours.items():
        assert not np.array_equal(mean, them[-1][name])
        expected = np.mean([each[name] for each in them], axis=0, dtype=np.float64)
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-9)
    assert files.damage(tmp_path / "out") is None
    assert load_speaker(tmp_path / "out", device="cpu").generate("The ", max_tokens=3)


def test_a_damaged_checkpoint_is_left_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = RunFolder(run).checkpoint(3) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert average_checkpoints(run, tmp_path / "out") == [1, 2, 4]
    finally:
        weights.write_bytes(whole)
    assert "step-00000003: " in capsys.readouterr().err


def test_the_command_tells_of_which_steps_and_refuses_what_it_cannot(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["average", str(run), "--last", "2", "--out", str(tmp_path / "out")]) == 0
    assert "the mean of steps 3, 4" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already"):
        average_checkpoints(run, tmp_path / "out")
    with pytest.raises(UserError, match=r"has 4 good checkpoints .* 9 are wanted; .*--train.keep-checkpoints 9"):
        average_checkpoints(run, tmp_path / "more", 9)
    with pytest.raises(UserError, match=r"not a run \(no run.json\)"):
        average_checkpoints(tmp_path / "out", tmp_path / "more")
    assert not (tmp_path / "more").exists()
