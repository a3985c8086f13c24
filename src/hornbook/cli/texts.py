"""Commands of texts: prepare them, and look at those that have a name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hornbook.base.console import Progress, command, say, warn
from hornbook.base.errors import UserError
from hornbook.base.output import answer, answer_json, going_on
from hornbook.cli.knobs import show_all
from hornbook.cli.words import asks_help, long_forms, parser_of, take_flag


@going_on()
def prepare_text(words: list[str]) -> int:
    from hornbook.base.background import ended_by_signals
    from hornbook.base.settings import build, from_words
    from hornbook.shards.array import place_in_array, prepare_part
    from hornbook.shards.hdf5 import places_for, write_hdf5
    from hornbook.shards.prepare import Preparation, PrepareConfig, default_folder, prepare
    from hornbook.shards.tasks import Here
    from hornbook.shards.telling import report, too_little
    from hornbook.shards.workers import workers_from
    from hornbook.text.corpora import find_source
    from hornbook.text.readers import joined

    if asks_help(words):
        answer(
            "hornbook prepare CORPUS|PATH|PATTERN|-... [--out FOLDER] [--json] [--errors strict|replace]\n"
            "                 [--max-documents N] [--to hdf5 FILE] [--workers 8|ray|ray://HOST:PORT]\n"
            "                 [--part 3/64] [--any.knob VALUE ...]\n\n"
            "Text to tokens on disk; with --to hdf5 pile.h5 also as pile_train.h5 and pile_val.h5.\n"
            "With --workers 8 so many processes share the work; with ray, or a cluster's address, Ray does.\n"
            "With --part 3/64 this process makes its share of 64, as one of a job array; the last one done\n"
            "puts the shards together. They are the same, byte for byte, whoever prepares them.\n\n"
        )
        show_all(PrepareConfig)
        return 0
    as_json, form = take_flag(words, "--json"), _take_form(words)
    names = []
    while words and not words[0].startswith("--"):
        names.append(words.pop(0))
    if not names:
        raise UserError("prepare: name a corpus or a path: hornbook prepare python-stdlib")
    given = from_words(PrepareConfig, long_forms(words))
    chosen, spread = given.pop("out", None), given.pop("workers", None)
    part = given.pop("part", None)
    knobs = build(PrepareConfig, given)
    places = places_for(form) if form is not None else {}
    workers = None if spread is None else workers_from(str(spread))
    place = None if part is None else place_in_array(str(part))
    progress = Progress(sys.stderr if as_json else None)
    with ended_by_signals(), progress:
        source = joined([find_source(name, knobs.text, progress=progress) for name in names])
        out = Path(str(chosen)) if chosen is not None else default_folder(source, knobs.tokenizer, knobs.shards)
        if place is None:
            shards = prepare(source, knobs.tokenizer, knobs.shards, out, progress, workers)
        else:
            work = Preparation(source, knobs.tokenizer, knobs.shards, out, progress)
            found = prepare_part(work, *place, workers or Here())
            if isinstance(found, int):
                return _told_of_part(*place, found, len(work.shares), as_json)
            shards = found
        written = write_hdf5(shards, places) if places else []
    if doubt := too_little(shards):
        warn(doubt)
    if as_json:
        # Shards that were there already tell of the folder as it was when they were made.
        reading = {"reading": shards.manifest["reading"] | {"left_out_files": source.left_out}}
        also = {"hdf5": [str(path) for path in written]} if written else {}
        answer_json({"folder": str(out), **shards.manifest, **reading, **also})
        return 0
    for line in report(shards.manifest):
        say(line)
    say(f"shards {out}")
    for path in written:
        say(f"hdf5   {path}")
    say(f"next:  {command('train', '--data', out)}")
    return 0


def _told_of_part(number: int, of: int, missing: int, parts: int, as_json: bool) -> int:
    if as_json:
        answer_json({"part": number, "of": of, "parts": parts, "missing_parts": missing})
        return 0
    answer(
        f"{number}/{of} is done; {missing:,} of {parts:,} parts are still missing: whoever makes the last one puts the "
        "shards together, as the same command without --part does\n"
    )
    return 0


def _take_form(words: list[str]) -> Path | None:
    """`--to hdf5 FILE`, taken out of the words."""
    if "--to" not in words:
        return None
    place = words.index("--to")
    _, form, path = [*words[place : place + 3], "", ""][:3]
    if form != "hdf5" or not path or path.startswith("--"):
        raise UserError(f"--to {form}: should be a form and a file: --to hdf5 tokens.h5")
    del words[place : place + 3]
    return Path(path)


def corpora(words: list[str]) -> int:
    parser = parser_of("corpora", "The texts that have a name; of one: its files, its switches, a look into it.")
    parser.add_argument("name", nargs="?", help="a corpus, with its switches: pile:files=0-2")
    parser.add_argument(
        "--show", action="store_true", help="its first documents in tokens; fetches it; takes --tokenizer.*, --text.*"
    )
    parser.add_argument("--documents", type=int, default=3, help="how many of them")
    parser.add_argument("--json", action="store_true", help="print JSON, for a script to read")
    given, knobs = parser.parse_known_args(words)
    if knobs and not given.show:
        raise UserError(f"corpora: {knobs[0]}: only with --show; see hornbook corpora --help")
    if given.show:
        return _show_text(given.name or "", given.documents, knobs, given.json)
    from hornbook.text.corpora import CORPORA, find_corpus
    from hornbook.text.look import show_corpora, show_corpus

    if given.name:
        corpus, choice = find_corpus(given.name)
        facts: Any = corpus.facts(choice)
        show: Any = show_corpus
    else:
        facts = [corpus.facts(corpus.choose([])) for corpus in CORPORA.values()]
        show = show_corpora
    if given.json:
        answer_json(facts)
    else:
        show(facts)
    return 0


def _show_text(name: str, shown: int, knobs: list[str], as_json: bool) -> int:
    from hornbook.base.settings import build, from_words
    from hornbook.text.learning import TokensConfig
    from hornbook.text.look import look_into

    if not name:
        raise UserError("corpora: --show needs a name: hornbook corpora python-stdlib --show")
    if shown < 1:
        raise UserError(f"--documents: should be at least 1, not {shown}")
    config = build(TokensConfig, from_words(TokensConfig, long_forms(knobs)))
    look = look_into(name, config)
    if as_json:
        answer_json(look.as_dict(shown))
    else:
        look.show(shown, config.tokenizer.kind)
    return 0
