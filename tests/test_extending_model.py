"""One place for each idea, proven from outside: a copy of the sources gets an entry more in each table, where
CONTRIBUTING says, and a child process uses them as a user would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.model.activations import ACTIVATIONS
from hornbook.model.norms import NORMS
from hornbook.model.positions import POSITIONS
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

SOURCE = Path(__file__).parent.parent / "src"
TABLES = {"activation": ACTIVATIONS, "norm": NORMS, "positions": POSITIONS}
EVERY_ENTRY = [(knob, name) for knob, table in TABLES.items() for name in table]
# By the table's file, what stands in place of its first line.
ENTRIES = {
    "activations": """ACTIVATIONS = {
    "softplus": Activation(lambda F: F.softplus, kept=2),
""",
    "norms": """NORMS = {
    "l1norm": Normalisation(lambda F: lambda x, weight, bias, eps: F.normalize(x, p=1, dim=-1, eps=eps) * weight),
""",
    "positions": """
def _paired(config):  # two neighbours share a row
    from torch import nn

    class Paired(nn.Embedding):
        def forward(self, places):
            return super().forward(places // 2)

    return Paired((config.context + 1) // 2, config.n_embd)


POSITIONS = {
    "paired": Positions(added=_paired, params=lambda config: (config.context + 1) // 2 * config.n_embd),
""",
}
USED = """
import sys

import torch
import transformers
from hornbook.cli import main
from hornbook.model.folder import load_model
from hornbook.runs.folder import resolve
from pathlib import Path

shape = "--model.activation softplus --model.norm l1norm --model.positions paired".split()
sizes = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context 16 --tokenizer.kind byte".split()
short = "--train.steps 2 --train.batch-tokens 64 --train.compile false --train.device cpu --out run".split()
assert main(["model", "demo", "--json", *shape]) == 0
assert main(["train", "--data", sys.argv[1], *shape, *sizes, *short]) == 0
assert main(["model", "run"]) == 0
assert main(["resume", "run", "--train.steps", "3"]) == 0
assert main(["generate", "run", "--prompt", "def", "--max-tokens", "20"]) == 0
assert main(["export", "run", "--to", "hf", "--with-code", "--out", "out"]) == 0
ours = load_model(resolve(Path("run")))
theirs = transformers.AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True).eval()
ids = torch.arange(16)[None]
assert sum(each.numel() for each in theirs.parameters()) == ours.config.n_params()
with torch.no_grad():
    assert (theirs(ids).logits - ours.logits(ids)).abs().max() < 1e-5
    assert ours.logits(ids).std() > 1e-4
"""


@pytest.mark.parametrize(("knob", "name"), EVERY_ENTRY)
def test_every_entry_trains(knob: str, name: str, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert fit(tiny(model={knob: name}, train={"steps": 2}), tmp_path / "run").step == 2


def test_an_activation_a_norm_and_a_position_scheme_are_an_entry_each(text_file: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "src")
    for file, entry in ENTRIES.items():
        table = tmp_path / "src" / "hornbook" / "model" / f"{file}.py"
        table.write_text(table.read_text().replace(f"{file.upper()} = {{", entry))
    (tmp_path / "used.py").write_text(USED)
    homes = {name: str(tmp_path / name) for name in ("HORNBOOK_HOME", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "used.py", str(text_file)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1", **homes},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = (tmp_path / "run" / "run.json").read_text()
    assert all(f'"{name}"' in record for name in ("softplus", "l1norm", "paired"))
