"""Texts that tokenizers are judged by: any that there can be, and real ones."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from hypothesis import strategies as st

from effort import tries

LIBRARY_BYTES = tries(700_000, 12_000_000)
OF_EACH = tries(100_000, 10_000_000)

any_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.text(st.sampled_from("aA 'sdt\n\t\r0.9!\u00a0\u200d\u0301é日ก🙂👨‍👩‍👧\x00\x1f"), max_size=80),
    st.builds(
        lambda unit, count: unit * count,
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from([2, 63, 1000, 100_000]),
    ),
)


def real_texts(test_data: Path) -> list[str]:
    """The test data, or the beginning of each of its texts, and megabytes of the standard library."""
    texts = [path.read_text()[:OF_EACH] for path in sorted(test_data.glob("*.txt"))]
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if (
            size < LIBRARY_BYTES
            and path.stat().st_size < OF_EACH
            and "lib2to3" not in path.parts
            and "bad" not in path.name
        ):
            data = path.read_bytes()
            try:
                texts.append(data.decode())
            except UnicodeDecodeError:
                continue
            size += len(data)
    assert size >= LIBRARY_BYTES
    return texts
