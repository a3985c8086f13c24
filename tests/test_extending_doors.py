"""A recipe and an export format are one entry each, proven as in test_extending.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
RECIPE = '''
def haste() -> RunConfig:
    """Two steps of the demo."""
    return modern.demo().with_(
        recipe="haste",
        data=TEXT,
        tokenizer={"kind": "byte", "vocab_size": None},
        model={"n_layer": 1, "n_embd": 16, "n_head": 2, "head_width": 8, "mlp_width": 32, "context": 16},
        train={"minutes": None, "steps": 2, "batch_tokens": 64, "compile": False, "device": "cpu"},
    )


RECIPES'''
FORMAT = """
def _to_npz(folder: Path, out: Path, dtype: str) -> None:
    import numpy

    with files.staged_file(out) as staging, files.open_to_write(staging, "wb") as file:
        numpy.savez(file, **{name: each.numpy() for name, each in load_model(folder).state_dict().items()})


FORMATS = {
    "npz": Format(_to_npz, ".npz", ("f32",), lambda out, _: shell("python", "-m", "zipfile", "-l", out)),
"""
USE = """
import numpy
from hornbook.cli import main
assert main(["recipes"]) == 0
assert main(["model", "haste"]) == 0
assert main(["train", "haste"]) == 0
assert main(["export", "runs/haste", "--to", "npz"]) == 0
weights = numpy.load("haste.npz")
assert sum(weights[name].size for name in weights) > 1000
assert main(["export", "runs/haste", "--to", "npz", "--dtype", "f16"]) == 2
"""


def test_a_recipe_and_an_export_format_are_one_entry_each(text_file: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "src")
    recipes = tmp_path / "src" / "hornbook" / "recipes" / "__init__.py"
    with_recipe = recipes.read_text().replace("\nRECIPES", RECIPE.replace("TEXT", repr(str(text_file))), 1)
    recipes.write_text(
        with_recipe.replace('    "demo": modern.demo,\n', '    "demo": modern.demo,\n    "haste": haste,\n')
    )
    export = tmp_path / "src" / "hornbook" / "exchange" / "export.py"
    export.write_text(export.read_text().replace("\nFORMATS = {\n", FORMAT))
    (tmp_path / "used.py").write_text(USE)
    done = subprocess.run(
        [sys.executable, "used.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "HORNBOOK_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout + done.stderr
    assert "Two steps of the demo." in told
    assert "python -m zipfile -l haste.npz" in told
    assert "--dtype f16: npz is written as f32" in told
