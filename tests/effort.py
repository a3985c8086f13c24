"""How hard the tests look: as hard as make test has the minutes for, or with HORNBOOK_LONG=1, as make test-long has."""

from __future__ import annotations

import os
from typing import TypeVar

import pytest
from hypothesis import settings

T = TypeVar("T")
LONG = bool(os.environ.get("HORNBOOK_LONG"))
# Takes long by nature: make test-long runs it, make test does not.
long = pytest.mark.long


def tries(few: T, many: T) -> T:
    return many if LONG else few


def examples(many: int) -> settings:
    """So many of hypothesis's, or a fiftieth of them."""
    return settings(max_examples=tries(max(many // 50, 20), many), deadline=None)
