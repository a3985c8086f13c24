"""A completion, as OpenAI's clients ask for it and read it.

In: a request's JSON, and what an engine adds to its texts.  Out: texts to continue, and the answer, at once or in
chunks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from hornbook.base.errors import UserError
from hornbook.infer.config import SamplerConfig
from hornbook.infer.continuation import Continuation
from hornbook.infer.decode import Chosen, Growing, window_start
from hornbook.infer.speaker import Speaker
from hornbook.serve.config import ServeConfig
from hornbook.serve.engine import Added, Job

LARGEST_SEED = (1 << 63) - 1
EXAMPLE: JsonDict = {"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.8, "seed": 1, "stop": ["\n\n"]}
COLDEST = 0.01  # below, but for 0, fp32 has no room for what logits become
FINISHED = {"end_of_text": "stop", "stop": "stop", "length": "length"}
# One mistake in a list is enough: a body has room for a million of them.
Ids = Annotated[list[int], Field(min_length=1, fail_fast=True)]


class MistakeError(Exception):
    """A request that cannot be answered: what is wrong with which of its fields."""

    def __init__(self, param: str, message: str) -> None:
        self.param, self.message = param, message


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    """A last chunk before the end tells the numbers of tokens."""
    include_obfuscation: bool = False
    """Of no effect."""


class CompletionRequest(BaseModel):
    """OpenAI's fields, and top_k, min_p and repetition_penalty."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [EXAMPLE]},
    )

    model: str | None = None
    """An id of /v1/models; may be left out where one model is served."""
    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
    ) = ""
    """What to continue: a text or the ids of one, or several of either. An empty text begins a document."""
    max_tokens: int | None = Field(16, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=100)
    """0 always takes the likeliest token; else at least 0.01."""
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=100)
    presence_penalty: float | None = Field(0.0, ge=-100, le=100)
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    """Only 0."""
    n: int | None = Field(1, ge=1)
    """So many continuations of each prompt, with the seeds from `seed` on."""
    best_of: int | None = None
    """Only as many as n."""
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    """The same seed gives the same text; where there is none, one is drawn, and told in the answer."""
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    """The text ends before the first of these."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Of each token its log-probability, and so many alternatives."""
    echo: bool | None = False
    """Let the text begin with the prompt."""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    suffix: Literal[""] | None = None
    """Only null."""
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    """Only empty."""
    user: str | None = None
    """Of no effect."""

    @model_validator(mode="after")
    def _goes_together(self) -> CompletionRequest:
        wrong = [*self._mistakes()]
        if wrong:
            raise PydanticCustomError("combination", "does not go together", {"found": wrong})
        return self

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        if self.temperature and self.temperature < COLDEST:
            yield "temperature", f"should be 0, or at least {COLDEST}"
        if self.best_of is not None and self.best_of != (self.n or 1):
            yield "best_of", "only as many as n are drawn; leave it out"
        if self.stream_options is not None and not self.stream:
            yield "stream_options", "goes with stream: true"
        if self.echo and self.logprobs is not None:
            yield "echo", "does not go with logprobs: the prompt's tokens are not scored"

    @property
    def prompts(self) -> list[str | list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item,return-value]

    def rules(self) -> SamplerConfig:
        return SamplerConfig(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
        )


