"""What a model said after a prompt.

In: tokens one by one, and what ended them.  Out: text in whole characters, up to the first stop string; and for each
token what the model thought of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hornbook.infer.decode import Chosen
from hornbook.text.tokenizer import Tokenizer


class StopFinder:
    """Text goes in by pieces and comes out up to the stop string that is complete first; what could yet become one is
    held back. Where pieces end makes no difference."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached: str | None = None

    def feed(self, piece: str) -> str:
        if self.reached is not None:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.reached = min(found)
            self._held = ""
            return text[:start]
        longest = max(map(len, self._stops), default=1) - 1
        ends = (text[-length:] for length in range(min(longest, len(text)), 0, -1))
        self._held = next((end for end in ends if any(stop.startswith(end) for stop in self._stops)), "")
        return text[: len(text) - len(self._held)]

    def end(self) -> str:
        rest, self._held = self._held, ""
        return rest


class Continuation:
    """A text that grows, or has grown, after a prompt."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: str, stops: Sequence[str] = (), seed: int | None = None, forgotten: int = 0
    ) -> None:
        self.prompt, self.seed = prompt, seed
        self.forgotten = forgotten
        """So many tokens of the prompt stood before the window already when the text began."""
        self.text = ""
        self.tokens: list[Chosen] = []
        """All that were taken: also those whose text a stop string cut off."""
        self.starts: list[int] = []
        """How many characters had been said before each of them."""
        self.ended: str | None = None
        """`end_of_text`, `stop` or `length`."""
        self.score: float | None = None
        """Of a beam."""
        self._tokenizer, self._finder = tokenizer, StopFinder(stops)
        self._stream, self._said = tokenizer.stream(continues=bool(prompt)), 0

    def __repr__(self) -> str:
        return f"Continuation({self.text!r}, ended={self.ended!r})"

    def feed(self, chosen: Chosen | None, ended: str | None) -> str:
        """Take in a token, and what ended the text with it; hand out the text that is certain now."""
        piece = ""
        if chosen is not None:
            self.tokens.append(chosen)
            self.starts.append(self._said)
            heard = self._stream.feed(chosen.id)
            self._said += len(heard)
            piece = self._finder.feed(heard)
        if ended is not None and self._finder.reached is None:
            piece += self._finder.feed(self._stream.end())
            piece += self._finder.end()
        self.ended = "stop" if self._finder.reached is not None else ended
        self.text += piece
        return piece

    def as_dict(self) -> dict[str, Any]:
        facts = {"prompt": self.prompt, "text": self.text, "ended": self.ended, "forgotten": self.forgotten}
        known = {name: value for name, value in (("seed", self.seed), ("score", self.score)) if value is not None}
        return facts | known | {"tokens": [self._token(each) for each in self.tokens]}

    def _token(self, chosen: Chosen) -> dict[str, Any]:
        facts: dict[str, Any] = self._named(chosen.id)
        if chosen.logprob is not None:
            facts["logprob"] = chosen.logprob
            facts["alternatives"] = [self._named(token) | {"logprob": value} for token, value in chosen.alternatives]
        return facts

    def _named(self, token: int) -> dict[str, Any]:
        if token >= self._tokenizer.vocab_size:
            return {"id": token, "text": ""}
        return {"id": token, "text": self._tokenizer.piece(token).decode("utf-8", errors="replace")}
