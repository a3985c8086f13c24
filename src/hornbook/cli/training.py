"""Commands of a run: train, resume, and its curves."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.base.console import Progress, note, paragraphs, say
from hornbook.base.errors import UserError
from hornbook.base.output import answer, answer_json, going_on
from hornbook.base.world import world
from hornbook.cli.conclusion import conclude, tell_findings
from hornbook.cli.knobs import help_asked, show_help
from hornbook.cli.launching import Launch, launch
from hornbook.cli.words import (
    asks_help,
    long_forms,
    parse,
    parser_of,
    take_flag,
    told_apart,
)

if TYPE_CHECKING:
    from hornbook.train.config import RunConfig


@going_on()
def train(words: list[str]) -> int:
    if (group := help_asked(words)) is not None:
        show_help(words, group)
        return 0
    if (asked := Launch.taken_from(words)) is not None and not asked.is_of_one:
        return launch(asked, ["train", *words])
    as_json, tiny = take_flag(words, "--json"), take_flag(words, "--tiny")
    named = words.pop(0) if words and not words[0].startswith("-") else None
    from hornbook.base.settings import from_words
    from hornbook.base.stored import stored
    from hornbook.recipes import compose
    from hornbook.recipes.dial import why_these_sizes
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, long_forms(words))
    out = _folder_named(knobs)
    together = world()

    def chosen() -> tuple[dict[str, Any], str]:
        config = None if named or knobs or tiny or out is None else _begun(Path(out))
        if config is None:
            config = compose(named, knobs, tiny, measured=True)
            if config.recipe == "own-text":
                say(why_these_sizes(config))
            _say_what_is_expected(config)
        from hornbook.train.start import free_folder  # torch comes in when the settings are right

        return config.model_dump(mode="json"), out or str(free_folder(config))

    with told_apart(as_json):
        settings, path = together.by_first(chosen)
        from hornbook.train.start import fit

        outcome = fit(stored(RunConfig, settings, Path(path)), Path(path), turned=knobs)
    return conclude(outcome, as_json) if together.is_first else 0


def _folder_named(knobs: dict[str, Any]) -> str | None:
    """What --out says, which is no knob."""
    out = knobs.pop("out", None)
    if (out is not None and not isinstance(out, str | int | float)) or isinstance(out, bool):
        raise UserError("--out: name the run's folder: --out runs/NAME")
    return None if out is None else str(out)


def plan(words: list[str]) -> int:
    if asks_help(words):
        answer(
            "hornbook plan [RECIPE | TEXT | FILE.toml] [--minutes N] [--json] [--any.knob VALUE ...]\n\n"
            "What `hornbook train` would choose for the same words, and come to: when it ends, how much memory it\n"
            "takes, and about which loss it reaches. A few steps are timed on this machine; nothing is trained.\n\n"
            "hornbook plan RECIPE --gpus 1024 --gpu H100 --network 400Gb\n\n"
            "What it comes to on other machines, on paper: memory, step, bytes on the wire, saving, failures, each\n"
            "with its formula; the cheapest split into shards and replicas, and the largest model that fits.\n"
            "  --gpus N             all of them        --gpu NAME    of those in `hornbook model demo`\n"
            "  --hosts N            of eight GPUs each, when not given\n"
            "  --network RATE       of each GPU to other hosts: 400Gb (bits a second), 50GB (bytes)\n"
            "  --store RATE         of all hosts into the file system that keeps checkpoints: 2TB\n"
            "  --restart-minutes N  from a failure to the next step; 15 when not given\n"
            "  --share-of-peak N    of a GPU's products, from the MFU of a run on one host; 0.4 when not given\n"
        )
        return 0
    as_json, tiny = take_flag(words, "--json"), take_flag(words, "--tiny")
    cluster, words = _take_cluster(words)
    if many := next(
        (each for each in ("--processes", "--meet") if any(word.split("=")[0] == each for word in words)), None
    ):
        raise UserError(f"plan: {many} is left out; it times one process here, and --gpus N --gpu NAME tells of many")
    named = words.pop(0) if words and not words[0].startswith("-") else None
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, long_forms(words))
    _folder_named(knobs)  # the words of `train` will do
    if cluster:
        return _plan_at_scale(named, knobs, tiny, cluster, as_json)
    from hornbook.plan.forecast import forecast  # torch comes in when the words are understood

    with told_apart(as_json):
        found = forecast(named, knobs, tiny)
    if as_json:
        answer_json(found.as_dict())
    else:
        found.show()
    return 0


def _take_cluster(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What is said of a cluster, and the other words."""
    parser = parser_of("plan", "")
    for option, kind in (("--gpus", int), ("--gpu", str), ("--hosts", int), ("--network", str), ("--store", str)):
        parser.add_argument(option, type=kind)
    for option in ("--restart-minutes", "--share-of-peak"):
        parser.add_argument(option, type=float)
    given, others = parser.parse_known_args(words)
    cluster = {name: value for name, value in vars(given).items() if value is not None}
    for needed in ("gpus", "gpu") if cluster else ():
        if needed not in cluster:
            raise UserError(f"plan: a cluster needs --{needed} as well, as in --gpus 1024 --gpu H100 --network 400Gb")
    return cluster, others


