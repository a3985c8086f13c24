"""A look at texts before anything is trained on them.

In: the facts of corpora; or documents, and a kind of tokenizer.  Out: what there is and what it costs; or the first
documents cut into tokens, and how long they are. A look into a text reads only its beginning, so that it answers at
once for a text of any size.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hornbook.base.console import command, count, say, table
from hornbook.text.corpora import find_corpus, find_source, is_corpus
from hornbook.text.gpt2 import RANKS, ranks_at_hand
from hornbook.text.learning import TokensConfig
from hornbook.text.records import Document
from hornbook.text.tokenizer import LEARNED, Tokenizer, TokenizerConfig, refuse_ids, train_tokenizer

READ_BYTES = 4_000_000
READ_DOCUMENTS = 20_000
SHOWN_TOKENS = 160
COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


def look_into(name: str, config: TokensConfig) -> Look:
    """Of a corpus to be fetched, the first file is enough."""
    source = find_source(name, config.text, most_files=1)
    more = False
    if is_corpus(name):
        corpus, choice = find_corpus(name)
        more = len(corpus.files(choice)) > 1
    return Look.at(source.documents(), config.tokenizer, more)


@dataclass(frozen=True)
class Look:
    documents: list[Document]
    ids: list[list[int]]
    tokenizer: Tokenizer
    all_read: bool

    @classmethod
    def at(cls, documents: Iterator[Document], config: TokenizerConfig, more: bool = False) -> Look:
        """The text's beginning; where a vocabulary is learned, it is from that. `more` says that there is some which
        `documents` do not bring."""
        read: list[Document] = []
        text_bytes = 0
        for document in itertools.islice(documents, READ_DOCUMENTS):
            if document.ids is not None:
                refuse_ids(config.kind, document.name)
            read.append(document)
            text_bytes += len(document.text.encode()) if document.ids is None else document.ids.nbytes
            if text_bytes >= READ_BYTES:
                break
        tokenizer = train_tokenizer(config, (document.text for document in read), text_bytes)
        ids = tokenizer.encode_batch([document.text for document in read])
        for place, document in enumerate(read):
            if document.ids is not None:
                ids[place] = tokenizer.checked(document.ids, document.name)
        return cls(read, ids, tokenizer, not more and next(documents, None) is None)

    def pieces(self, ids: list[int]) -> list[bytes]:
        return _pieces(self.tokenizer, ids[:SHOWN_TOKENS])

    def histogram(self) -> list[tuple[int, int]]:
        """(least tokens, documents): each row reaches to twice its least."""
        rows: dict[int, int] = {}
        for ids in self.ids:
            least = 1 << (len(ids).bit_length() - 1) if ids else 0
            rows[least] = rows.get(least, 0) + 1
        return sorted(rows.items())

    def as_dict(self, shown: int) -> dict[str, Any]:
        return {
            "documents_read": len(self.documents),
            "all_read": self.all_read,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": sum(map(len, self.ids)),
            "first": [
                {
                    "name": document.name,
                    "split": document.split,
                    "characters": len(document.text),
                    "tokens": len(ids),
                    "ids": ids[:SHOWN_TOKENS],
                    "pieces": [piece_in_sight(piece) for piece in self.pieces(ids)],
                }
                for document, ids in zip(self.documents[:shown], self.ids, strict=False)
            ],
            "histogram": [{"least_tokens": least, "documents": number} for least, number in self.histogram()],
        }

    def show(self, shown: int, kind: str) -> None:
        for document, ids in zip(self.documents[:shown], self.ids, strict=False):
            split = f"{document.split}, " if document.split else ""
            text = f"{len(document.text):,} characters, " if document.ids is None else ""
            say(f"{line_in_sight(document.name)} ({split}{text}{len(ids):,} tokens)")
            show_pieces(self.pieces(ids), len(ids) > SHOWN_TOKENS)
            say(f"ids {' '.join(map(str, ids[:16]))}{' ...' if len(ids) > 16 else ''}\n")
        read = "all" if self.all_read else "the first"
        text_bytes = sum(
            len(document.text.encode()) if document.ids is None else len(self.tokenizer.decode_bytes(ids))
            for document, ids in zip(self.documents, self.ids, strict=True)
        )
        tokens = sum(map(len, self.ids))
        learned = " learned from them" if kind in LEARNED else ""
        say(
            f"{read} {len(self.documents):,} documents: {count(float(text_bytes))} bytes, {tokens:,} tokens of a "
            f"{kind} vocabulary of {self.tokenizer.vocab_size:,}{learned}"
        )
        say("tokens in a document, and how many documents have so many:")
        show_histogram(self.histogram())


@dataclass(frozen=True)
class CutText:
    """A text as tokens, and how many GPT-2's vocabulary makes of it, where that is at hand."""

    tokenizer: Tokenizer
    text_bytes: int
    ids: list[int]
    of_gpt2: int | None

    @classmethod
    def by(cls, tokenizer: Tokenizer, text: str, ranks_file: str | None) -> CutText:
        ids, of_gpt2 = tokenizer.encode(text), None
        if ranks_at_hand(ranks_file):
            gpt2 = train_tokenizer(TokenizerConfig(kind="gpt2", ranks_file=ranks_file), [], 0)
            of_gpt2 = len(gpt2.encode(text))
        return cls(tokenizer, len(text.encode()), ids, of_gpt2)

    def pieces(self) -> list[bytes]:
        return _pieces(self.tokenizer, self.ids)

    def as_dict(self) -> dict[str, Any]:
        own, gpt2 = len(self.ids), self.of_gpt2
        return {
            "ids": self.ids,
            "pieces": [piece_in_sight(piece) for piece in self.pieces()],
            "bytes": self.text_bytes,
            "tokens": own,
            "bytes_per_token": self.text_bytes / own if own else None,
            "gpt2": gpt2 and {"tokens": gpt2, "bytes_per_token": self.text_bytes / gpt2},
        }

    def show(self) -> None:
        show_pieces(self.pieces(), more=False)
        say(f"ids     {' '.join(map(str, self.ids))}")
        say(f"tokens  {self._told(len(self.ids))}, of a vocabulary of {self.tokenizer.vocab_size:,}")
        if self.of_gpt2 is None:
            say(f"GPT-2   its vocabulary is not at hand to compare; name a local copy: --ranks-file {RANKS}")
        else:
            say(f"GPT-2   {self._told(self.of_gpt2)}")

    def _told(self, tokens: int) -> str:
        return f"{tokens:,} for {self.text_bytes:,} bytes" + (
            f": {self.text_bytes / tokens:.2f} bytes per token" if tokens else ""
        )


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[bytes]:
    """What tokens stand for; those that stand for no text, by their names."""
    return [tokenizer.piece(token, place == 0) or tokenizer.name(token).encode() for place, token in enumerate(ids)]


