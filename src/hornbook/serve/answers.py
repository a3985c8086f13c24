"""What the API answers, for its description alone.

In: nothing.  Out: the shapes of answers, from which FastAPI writes /openapi.json. The answers themselves are plain
dictionaries: to validate our own for each token would cost more than the token's JSON.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Logprobs(Shape):
    tokens: list[str]
    """Texts of tokens; of one that is but a part of a character, `bytes:` and its bytes."""
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(Shape):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Beyond(Shape):
    """What OpenAI has not."""

    seed: int
    """Of choice i of each prompt, it is this plus i."""
    forgotten: int
    """So many tokens of the longest prompt stand before the model's context."""


class CompletionAnswer(Shape):
    """Also of each chunk of a stream, where `usage` is null or missing but in the last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    hornbook: Beyond
    usage: Usage | None = None


class ModelEntry(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelEntry]


class Health(Shape):
    status: Literal["ok"]


COMPLETION: dict[str, Any] = {
    "model": CompletionAnswer,
    "description": "The continuations. With `stream`, server-sent events: `data: {...}`, a chunk for each token that "
    'gave text, then `data: [DONE]`; an error on the way is `data: {"error": ...}`',
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
