"""A vocabulary is learned from a text.

In: knobs, and a text; or the pieces of one that are to be trained on.  Out: its tokenizer. The trainers are Rust, which
hears no Ctrl-C, so they work in a thread of their own, beside one that waits and shows how far they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, wait

from hornbook.base.background import Background
from hornbook.base.console import Progress, count, duration
from hornbook.base.errors import UserError
from hornbook.base.settings import Settings
from hornbook.text.documents import TextConfig
from hornbook.text.readers import Source
from hornbook.text.tokenizer import LEARNED, Tokenizer, TokenizerConfig, refuse_ids, train_tokenizer

SHOWN_EVERY_SECONDS = 0.5


class TokensConfig(Settings):
    """How a text is read, and cut into tokens."""

    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()


def learn_from(source: Source, config: TokenizerConfig, progress: Progress) -> Tokenizer:
    """From all of a text, or from what of a corpus is to be trained on."""
    if config.kind not in LEARNED:
        raise UserError(f"--kind {config.kind}: nothing of it is learned; take one of {', '.join(LEARNED)}")

    def pieces() -> Iterator[bytes]:
        for document in source.documents():
            if document.ids is not None:
                refuse_ids(config.kind, document.name)
            if document.split in ("", "train"):
                yield document.text.encode()

    return learn(config, pieces(), source.likely_bytes_of_text(), source.name, progress)


def learn(
    config: TokenizerConfig, pieces: Iterable[bytes], text_bytes: int, name: str, progress: Progress
) -> Tokenizer:
    """From the beginning of a text of about so many bytes."""
    began, read = time.monotonic(), 0

    def texts() -> Iterator[str]:
        nonlocal read
        for piece in pieces:
            if learning.left:
                raise CancelledError
            read += len(piece)
            yield piece.decode()
            if read >= config.train_bytes:
                return

    sample = count(float(min(text_bytes, config.train_bytes)))
    what = f"learning a {config.kind} vocabulary from {sample} bytes of {name}"
    with Background() as learning:
        tokenizer = learning.submit(train_tokenizer, config, texts(), text_bytes)
        progress.update(what)
        while wait([tokenizer], SHOWN_EVERY_SECONDS).not_done:
            progress.update(f"{what}: {count(float(read))} read, {duration(time.monotonic() - began)}")
        return tokenizer.result()