def piece_in_sight(piece: bytes) -> str:
    """A token's bytes as text that can be seen, and does nothing to a terminal."""
    return line_in_sight(piece.decode("utf-8", errors="backslashreplace"))


def line_in_sight(text: str) -> str:
    shown = {"\n": "↵", "\t": "⇥", "\r": "␍"}
    return "".join(
        shown.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )


def show_pieces(pieces: Sequence[bytes], more: bool) -> None:
    """Tokens in alternating colours on a terminal, between bars elsewhere; a line ends where the text's does."""
    texts = [piece_in_sight(piece) for piece in pieces] + (["..."] if more else [])
    if not sys.stdout.isatty():
        say("|" + "|".join(texts).replace("↵|", "↵\n|") + "|")
        return
    from rich.console import Console
    from rich.text import Text

    line = Text()
    for number, text in enumerate(texts):
        line.append(text, style=COLOURS[number % len(COLOURS)])
        line.append("\n" if "↵" in text else "")
    Console(highlight=False).print(line)


def show_histogram(rows: Sequence[tuple[int, int]]) -> None:
    most = max((number for _, number in rows), default=1)
    room = max(min(shutil.get_terminal_size().columns, 100) - 32, 10)
    for least, number in rows:
        span = f"{least:,} to {2 * least - 1:,}" if least > 1 else str(least)
        say(f"{span:>20} {number:>8,} {'#' * max(round(room * number / most), 1)}")


def show_corpora(every: Sequence[dict[str, Any]]) -> None:
    rows = []
    for facts in every:
        about = "" if facts["exact"] else "about "
        cost = f"{about}{count(float(facts['bytes_to_fetch']))}" if facts["bytes_to_fetch"] else "-"
        here, splits = count(float(facts["bytes_here"])), ", ".join(facts["splits"])
        rows.append((facts["name"], here, cost, splits, facts["licence"], facts["about"]))
    table(("corpus", "bytes here", "bytes to fetch", "splits", "licence", "what it is"), rows)
    say(f"\nnext:  {command('corpora', 'NAME', '--show')}    {command('train', '--data', 'NAME')}")


def show_corpus(facts: dict[str, Any]) -> None:
    for key in ("name", "about", "licence", "origin", "folder"):
        say(f"{key:8} {facts[key]}")
    if facts["switches"]:
        say()
        rows = [(each["name"], each["chosen"], each["values"], each["about"]) for each in facts["switches"]]
        table(("switch", "chosen", "of", "what it does"), rows)
    if facts["files"]:
        say()
        files = []
        for each in facts["files"]:
            size = ("" if each["exact"] else "about ") + f"{each['bytes']:,}"
            files.append((each["name"], each["split"], size, each["proof"], "here" if each["here"] else "to fetch"))
        table(("file", "split", "bytes", "proven by", ""), files)
