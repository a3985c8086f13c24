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
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Above 1, tokens of the prompt and of the text become less likely: their logits are divided by it where they are
    positive, multiplied where negative."""
    presence_penalty: float = Field(0.0, ge=-100, le=100)
    """Taken off the logits of tokens that the text has already; the prompt's are left alone."""
