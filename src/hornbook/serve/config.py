"""How much a server takes on.

In: knobs.  Out: a `ServeConfig`. What one request, body or connection may take is a constant where it is used.
"""

from __future__ import annotations

from pydantic import Field

from hornbook.base.settings import Settings


class ServeConfig(Settings):
    rows: int = Field(16, ge=1, le=1024)
    """Texts that a model continues at once."""
    queue: int = Field(32, ge=0, le=100_000)
    """Requests that may wait for a row; more are refused with 429."""
    loaded: int = Field(4, ge=1)
    """Models that are kept in memory, each with its rows."""
