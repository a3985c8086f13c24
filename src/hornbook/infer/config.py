"""How a model speaks.

In: knobs.  Out: a `SamplerConfig`.
"""

from __future__ import annotations

from pydantic import Field

from hornbook.base.settings import Settings


class SamplerConfig(Settings):
    temperature: float = Field(0.8, ge=0)
    """Below 1 the likely becomes likelier; 0 always takes the likeliest."""
    top_k: int | None = Field(None, ge=1)
    """Only the k likeliest tokens."""
    top_p: float | None = Field(0.95, gt=0, le=1)
    """Only the likeliest tokens that together have this probability."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Only tokens that have this share of the likeliest one's probability."""