def _plan_at_scale(
    named: str | None, knobs: Mapping[str, Any], tiny: bool, cluster: Mapping[str, Any], as_json: bool
) -> int:
    from hornbook.plan.cluster import cluster_of

    machines = cluster_of(**cluster)
    if machines.network is None and "network" in cluster:
        note(f"--network: all {machines.gpus} GPUs are in one host; if they are not, say in how many: --hosts 2")
    from hornbook.plan.at_scale import at_scale  # torch comes in when the words are understood
    from hornbook.plan.told import as_dict, show

    with told_apart(as_json):
        found = at_scale(named, knobs, machines, tiny)
    if as_json:
        answer_json(as_dict(found))
    else:
        show(found)
    return 0


def _say_what_is_expected(config: RunConfig) -> None:
    """Of a run that was fitted to so many minutes, where it can be told beforehand."""
    from hornbook.recipes.dial import MADE_BY_IT
    from hornbook.text.readers import STANDARD_INPUT

    is_read_twice = config.data != STANDARD_INPUT
    if config.recipe not in MADE_BY_IT or config.train.minutes is None or config.train.steps or not is_read_twice:
        return
    from hornbook.plan.forecast import foretold

    with contextlib.suppress(UserError):
        found = foretold(config)
        say(found.in_a_line())
        if found.disturbed:
            say(found.disturbed)


def _begun(run: Path) -> RunConfig | None:
    from hornbook.train.start import begun

    if (config := begun(run)) is not None:
        say(f"{run} ended before its first checkpoint; begun anew with the settings in its run.json")
    return config


@going_on()
def resume(words: list[str]) -> int:
    if asks_help(words):
        answer(
            "hornbook resume runs/NAME [--minutes N | --train.steps N | ...] [--processes N] [--json]\n\n"
            "Go on with a run from its newest good checkpoint, on as many processes as you like.\n"
        )
        return 0
    if (asked := Launch.taken_from(words)) is not None and not asked.is_of_one:
        return launch(asked, ["resume", *words])
    as_json = take_flag(words, "--json")
    if not words or words[0].startswith("-"):
        raise UserError("resume: name the run to go on with: hornbook resume runs/NAME")
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig
    from hornbook.train.start import resume

    with told_apart(as_json):
        outcome = resume(Path(words[0]), from_words(RunConfig, long_forms(words[1:])))
    return conclude(outcome, as_json) if world().is_first else 0


def report(words: list[str]) -> int:
    parser = parser_of("report", "How runs went: report.html and the curves of each; of several, their comparison.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="runs/NAME")
    parser.add_argument(
        "--at", type=steps, metavar="N,N,...", help="also the curves as they stood at these steps, beside one another"
    )
    parser.add_argument(
        "--to",
        type=places,
        default=[],
        metavar="csv|NAME,...",
        help="csv: print results and settings as a table, and write nothing; else dashboards that get the log",
    )
    given = parse(parser, words)
    from hornbook.report.comparison import compare, draw_lengths
    from hornbook.report.comparison_page import write_comparison
    from hornbook.report.curves import draw
    from hornbook.report.dashboards import send
    from hornbook.report.results import as_csv, verdict
    from hornbook.report.run_page import Told, write_report
    from hornbook.runs.folder import RunFolder

    if given.to == ["csv"]:
        answer(as_csv([Told.of(run) for run in given.runs]))
        return 0
    told = []
    for run in given.runs:
        for name in given.to:
            send(RunFolder(run), name)
            say(f"{name} has the log of {run}")
        pictures = draw(run, everything=True)
        _ask(run)
        told.append(Told.of(run))
        written, found = write_report(run, told[-1])
        tell_findings(found, run)
        for each in [written, *pictures]:
            say(str(each))
        if given.at:
            say(str(draw_lengths(run, given.at)))
    if len(given.runs) > 1:
        from hornbook.infer.looking_back import answers_beside

        beside = given.runs[0].parent
        say()
        paragraphs(verdict(told))
        say(str(write_comparison(told, beside / "comparison.html", answers_beside(given.runs))))
        say(str(compare(given.runs, beside / "comparison.png")))
    return 0


def _ask(run: Path) -> None:
    """What its snapshots say to the same prompts, which the report shows."""
    from hornbook.infer.looking_back import look_back

    with Progress(sys.stderr) as line:
        answers = look_back(run, progress=lambda done, of: line.update(f"asked {done} of {of} models of {run}"))
    if answers is not None and answers.unasked:
        note(f"{answers.unasked} models of {run} were not asked, for want of time; the same command again asks more")


def steps(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def places(text: str) -> list[str]:
    from hornbook.report.dashboards import DASHBOARDS

    found = text.split(",")
    for name in found:
        if name not in DASHBOARDS and found != ["csv"]:
            raise UserError(f"--to {name}: no such place; there are csv, or {', '.join(DASHBOARDS)}")
    return found
