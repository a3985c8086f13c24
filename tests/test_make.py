"""What make says before it fetches gigabytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("NVIDIA_DRIVER=no/such/file", "make demo TORCH_INDEX=URL"),
        ("NVIDIA_DRIVER=Makefile", "about 6 GB"),
        ("TORCH_INDEX=https://example.org", "a build for CPUs takes about 1 GB"),
    ],
)
def test_it_tells_how_much_torch_takes_and_how_to_take_less(given: str, said: str) -> None:
    words = ["make", "-s", "size", "OS_NAME=Linux", given]
    assert said in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_quick_tests_are_there() -> None:
    chosen = subprocess.run(
        ["make", "-n", "quick", "PYTEST=pytest"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    paths = [word for line in chosen.splitlines() if " pytest " in line for word in line.split() if "tests/" in word]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
