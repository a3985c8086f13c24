"""A text so short that a few steps read all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from trial import write_short_text


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_text(tmp_path_factory.mktemp("short") / "short.txt")
