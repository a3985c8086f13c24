"""A trained model with its tokenizer: what `hornbook.load` hands out.

In: a model folder or a run.  Out: text for prompts, at once or as it comes, and the score or the embedding of a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.errors import UserError
from hornbook.base.machine import Machine, choose_machine
from hornbook.base.settings import meant
from hornbook.infer.attended import Attended, attended_by
from hornbook.infer.beams import beam_search
from hornbook.infer.config import SamplerConfig
from hornbook.infer.continuation import Continuation
from hornbook.infer.decode import ROWS, Chosen, Growing, grow, window_start
from hornbook.infer.embedding import Embedding, embedding_of
from hornbook.infer.quantize import dtype_of_cache, prepare_to_speak
from hornbook.infer.sampler import FILTERS
from hornbook.infer.score import Score, score
from hornbook.model.folder import load_model
from hornbook.runs.folder import resolve
from hornbook.shards.format import TokenArray
from hornbook.text.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "int8")
DRAWN = {"seed", "temperature", "top_k", "top_p", *FILTERS}
OF_BEGIN = {"n", "max_tokens", "seed", "stop", "logprobs"}  # options that are no rules of the sampler


class Speaker:
    """Generates, streams, scores, embeds, encodes and decodes, and tells what it looked at.

    What generates takes these options: `max_tokens`; `seed`; `n` continuations of each prompt, with the seeds from
    `seed` on; `stop`, strings before the first of which a text ends; `logprobs`, to be told of each token its
    log-probability and so many alternatives; `specials`, to read special tokens out of the prompt; and SamplerConfig's
    knobs.
    """

    def __init__(self, folder: Path, device: str | None = None, dtype: str | None = None) -> None:
        machine = machine_to_speak(device, dtype)
        self.folder = folder
        dtype = dtype or "float32"
        self.model = prepare_to_speak(load_model(folder, machine.device, machine.torch_dtype), dtype)
        self.cache_dtype = dtype_of_cache(self.model, dtype)
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

    def stream(self, prompt: str = "", **options: Any) -> Iterator[str]:
        """The continuation of `prompt`, whole characters as they come."""
        for _, piece in self.stream_batch([prompt], **options):
            if piece:
                yield piece

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The continuation of `prompt`, all at once."""
        return "".join(self.stream(prompt, **options))

    def stream_batch(
        self, prompts: Sequence[str], *, rows: int = ROWS, **options: Any
    ) -> Iterator[tuple[Continuation, str]]:
        """The continuations of many prompts, each with what was added to it, as it comes; `rows` are computed at
        once."""
        return self._grown(self._begun(prompts, **options), rows)  # wrong options are told before anything is said

    def generate_batch(self, prompts: Sequence[str], *, rows: int = ROWS, **options: Any) -> list[Continuation]:
        """The continuations of many prompts, all at once, in the order of the prompts."""
        begun = self._begun(prompts, **options)
        for _ in self._grown(begun, rows):
            pass
        return list(begun.values())

    def beam_search(
        self,
        prompt: str = "",
        *,
        beams: int,
        n: int = 1,
        length_penalty: float = 1.0,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        specials: bool = False,
        **penalties: Any,
    ) -> list[Continuation]:
        """The `n` best of so many beams. Of the sampler's rules, the penalties apply; nothing is drawn."""
        if drawn := sorted(penalties.keys() & DRAWN):
            raise UserError(f"{drawn[0]}: beam search draws nothing; leave it out, or the beams")
        if not 1 <= n <= beams:
            raise UserError(
                f"{n} continuations of {beams} beams: should be at least 1, and no more than there are beams"
            )
        ids = self.tokenizer.encode_prompt(prompt, specials)
        forgotten = window_start(len(ids), self.model.config.context)

        def read(tokens: Iterable[Chosen], ended: str | None) -> Continuation:
            continuation = Continuation(self.tokenizer, prompt, stop, forgotten=forgotten)
            for token in tokens:
                continuation.feed(token, None)
            continuation.feed(None, ended)
            return continuation

        found = beam_search(
            self.model,
            ids,
            _sampler(penalties),
            beams=beams,
            length_penalty=length_penalty,
            max_tokens=max_tokens,
            alternatives=logprobs,
            end_of_text=self.tokenizer.stop,
            known_ids=self.tokenizer.vocab_size,
            cache_dtype=self.cache_dtype,
            is_stopped=lambda new: bool(stop) and read(map(Chosen, new), None).ended == "stop",
        )
        continuations = [read(beam.tokens, beam.ended) for beam in found[:n]]
        for continuation, beam in zip(continuations, found, strict=False):
            continuation.score = beam.score
        return continuations

    def begin(
        self,
        ids: list[int],
        prompt: str,
        rules: SamplerConfig,
        *,
        n: int = 1,
        max_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> list[tuple[Growing, Continuation]]:
        """The continuations of a prompt, given as ids and as the text that they stand for, before their first token."""
        forgotten = window_start(len(ids), self.model.config.context)
        return [
            (
                Growing(ids, rules, own, max_tokens, logprobs),
                Continuation(self.tokenizer, prompt, stop, own, forgotten),
            )
            for own in range(seed, seed + n)
        ]

    def _begun(self, prompts: Sequence[str], *, specials: bool = False, **options: Any) -> dict[Growing, Continuation]:
        rules = _sampler({name: value for name, value in options.items() if name not in OF_BEGIN})
        options = {name: value for name, value in options.items() if name in OF_BEGIN}
        begun: list[tuple[Growing, Continuation]] = []
        for prompt in prompts:
            begun += self.begin(self.tokenizer.encode_prompt(prompt, specials), prompt, rules, **options)
        return dict(begun)

    def _grown(self, begun: dict[Growing, Continuation], rows: int) -> Iterator[tuple[Continuation, str]]:
        for growing, token in grow(
            self.model,
            list(begun),
            rows=rows,
            end_of_text=self.tokenizer.stop,
            known_ids=self.tokenizer.vocab_size,
            cache_dtype=self.cache_dtype,
        ):
            continuation = begun[growing]
            piece = continuation.feed(token, growing.ended)
            growing.ended = continuation.ended
            yield continuation, piece

    def score(self, text: str) -> Score:
        """Loss, perplexity and bits per byte of a text under the model."""
        ids = [*(self.tokenizer.opening or [self.tokenizer.end_of_text]), *self.encode(text)]
        tokens = TokenArray([np.asarray(ids, dtype=np.uint32)])
        return self.score_tokens(tokens, len(text.encode()))

    def score_tokens(self, tokens: TokenArray, text_bytes: int) -> Score:
        if len(tokens) < 2:
            raise UserError("nothing to score: the text is empty")
        return score(self.model, tokens, self.model.config.context, text_bytes)

    def embed(self, text: str, specials: bool = False) -> Embedding:
        """The states from which the model would go on: `per_token`, of each of `ids`, and their mean, `pooled`. The ids
        are those of a prompt."""
        return embedding_of(self.model, self.tokenizer.encode_prompt(text, specials))

    def attention(self, text: str, specials: bool = False) -> Attended:
        """What each token of a text looked at: of its `ids`, those of a prompt, the `weights` by layer and head,
        (L, H, T, T)."""
        ids, context = self.tokenizer.encode_prompt(text, specials), self.model.config.context
        if len(ids) > context:
            raise UserError(f"{len(ids):,} tokens, and the model reads {context:,} at a time: give it a shorter text")
        return attended_by(self.model, ids)

    def __repr__(self) -> str:
        config = self.model.config
        return f"Speaker({str(self.folder)!r}, {config.n_params():,} parameters, context {config.context})"


def _sampler(rules: dict[str, Any]) -> SamplerConfig:
    known = list(SamplerConfig.model_fields)
    for name in rules.keys() - set(known):  # only from Python: a command knows its options
        raise UserError(f"{name}: no such option; " + meant(name, known, f"there are {', '.join(known)}"))
    return SamplerConfig().with_(**rules)


def machine_to_speak(device: str | None, dtype: str | None) -> Machine:
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype: no number type is called {dtype}; use {', '.join(DTYPES)}")
    return choose_machine(device, "bfloat16" if dtype == "bfloat16" else "float32")


def load_speaker(path: Path, at: str = "best", device: str | None = None, dtype: str | None = None) -> Speaker:
    """Also while the run trains, and lets go of old checkpoints: where the one that is meant goes meanwhile, again."""
    while True:
        folder = resolve(path, at)
        try:
            return Speaker(folder, device, dtype)
        except (UserError, OSError):
            if folder.exists():
                raise
