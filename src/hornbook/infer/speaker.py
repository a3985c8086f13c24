"""A trained model with its tokenizer: what `hornbook.load` hands out.

In: a model folder or a run.  Out: text for a prompt, at once or as it comes, and the score of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.errors import UserError
from hornbook.base.machine import choose_machine
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import generate
from hornbook.infer.score import Score, score
from hornbook.model.folder import load_model, resolve
from hornbook.shards.format import TokenArray
from hornbook.text.tokenizer import Tokenizer


class Speaker:
    """Generates, streams, scores, encodes and decodes."""

    def __init__(self, folder: Path, device: str | None = None, dtype: str | None = None) -> None:
        machine = choose_machine(device, dtype or "float32")
        self.folder = folder
        self.model = load_model(folder, machine.device, machine.torch_dtype)
        self.tokenizer = Tokenizer.load(folder)
        if not self.model.config.fits_vocabulary(self.tokenizer.vocab_size):
            raise UserError(
                f"{folder}: its tokenizer has {self.tokenizer.vocab_size} entries, its model "
                f"{self.model.config.vocab_size}; they do not belong together"
            )

    def encode(self, text: str, specials: bool = False) -> list[int]:
        return self.tokenizer.encode(text, specials)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def stream(
        self, prompt: str = "", *, max_tokens: int = 256, seed: int = 0, specials: bool = False, **rules: Any
    ) -> Iterator[str]:
        """The continuation of `prompt`, whole characters as they come. `specials` reads special tokens out of the
        prompt; `rules` are SamplerConfig's knobs."""
        ids = self.tokenizer.encode_prompt(prompt, specials)
        text = self.tokenizer.stream(continues=bool(prompt))
        chosen = SamplerConfig().with_(**rules)
        end = self.tokenizer.end_of_text
        known = self.tokenizer.vocab_size
        for token in generate(
            self.model, ids, chosen, seed=seed, max_tokens=max_tokens, end_of_text=end, known_ids=known
        ):
            if piece := text.feed(token):
                yield piece
        if rest := text.end():
            yield rest

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The continuation of `prompt`, all at once; options as for `stream`."""
        return "".join(self.stream(prompt, **options))

    def score(self, text: str) -> Score:
        """Loss, perplexity and bits per byte of a text under the model."""
        ids = [*(self.tokenizer.opening or [self.tokenizer.end_of_text]), *self.encode(text)]
        tokens = TokenArray([np.asarray(ids, dtype=np.uint32)])
        return self.score_tokens(tokens, len(text.encode()))

    def score_tokens(self, tokens: TokenArray, text_bytes: int) -> Score:
        if len(tokens) < 2:
            raise UserError("nothing to score: the text is empty")
        return score(self.model, tokens, self.model.config.context, text_bytes)

    def __repr__(self) -> str:
        config = self.model.config
        return f"Speaker({str(self.folder)!r}, {config.n_params():,} parameters, context {config.context})"


def load_speaker(path: Path, at: str = "best", device: str | None = None, dtype: str | None = None) -> Speaker:
    return Speaker(resolve(path, at), device, dtype)
