"""The knobs, to be read: those that are turned most first, the others by group; with choices and values.

In: what a command line says.  Out: the help of `train`; and docs/knobs.md, which `make knobs` writes anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hornbook.base.console import command, paragraphs, say
from hornbook.base.errors import UserError

if TYPE_CHECKING:
    from hornbook.base.settings import Settings

FIRST = (
    "data",
    "seed",
    "train.minutes",
    "train.steps",
    "train.epochs",
    "train.batch_tokens",
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.context",
    "model.dropout",
    "tokenizer.kind",
    "tokenizer.vocab_size",
    "optim.lr",
    "train.device",
)
GROUPS = {
    "run": "The run as a whole",
    "model": "The model's shape",
    "train": "How long to train, in which batches, and when to evaluate and save",
    "optim": "The optimizer and its learning rates",
    "schedule": "How the learning rate rises and falls",
    "tokenizer": "How text is cut into tokens",
    "text": "How text is read",
    "shards": "What is held back for validation and test",
    "order": "In which order text is read",
    "sample": "What the model says while it trains",
    "grow": "Making a model larger that --from names",
}
USAGE = (
    "hornbook train [RECIPE | TEXT | FILE.toml] [--minutes N] [--any.knob VALUE ...] [--out runs/NAME] [--from MODEL] "
    "[--processes N] [--tiny] [--json]\n\n"
    "With nothing named: the demo. With a TEXT, which is a path or a corpus: sizes for the text, this machine and the "
    "minutes, ten at most where none are given. `hornbook plan` with the same words tells what comes of it.\n"
    "--out: where the run goes. --from MODEL|runs/NAME: begin with its weights rather than from nothing, with its "
    "sizes and its tokenizer. --tiny: the run's miniature, which takes seconds. --json: print the result as JSON.\n"
    "--processes N: by so many at once, one for each GPU, or each with its share of the cores. --hosts 2, or 1:4 for "
    "one to four, and --meet HOST:PORT: on several machines, each given the same words.\n\n"
)


def help_asked(words: list[str]) -> str | None:
    """Nothing, "" for the first knobs, or what stands behind `--help.`."""
    for word in words:
        if word in ("-h", "--help"):
            return ""
        if word.startswith("--help."):
            return word.removeprefix("--help.")
    return None


def show_help(words: list[str], group: str) -> None:
    """Of `train`, with the values that a run would have that the words name."""
    from hornbook.base.settings import from_words
    from hornbook.cli.words import long_forms, take_flag
    from hornbook.recipes import DEFAULT, compose
    from hornbook.train.config import RunConfig

    if group not in ("", "all", *GROUPS):
        raise UserError(f"--help.{group}: no such group of knobs; there are {', '.join(GROUPS)}, and all")
    words = [word for word in words if word != "-h" and not word.startswith("--help")]
    tiny = take_flag(words, "--tiny")
    named = words.pop(0) if words and not words[0].startswith("-") else None
    given = from_words(RunConfig, long_forms(words))
    given.pop("out", None)
    config = compose(named, given, tiny)
    paragraphs(USAGE)
    values = f"Each with what `{command('train', named or DEFAULT)}` takes; auto: not set; what holds then, each says."
    every = list(told(RunConfig, config))
    if not group:
        paragraphs(f"What is turned most. {values}\n\n")
        by_name = {dotted: lines for dotted, *lines in every}
        for dotted in FIRST:
            _show(*by_name[dotted])
        say("\nMore, by group: hornbook train --help.GROUP, or --help.all for all.\n")
        for name, about in GROUPS.items():
            say(f"  {name:10} {sum(group_of(dotted) == name for dotted, *_ in every):3}  {about}")
        return
    paragraphs(values)
    for name in GROUPS if group == "all" else [group]:
        paragraphs(f"\n{GROUPS[name]}\n\n")
        for dotted, *lines in every:
            if group_of(dotted) == name:
                _show(*lines)


def show_all(kind: type[Settings]) -> None:
    """Every knob of a command that has few."""
    for _, *lines in told(kind):
        _show(*lines)


def _show(knob: str, value: str, about: str) -> None:
    say(f"  {knob} {value}")
    paragraphs(about, indent=6)


def told(kind: type[Settings], config: Settings | None = None) -> Iterator[tuple[str, str, str, str]]:
    """Of every knob: its dotted name, how it is written, its value in `config` or else its default, and what it is for,
    with what may be chosen."""
    from hornbook.base.settings import choices, described, knobs

    for dotted, (knob, default, about) in zip(knobs(kind), described(kind), strict=True):
        value = default if config is None else _written(functools.reduce(getattr, dotted.split("."), config))
        may_be = choices(kind, dotted)
        yield dotted, knob, value, f"{about} One of: {', '.join(may_be)}." if may_be else about


def _written(value: Any) -> str:
    """As a command line takes it."""
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def group_of(dotted: str) -> str:
    group, _, rest = dotted.partition(".")
    return group if rest else "run"


MARKDOWN = """\
# Every knob

Each can be written on the command line as here, in a TOML or JSON file as a table (`[train]`, `steps = 100`), or from
Python as nested keyword arguments (`hornbook.fit(train={"steps": 100})`). A default of `auto` means: not set. What
holds then, each knob says: something that is chosen when the run begins, or nothing. Recipes set some of them:
`hornbook train RECIPE --help.all` shows the values of one. `make knobs` writes this page anew, and a test sees to it
that it was.
"""


def markdown() -> str:
    from hornbook.train.config import RunConfig

    lines = [MARKDOWN]
    every = list(told(RunConfig))
    for name, about in GROUPS.items():
        lines += [f"## {about}\n", "| knob | default | what it is for |", "| --- | --- | --- |"]
        lines += [
            f"| `{knob}` | `{value}` | {what} |" for dotted, knob, value, what in every if group_of(dotted) == name
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
