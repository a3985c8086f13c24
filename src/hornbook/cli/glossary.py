"""What the words mean that the other commands say.

In: a word.  Out: its sentences, from base/glossary.py.
"""

from __future__ import annotations

from hornbook.base.console import command, paragraphs
from hornbook.base.errors import UserError
from hornbook.cli.words import parse, parser_of


def glossary(words: list[str]) -> int:
    parser = parser_of("glossary", "What a word means that Hornbook says; with none, which words there are.")
    parser.add_argument("word", nargs="*", metavar="WORD", help="perplexity, bits per byte, ...")
    asked = " ".join(parse(parser, words).word)
    from hornbook.base.glossary import WORDS, find, plain
    from hornbook.base.settings import meant

    if not asked:
        paragraphs(", ".join(WORDS) + f"\n\n{command('glossary', 'perplexity')} tells one of them.")
        return 0
    word = find(asked)
    if word is None:
        mend = meant(asked.capitalize(), WORDS, "hornbook glossary lists them")
        raise UserError(f"{asked}: not a word of the glossary; {mend}")
    paragraphs(f"{word}\n{plain(word)}")
    return 0
