"""A completion, as OpenAI's clients ask for it and read it.

In: a request's JSON, and what an engine adds to its texts.  Out: texts to continue, and the answer, at once or in
chunks.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from hornbook.base.errors import UserError
from hornbook.infer.config import SamplerConfig
from hornbook.infer.continuation import Continuation
from hornbook.infer.decode import Chosen, Growing
from hornbook.infer.speaker import Speaker
from hornbook.serve.answers import Choice, CompletionAnswer, Logprobs
from hornbook.serve.engine import Added
from hornbook.serve.refusals import ApiError
from hornbook.text.tokenizer import Tokenizer

MAX_TOKENS = 4096  # new ones of a text
TEXTS = 32  # prompts times n
PROMPT_TOKENS = 65_536  # of all prompts together
NUMBERS = 500_000  # texts times tokens times a probability and its alternatives
MOST_NAMES = 20
LARGEST_SEED = (1 << 63) - 1
EXAMPLE: JsonDict = {"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.8, "seed": 1, "stop": ["\n\n"]}
COLDEST = 0.01  # below, but for 0, fp32 has no room for what logits become
FINISHED: dict[str | None, Literal["stop", "length"]] = {"end_of_text": "stop", "stop": "stop", "length": "length"}
# One mistake in a list is enough: a body has room for a million of them.
Ids = Annotated[list[int], Field(min_length=1, fail_fast=True)]


class MistakeError(ApiError):
    """A request that cannot be answered: what is wrong with which of its fields."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(400, f"{param}: {message}", param=param)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    """A last chunk before the end tells the numbers of tokens."""
    include_obfuscation: bool = False
    """Of no effect."""


def _describe(schema: JsonDict) -> None:
    """Null may stand for what is left out."""
    schema["examples"] = [EXAMPLE]
    fields: Any = schema["properties"]
    for name, field in fields.items():
        if name != "prompt" and "anyOf" not in field:
            kind = {each: field.pop(each) for each in field.keys() - {"title", "description", "default"}}
            field["anyOf"] = [kind, {"type": "null"}]


class CompletionRequest(SamplerConfig):
    """The sampler's knobs and OpenAI's fields, with OpenAI's defaults."""

    model_config = ConfigDict(json_schema_extra=_describe)

    model: str | None = None
    """An id of /v1/models; may be left out where one model is served."""
    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
    ) = ""
    """What to continue: a text or the ids of one, or several of either. An empty text begins a document."""
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=100)
    """0 always takes the likeliest token; else at least 0.01."""
    top_p: float | None = Field(1.0, gt=0, le=1)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    """Only 0."""
    n: int = Field(1, ge=1)
    """So many continuations of each prompt, with the seeds from `seed` on."""
    best_of: int | None = None
    """Only as many as n."""
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    """The same seed gives the same text; where there is none, one is drawn, and told in the answer."""
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] = ""
    """The text ends before the first of these."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Of each token its log-probability, and so many alternatives."""
    echo: bool = False
    """Let the text begin with the prompt."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    suffix: Literal[""] = ""
    """Only empty."""
    logit_bias: dict[str, float] = Field({}, max_length=0)
    """Only empty."""
    user: str | None = None
    """Of no effect."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, fields: Any) -> Any:
        """Null is what was left out, and far too much is refused before pydantic looks at all of it: to word a megabyte
        of mistakes would keep everybody waiting for a second."""
        if not isinstance(fields, dict):
            return fields
        if found := list(_far_too_much(fields, set(cls.model_fields))):
            raise PydanticCustomError("combination", "far too much", {"found": found})
        return {name: value for name, value in fields.items() if value is not None or name == "prompt"}

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.temperature and self.temperature < COLDEST:
            yield "temperature", f"should be 0, or at least {COLDEST}"
        if self.best_of not in (None, self.n):
            yield "best_of", "only as many as n are drawn; leave it out"
        if self.stream_options is not None and not self.stream:
            yield "stream_options", "goes with stream: true"
        if self.echo and self.logprobs is not None:
            yield "echo", "does not go with logprobs: the prompt's tokens are not scored"
        texts = len(self.prompts) * self.n
        if self.max_tokens > MAX_TOKENS:
            yield "max_tokens", f"this server continues a text by {MAX_TOKENS:,} tokens at most"
        elif texts > TEXTS:
            yield "n", f"prompts times n are more than {TEXTS}, which this server takes at most"
        elif texts * self.max_tokens * (1 + (self.logprobs or 0)) > NUMBERS:
            yield "logprobs", f"an answer of more than {NUMBERS:,} numbers; ask for less at a time"

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item,return-value]

    def rules(self) -> SamplerConfig:
        return SamplerConfig.model_validate(self.model_dump(include=set(SamplerConfig.model_fields)))


