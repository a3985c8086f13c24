"""How much a server takes on.

In: knobs.  Out: a `ServeConfig`.
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
    body_bytes: int = Field(1 << 20, ge=1)
    header_seconds: float = Field(10.0, gt=0)
    """A connection that has not sent a whole request's headers by then is closed."""
    body_seconds: float = Field(30.0, gt=0)
    reader_seconds: float = Field(30.0, gt=0)
    """A client that takes nothing of its answer for so long is dropped."""
    connections: int = Field(512, ge=1)
    """Beyond so many, those that have not sent their headers yet are closed, the oldest first."""
    ending_seconds: float = Field(30.0, ge=0)
    """What runs when the server is told to stop may take so long to finish."""
