from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.base.names import LONGEST, plain_name


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("My Novel (draft)", "My Novel (draft)"),
        ("红楼梦", "红楼梦"),
        ("a\tb\x1bc\nd", "a_b_c_d"),
        ("caf\udce9", "caf_"),
        ("..", "text"),
        (".bashrc ", "bashrc"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("", "text"),
        ("长" * 80, "长" * (LONGEST // 3)),
    ],
)
def test_a_name_stays_recognisable(given: str, made: str) -> None:
    assert plain_name(given) == made


@given(st.text())
def test_any_name_can_be_a_folders(name: str) -> None:
    made = plain_name(name)
    assert 0 < len(made.encode()) <= LONGEST
    assert made.isprintable()
    assert "/" not in made
    assert made.strip(" .") == made
    assert plain_name(made) == made