def _far_too_much(fields: dict[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
    if len(fields) > len(known):
        yield from islice(((name[:80], "no such field") for name in fields if name not in known), MOST_NAMES)
    for name in known:
        value = fields.get(name)
        if isinstance(value, dict) and len(value) > MOST_NAMES:
            yield name, f"an object of {len(value):,} names"
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) > TEXTS:
        most, what = (PROMPT_TOKENS, "ids") if isinstance(prompt[0], int) else (TEXTS, "texts")
        if len(prompt) > most:
            yield "prompt", f"more than {most:,} {what}, which this server takes at most"


class Completion:
    """One request on its way: its texts, and what has been told of them."""

    def __init__(self, asked: CompletionRequest, speaker: Speaker, model: str) -> None:
        """Encodes the prompts, which takes a while for long ones."""
        self.asked, self.model, self._tokenizer = asked, model, speaker.tokenizer
        self.seed = secrets.randbelow(1 << 31) if asked.seed is None else asked.seed
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self.texts: list[tuple[Growing, Continuation]] = []
        self.prompt_tokens = 0
        for prompt in asked.prompts:
            ids, text = ids_and_text(prompt, speaker)
            self.prompt_tokens += len(ids)
            if self.prompt_tokens > PROMPT_TOKENS:
                raise MistakeError("prompt", f"more than {PROMPT_TOKENS:,} tokens, which this server takes at most")
            self.texts += speaker.begin(
                ids,
                text,
                asked.rules(),
                n=asked.n,
                max_tokens=asked.max_tokens,
                seed=self.seed,
                stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop,
                logprobs=asked.logprobs,
            )
        self.forgotten = max(text.forgotten for _, text in self.texts)
        self._told = [0] * len(self.texts)  # tokens of each

    def opening(self) -> list[CompletionAnswer]:
        """Before the first token: with `echo`, the prompts."""
        if not self.asked.echo:
            return []
        return [self._chunk(_choice(index, text.prompt, None, None)) for index, (_, text) in enumerate(self.texts)]

    def chunks(self, added: list[Added]) -> list[CompletionAnswer]:
        """For a stream: one for each text that grew or ended."""
        told = []
        for each in added:
            logprobs = self._newly_told(each)
            if each.piece or each.ended:
                told.append(self._chunk(_choice(each.index, each.piece, logprobs, each.ended)))
        return told

    def last_chunk(self) -> CompletionAnswer:
        return self._with_usage([])

    def whole(self) -> CompletionAnswer:
        """The answer, once all texts have ended."""
        choices = []
        for index, (_, text) in enumerate(self.texts):
            said = self._certain(text, len(text.tokens), len(text.text), text.ended)
            shown = (text.prompt if self.asked.echo else "") + text.text
            choices.append(_choice(index, shown, self._logprobs(text, 0, said), text.ended))
        return self._with_usage(choices)

    def _newly_told(self, added: Added) -> Logprobs | None:
        """Of the tokens whose text is out now. The engine may be further with the text than what it added here."""
        text, first = self.texts[added.index][1], self._told[added.index]
        last = self._told[added.index] = self._certain(text, added.tokens, added.characters, added.ended)
        return self._logprobs(text, first, last) if last > first or added.ended else None

    def _certain(self, text: Continuation, tokens: int, characters: int, ended: str | None) -> int:
        """How many tokens no stop string cuts off any more: those that begin before the end of what is out."""
        return tokens if ended not in (None, "stop") else bisect_left(text.starts, characters, 0, tokens)

    def _logprobs(self, text: Continuation, first: int, last: int) -> Logprobs | None:
        if self.asked.logprobs is None:
            return None
        tokens, echoed = text.tokens[first:last], len(text.prompt) if self.asked.echo else 0
        return {
            "tokens": [name_of(each.id, self._tokenizer) for each in tokens],
            "token_ids": [each.id for each in tokens],
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [self._alternatives(each) for each in tokens],
            "text_offset": [echoed + start for start in text.starts[first:last]],
        }

    def _alternatives(self, chosen: Chosen) -> dict[str, float]:
        named: dict[str, float] = {}
        for token, value in chosen.alternatives:  # the likeliest first, and of two with the same text it stays
            named.setdefault(name_of(token, self._tokenizer), value)
        return named

    def _chunk(self, choice: Choice) -> CompletionAnswer:
        frame = self._frame([choice])
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            frame["usage"] = None
        return frame

    def _with_usage(self, choices: list[Choice]) -> CompletionAnswer:
        new = sum(len(text.tokens) for _, text in self.texts)
        frame, total = self._frame(choices), self.prompt_tokens + new
        frame["usage"] = {"prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": total}
        return frame

    def _frame(self, choices: list[Choice]) -> CompletionAnswer:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self.model,
            "choices": choices,
            "hornbook": {"seed": self.seed, "forgotten": self.forgotten},
        }


def name_of(token: int, tokenizer: Tokenizer) -> str:
    """Its text, or where it is but a part of a character, its bytes as OpenAI spells them."""
    if token >= tokenizer.vocab_size:
        return ""
    piece = tokenizer.piece(token)
    try:
        return piece.decode() or tokenizer.name(token)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _choice(index: int, text: str, logprobs: Logprobs | None, ended: str | None) -> Choice:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": FINISHED.get(ended)}


def ids_and_text(prompt: str | list[int], speaker: Speaker) -> tuple[list[int], str]:
    if isinstance(prompt, str):
        try:
            return speaker.tokenizer.encode_prompt(prompt), prompt
        except UserError as error:
            raise MistakeError("prompt", str(error)) from None
    check_ids("prompt", prompt, speaker)
    return prompt, speaker.decode(prompt)


def check_ids(param: str, ids: Sequence[int], speaker: Speaker) -> None:
    known = speaker.tokenizer.vocab_size
    if wrong := [each for each in ids if not 0 <= each < known]:
        raise MistakeError(param, f"{wrong[0]} is no id of this model: it has {known:,}")
