"""The package as it is installed: a wheel, far from its sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from effort import long

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="without a network, setuptools must be here")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "sources" / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "sources")
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "sources")]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@long
def test_a_wheel_holds_all_that_lies_among_the_sources(unpacked: Path) -> None:
    def files_in(folder: Path) -> set[str]:
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return {name for name in found if not name.endswith(".pyc")}

    assert files_in(unpacked / "hornbook") == files_in(ROOT / "src" / "hornbook")


@long
def test_a_wheel_trains_the_demo_speaks_and_exports(unpacked: Path, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(unpacked), "HORNBOOK_HOME": str(tmp_path / "home"), "PATH": "", "HOME": str(tmp_path)}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "hornbook", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("--version").startswith(f"hornbook {version('hornbook')}\ntorch {version('torch')} on ")
    where = [sys.executable, "-c", "import hornbook; print(hornbook.__file__)"]
    imported = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert Path(imported.strip()).parents[1] == unpacked
    run("train", "demo", "--train.steps", "3")
    assert run("generate", "runs/demo", "--prompt", "class", "--max-tokens", "8").strip()
    run("export", "runs/demo", "--to", "hf", "--with-code")
    assert (tmp_path / "demo-hf" / "README.md").is_file()
