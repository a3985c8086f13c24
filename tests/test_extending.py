"""One place for each idea, proven from outside: a copy of the sources gets one entry more, where CONTRIBUTING says, and
a child process uses it as a user would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.model.activations import ACTIVATIONS
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

SOURCE = Path(__file__).parent.parent / "src"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_trains(name: str, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert fit(tiny(model={"activation": name}, train={"steps": 2}), tmp_path / "run").step == 2


def test_an_activation_is_one_entry(text_file: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "src")
    table = tmp_path / "src" / "hornbook" / "model" / "activations.py"
    entry = '    "softplus": Activation(lambda F: F.softplus, kept=2),\n'
    table.write_text(table.read_text().replace('    "relu": ', entry + '    "relu": '))
    (tmp_path / "used.py").write_text(
        f"""
from hornbook.cli import main
sizes = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context 16 --tokenizer.kind byte".split()
short = "--train.steps 2 --train.batch-tokens 64 --train.compile false --train.device cpu --out run".split()
assert main(["train", "--data", {str(text_file)!r}, "--model.activation", "softplus", *sizes, *short]) == 0
assert main(["model", "run"]) == 0
assert main(["resume", "run", "--train.steps", "3"]) == 0
assert main(["generate", "run", "--prompt", "def", "--max-tokens", "4"]) == 0
"""
    )
    done = subprocess.run(
        [sys.executable, "used.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "HORNBOOK_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"activation": "softplus"' in (tmp_path / "run" / "run.json").read_text()
