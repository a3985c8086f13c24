"""A text so short that a few steps read all of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 kB: with the tiniest run's steps, several epochs in sixty."""
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "and", "ate", "rat"], k=520)
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text(" ".join(words))
    return path