class Completion:
    """One request on its way: its texts, and what has been told of them."""

    def __init__(self, asked: CompletionRequest, speaker: Speaker, model: str, limits: ServeConfig) -> None:
        """Encodes the prompts, which takes a while for long ones."""
        self.asked, self.model = asked, model
        self.seed = secrets.randbelow(1 << 31) if asked.seed is None else asked.seed
        self._refuse_too_much(limits)
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        rules, context = asked.rules(), speaker.model.config.context
        self.texts: list[tuple[Growing, Continuation]] = []
        self._tellers: list[_Teller] = []
        self.prompt_tokens = self.forgotten = 0
        for prompt in asked.prompts:
            ids, text = _read(prompt, speaker)
            self.prompt_tokens += len(ids)
            if self.prompt_tokens > limits.prompt_tokens:
                raise MistakeError(
                    "prompt", f"more than {limits.prompt_tokens:,} tokens, which this server takes at most"
                )
            forgotten = window_start(len(ids), context)
            self.forgotten = max(self.forgotten, forgotten)
            for seed in range(self.seed, self.seed + (asked.n or 1)):
                growing = Growing(ids, rules, seed, asked.max_tokens or 16, asked.logprobs)
                self.texts.append((growing, Continuation(speaker.tokenizer, text, stops, seed, forgotten)))
                self._tellers.append(_Teller(speaker, text, asked))

    def _refuse_too_much(self, limits: ServeConfig) -> None:
        if (self.asked.max_tokens or 16) > limits.max_tokens:
            raise MistakeError("max_tokens", f"this server continues a text by {limits.max_tokens:,} tokens at most")
        if len(self.asked.prompts) * (self.asked.n or 1) > limits.texts:
            raise MistakeError("n", f"prompts times n are more than {limits.texts}, which this server takes at most")
        texts, tokens = len(self.asked.prompts) * (self.asked.n or 1), self.asked.max_tokens or 16
        if texts * tokens * (1 + (self.asked.logprobs or 0)) > limits.numbers:
            raise MistakeError("logprobs", f"an answer of more than {limits.numbers:,} numbers; ask for less at a time")

    def opening(self) -> list[dict[str, Any]]:
        """Before the first token: with `echo`, the prompts."""
        if not self.asked.echo:
            return []
        return [self._chunk(index, text.prompt, None, None) for index, (_, text) in enumerate(self.texts)]

    def chunks(self, added: list[Added]) -> list[dict[str, Any]]:
        """For a stream: one for each text that grew or ended."""
        told = []
        for each in added:
            piece, logprobs = self._tellers[each.index].tell(each)
            if piece or each.ended:
                told.append(self._chunk(each.index, piece, logprobs, each.ended))
        return told

    def last_chunk(self) -> dict[str, Any]:
        return self._frame([]) | {"usage": self._usage()}

    def whole(self, added: list[Added]) -> dict[str, Any]:
        """The answer, from everything that was added."""
        for each in added:
            self._tellers[each.index].tell(each, keep=True)
        choices = []
        for index, ((_, text), teller) in enumerate(zip(self.texts, self._tellers, strict=True)):
            shown = (text.prompt if self.asked.echo else "") + text.text
            choices.append(_choice(index, shown, teller.logprobs(), text.ended))
        return self._frame(choices) | {"usage": self._usage()}

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, ended: str | None) -> dict[str, Any]:
        wants_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        return self._frame([_choice(index, text, logprobs, ended)]) | ({"usage": None} if wants_usage else {})

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {"id": self._id, "object": "text_completion", "created": self._created, "model": self.model}
        return frame | {"choices": choices, "hornbook": {"seed": self.seed, "forgotten": self.forgotten}}

    def _usage(self) -> dict[str, int]:
        new = sum(len(text.tokens) for _, text in self.texts)
        total = self.prompt_tokens + new
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": total}

    def job(self, tell: Any) -> Job:
        return Job(self.texts, tell)


class _Teller:
    """Tokens of one text in OpenAI's form: those whose text is out already, and those that wait for the rest of a
    character, or of what may become a stop string."""

    def __init__(self, speaker: Speaker, prompt: str, asked: CompletionRequest) -> None:
        self._tokenizer, self._wanted = speaker.tokenizer, asked.logprobs
        self._stream = speaker.tokenizer.stream(continues=bool(prompt))
        self._offset = self._out = len(prompt) if asked.echo else 0
        self._pending: list[tuple[Chosen, int]] = []

    def tell(self, added: Added, keep: bool = False) -> tuple[str, dict[str, Any] | None]:
        """The piece, and the logprobs of the tokens that it completes; `keep` them for the end instead."""
        self._out += len(added.piece)
        if self._wanted is None:
            return added.piece, None
        if added.chosen is not None:
            self._pending.append((added.chosen, self._offset))
            self._offset += len(self._stream.feed(added.chosen.id))
        if added.ended == "stop":  # what stands behind the cut was never said
            self._pending = [(chosen, offset) for chosen, offset in self._pending if offset < self._out]
        if keep:
            return added.piece, None
        # What may yet be cut off by a stop string waits, also where text that came before it is out.
        waiting = [] if added.ended else [each for each in self._pending if each[1] >= self._out]
        self._pending = self._pending[: len(self._pending) - len(waiting)]
        told = self.logprobs() if self._pending or added.ended else None
        self._pending = waiting
        return added.piece, told

    def logprobs(self) -> dict[str, Any] | None:
        if self._wanted is None:
            return None
        return {
            "tokens": [self._name(chosen.id) for chosen, _ in self._pending],
            "token_logprobs": [chosen.logprob for chosen, _ in self._pending],
            "top_logprobs": [self._alternatives(chosen) for chosen, _ in self._pending],
            "text_offset": [offset for _, offset in self._pending],
        }

    def _alternatives(self, chosen: Chosen) -> dict[str, float]:
        named: dict[str, float] = {}
        for token, value in chosen.alternatives:  # the likeliest first, and of two with the same text it stays
            named.setdefault(self._name(token), value)
        return named

    def _name(self, token: int) -> str:
        """Its text, or where it is but a part of a character, its bytes as OpenAI spells them."""
        if token >= self._tokenizer.vocab_size:
            return ""
        piece = self._tokenizer.piece(token)
        try:
            return piece.decode() or self._tokenizer.name(token)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, ended: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": FINISHED.get(ended or "")}


def _read(prompt: str | list[int], speaker: Speaker) -> tuple[list[int], str]:
    """A prompt's ids, and its text."""
    if isinstance(prompt, str):
        try:
            return speaker.tokenizer.encode_prompt(prompt), prompt
        except UserError as error:
            raise MistakeError("prompt", str(error)) from None
    known = speaker.tokenizer.vocab_size
    if wrong := [each for each in prompt if not 0 <= each < known]:
        raise MistakeError("prompt", f"{wrong[0]} is no id of this model: it has {known:,}")
    return prompt, speaker.decode(prompt)
