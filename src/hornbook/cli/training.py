"""Commands of a run: train, resume, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hornbook.base.errors import UserError
from hornbook.base.output import answer, answer_json, going_on, put, visible
from hornbook.cli.words import (
    DROPS,
    INTERRUPTED,
    asks_help,
    long_forms,
    parse,
    parser_of,
    print_described,
    take_flag,
    told_apart,
)

if TYPE_CHECKING:
    from hornbook.train.config import RunConfig
    from hornbook.train.start import Outcome


@going_on()
def train(words: list[str]) -> int:
    if asks_help(words):
        _print_knobs()
        return 0
    as_json, tiny = take_flag(words, "--json"), take_flag(words, "--tiny")
    named = words.pop(0) if words and not words[0].startswith("-") else None
    from hornbook.base.console import say
    from hornbook.base.settings import from_words
    from hornbook.recipes import compose
    from hornbook.recipes.dial import why_these_sizes
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, long_forms(words))
    out = knobs.pop("out", None)
    with told_apart(as_json):
        config = None if named or knobs or tiny or out is None else _begun(Path(str(out)))
        if config is None:
            config = compose(named, knobs, tiny, measured=True)
            if config.recipe == "own-text":
                say(why_these_sizes(config))
        from hornbook.train.start import fit, free_folder  # torch comes in when the settings are right

        outcome = fit(config, Path(str(out)) if out is not None else free_folder(config))
    return _conclude(outcome, as_json)


def plan(words: list[str]) -> int:
    if asks_help(words):
        answer(
            "hornbook plan [RECIPE | TEXT | FILE.toml] [--minutes N] [--json] [--any.knob VALUE ...]\n\n"
            "What `hornbook train` would choose for the same words, and come to: when it ends, how much memory it\n"
            "takes, and about which loss it reaches. A few steps are timed on this machine; nothing is trained.\n"
        )
        return 0
    as_json, tiny = take_flag(words, "--json"), take_flag(words, "--tiny")
    named = words.pop(0) if words and not words[0].startswith("-") else None
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, long_forms(words))
    from hornbook.plan.forecast import forecast  # torch comes in when the words are understood

    with told_apart(as_json):
        found = forecast(named, knobs, tiny)
    if as_json:
        answer_json(found.as_dict())
    else:
        found.show()
    return 0


def _begun(run: Path) -> RunConfig | None:
    from hornbook.base.console import say
    from hornbook.train.start import begun

    if (config := begun(run)) is not None:
        say(f"{run} ended before its first checkpoint; begun anew with the settings in its run.json")
    return config


@going_on()
def resume(words: list[str]) -> int:
    if asks_help(words):
        answer(
            "hornbook resume runs/NAME [--minutes N | --train.steps N | ...] [--json]\n\n"
            "Go on with a run from its newest good checkpoint.\n"
        )
        return 0
    as_json = take_flag(words, "--json")
    if not words or words[0].startswith("-"):
        raise UserError("resume: name the run to go on with: hornbook resume runs/NAME")
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig
    from hornbook.train.start import resume

    with told_apart(as_json):
        outcome = resume(Path(words[0]), from_words(RunConfig, long_forms(words[1:])))
    return _conclude(outcome, as_json)


def _conclude(outcome: Outcome, as_json: bool) -> int:
    """Draw the curves, tell what was reached, let the model speak, and say what to try next."""
    from hornbook.base.console import command, duration, say
    from hornbook.infer.speaker import load_speaker
    from hornbook.report.curves import draw
    from hornbook.runs.folder import RunFolder
    from hornbook.runs.logs import evaluations, read_log
    from hornbook.shards.format import Shards

    run = outcome.folder
    pictures = draw(run)
    evaluated = evaluations(read_log(RunFolder(run).metrics))
    whole = evaluated and "tokens" not in evaluated[-1]  # those before it saw a part of the text
    best = evaluated[-1] if whole else min(evaluated, key=lambda each: float(each["val_loss"]), default=None)
    if as_json:
        facts = {
            "run": str(run),
            "ended": outcome.reason,
            "step": outcome.step,
            "seconds": round(outcome.seconds, 1),
        }
        answer_json(facts | {"best": best})
        return INTERRUPTED if outcome.interrupted else 0
    if outcome.interrupted:
        say(f"\nstopped at step {outcome.step}, all of it saved; go on with: {command('resume', run)}")
        return INTERRUPTED
    record = RunFolder(run).record()
    shards = Shards.open(record.shards)
    say(f"\n{outcome.reason} after {outcome.step:,} steps and {duration(outcome.seconds)}")
    if best:
        say(f"\n  validation loss   {best['val_loss']:.4f} at step {best['step']:,}")
        say(f"  perplexity        {best['val_perplexity']:.1f}")
        say(f"  bits per byte     {best['val_bits_per_byte']:.3f}" + ("" if shards.tokenizer.keeps_text else DROPS))
        for packer, bits in shards.split_facts("val").get("yardsticks", {}).items():
            say(f"  for scale         {bits:.3f} by {packer}, on the same text")
    speaker = load_speaker(run, device="cpu")
    prompts = record.config["sample"]["prompts"]
    for number in range(3):
        prompt = prompts[number % len(prompts)]
        say(f"\n--- continuation {number + 1} of 3, from {prompt!r}")
        put(visible(prompt))
        for piece in speaker.stream(prompt, max_tokens=96, seed=number):
            put(visible(piece))
        say()
    say(f"\nrun       {run}")
    for picture in pictures:
        say(f"picture   {picture}")
    say("\nnext:")
    say(f"  {command('generate', run, '--prompt', prompts[0] or 'Once upon a time')}")
    say(f"  {command('resume', run, '--train.minutes', 2 * max(round(outcome.seconds / 60), 1))}")
    say(f"  {command('train', '--data', 'PATH/TO/YOUR/TEXT')}")
    return 0


def _print_knobs() -> None:
    from hornbook.train.config import RunConfig

    answer(
        "hornbook train [RECIPE | TEXT | FILE.toml] [--minutes N] [--out runs/NAME] [--tiny] [--json]\n"
        "               [--from MODEL|runs/NAME] [--any.knob VALUE ...]\n\n"
        "With no recipe: the demo's. With --data PATH and no recipe: sizes for the text, the machine and the minutes;\n"
        "ten at most when not given. `hornbook plan` with the same words tells what comes of it.\n"
        "With --from MODEL|runs/NAME: from its weights rather than from nothing, with its sizes and its tokenizer.\n"
        "With --tiny: the run's miniature, which takes seconds.\n"
        "Every knob, and its default where no recipe sets it:\n\n"
    )
    print_described(RunConfig)


def report(words: list[str]) -> int:
    parser = parser_of("report", "Draw the curves of runs; of several, also their comparison.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="runs/NAME")
    parser.add_argument(
        "--at", type=steps, metavar="N,N,...", help="also the curves as they stood at these steps, beside one another"
    )
    given = parse(parser, words)
    from hornbook.base.console import say
    from hornbook.report.comparison import compare, draw_lengths
    from hornbook.report.curves import draw

    for run in given.runs:
        for picture in draw(run):
            say(str(picture))
        if given.at:
            say(str(draw_lengths(run, given.at)))
    if len(given.runs) > 1:
        say(str(compare(given.runs, given.runs[0].parent / "comparison.png")))
    return 0


def steps(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]
