"""A copy of the sources, to which somebody adds, and a child process in which it is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"


class Copy:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("*.egg-info"))

    def add(self, module: str, before: str, entry: str) -> None:
        """One entry, where CONTRIBUTING says that it goes."""
        path = self.folder / "src" / "hornbook" / module
        text = path.read_text()
        assert text.count(before) == 1, f"{module}: {before}"
        path.write_text(text.replace(before, entry + before))

    def use(self, program: str, *words: str) -> str:
        """What it prints."""
        (self.folder / "used.py").write_text(program)
        done = subprocess.run(
            [sys.executable, "used.py", *words],
            cwd=self.folder,
            env={
                "PYTHONPATH": str(self.folder / "src"),
                "HORNBOOK_HOME": str(self.folder / "home"),
                "HF_HOME": str(self.folder / "hf"),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
