"""What the API answers: plain dictionaries, whose types are also what /openapi.json says of them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # before Python 3.12, pydantic wants this one


class Logprobs(TypedDict):
    """Of tokens; one that is but a part of a character has as its text `bytes:` and its bytes."""

    tokens: list[str]
    token_ids: list[int]
    """What OpenAI has not."""
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(TypedDict):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Beyond(TypedDict):
    """What OpenAI has not: choice i of each prompt has `seed` plus i, and so many tokens of the longest prompt stand
    before the model's context, `forgotten`."""

    seed: int
    forgotten: int


class CompletionAnswer(TypedDict):
    """Also each chunk of a stream, where `usage` is null or missing but in the last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    hornbook: Beyond
    usage: NotRequired[Usage | None]


class AttentionAnswer(TypedDict):
    """The tokens that were looked at, the first `forgotten` of the text left out, and of each head their weights."""

    forgotten: int
    layers: int
    tokens: list[str]
    weights: list[list[float]]


class ModelEntry(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelEntry]


class Health(TypedDict):
    status: Literal["ok"]


COMPLETION: dict[str, Any] = {
    "model": CompletionAnswer,
    "description": "The continuations. With `stream`, server-sent events: `data: {...}`, a chunk for each token that "
    'gave text, then `data: [DONE]`; an error on the way is `data: {"error": ...}`',
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
