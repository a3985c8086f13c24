"""Commands of vocabularies: learn one by itself, and see what one makes of a text."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hornbook.base.console import Progress, command, say
from hornbook.base.errors import UserError
from hornbook.base.output import answer, answer_json, going_on
from hornbook.cli.knobs import show_all
from hornbook.cli.words import asks_help, long_forms, parse, parser_of, take_flag

ABOUT = """\
hornbook tokenizer train CORPUS|PATH|PATTERN|- --out FILE [--kind KIND] [--vocab-size N] [--json] [--any.knob VALUE ...]
hornbook tokenizer show  FILE TEXT [--ranks-file FILE] [--json]

Learn a vocabulary from a text, as a step of its own; and see how one cuts a text into tokens, with GPT-2's beside it.
FILE is a tokenizer.json, which other programs read, and for show also the folder of a model.

"""
KNOBS = ("kind", "vocab-size", "train-bytes", "as-published")


def tokenizer(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        from hornbook.text.learning import TokensConfig

        answer(ABOUT)
        show_all(TokensConfig)
        return 0
    commands = {"train": _train, "show": _show}
    if words[0] not in commands:
        raise UserError(f"tokenizer {words[0]}: should be one of {', '.join(commands)}; see hornbook tokenizer --help")
    return commands[words[0]](words[1:])


@going_on()
def _train(words: list[str]) -> int:
    if asks_help(words):
        return tokenizer([])
    from hornbook.base import files
    from hornbook.base.background import ended_by_signals
    from hornbook.base.settings import build, from_words
    from hornbook.text.corpora import find_source
    from hornbook.text.learning import TokensConfig, learn_from

    as_json = take_flag(words, "--json")
    if not words or words[0].startswith("--"):
        raise UserError("tokenizer train: name a text: hornbook tokenizer train my-text.txt --out tokenizer.json")
    data, given = words[0], from_words(TokensConfig, long_forms([_in_full(word) for word in words[1:]]))
    if not isinstance(out := given.pop("out", None), str):
        raise UserError("tokenizer train: say where the vocabulary goes: --out tokenizer.json")
    config, path = build(TokensConfig, given), Path(out)
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already; choose another --out, or move it away")
    progress = Progress(sys.stderr if as_json else None)
    with ended_by_signals(), progress:
        source = find_source(data, config.text, progress=progress)
        learned = learn_from(source, config.tokenizer, progress)
    files.make_folder(path.parent)
    files.write_text(path, learned.to_json())
    if as_json:
        facts = {"kind": config.tokenizer.kind, "vocab_size": learned.vocab_size, "fingerprint": learned.fingerprint}
        answer_json({"file": str(path), **facts})
        return 0
    say(f"learned    a {config.tokenizer.kind} vocabulary of {learned.vocab_size:,} from {source.name}")
    say(f"tokenizer  {path}")
    say(f"next:  {command('tokenizer', 'show', path, 'Once upon a time')}")
    say(f"       {command('train', '--data', data, '--tokenizer.kind', 'file', '--tokenizer.file', path)}")
    return 0


def _in_full(word: str) -> str:
    """A knob of the tokenizer by its own name alone."""
    name, equals, value = word.partition("=")
    return f"--tokenizer.{name[2:]}{equals}{value}" if name[:2] == "--" and name[2:] in KNOBS else word


def _show(words: list[str]) -> int:
    parser = parser_of("tokenizer show", "How a tokenizer cuts a text, and how many tokens GPT-2's makes of it.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a tokenizer.json, or the folder of a model")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--ranks-file", metavar="FILE", help="GPT-2's vocabulary: a local copy of r50k_base.tiktoken")
    parser.add_argument("--json", action="store_true", help="print JSON, for a script to read")
    given = parse(parser, words)
    from hornbook.text.look import CutText
    from hornbook.text.tokenizer import Tokenizer

    cut = CutText.by(Tokenizer.load(given.file), given.text, given.ranks_file)
    if given.json:
        answer_json(cut.as_dict())
    else:
        cut.show()
    return 0
