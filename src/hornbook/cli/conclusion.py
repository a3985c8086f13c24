"""What a run has come to: how it ended, how good the model is and beside what, what it says, and what to try next.

In: the outcome of a training.  Out: lines, or JSON; and the exit code.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.base.console import command, duration, paragraphs, say
from hornbook.base.output import Flowing, answer_json, put, visible
from hornbook.cli.words import DROPS, INTERRUPTED

if TYPE_CHECKING:
    from hornbook.report.finding import Finding
    from hornbook.runs.folder import Record
    from hornbook.shards.format import Shards
    from hornbook.train.start import Outcome

CONTINUATIONS = 3
# Whatever is wrong with it, is told by who draws in its place.
DRAW = """
import sys, pathlib
try:
    from hornbook.report.curves import draw
    print(*(picture.name for picture in draw(pathlib.Path(sys.argv[1]))))
except Exception:
    sys.exit(1)
"""
# Seconds, and a share of the run, in which its snapshots are asked; `hornbook report` asks the others.
LEAST_TO_ASK, SHARE_TO_ASK, MOST_TO_ASK = 2.0, 0.02, 30.0


def conclude(outcome: Outcome, as_json: bool) -> int:
    with drawn_beside(outcome.folder) as pictures:
        return _conclude(outcome, as_json, pictures)


def _conclude(outcome: Outcome, as_json: bool, pictures: Callable[[], list[Path]]) -> int:
    from hornbook.infer.looking_back import look_back
    from hornbook.report.run_page import write_report
    from hornbook.runs.folder import RunFolder
    from hornbook.runs.logs import evaluations, read_log
    from hornbook.shards.format import Shards

    run = outcome.folder
    if not outcome.interrupted:  # or somebody waits for it to end
        look_back(run, min(max(LEAST_TO_ASK, SHARE_TO_ASK * outcome.seconds), MOST_TO_ASK))
    report, found = write_report(run)
    entries = read_log(RunFolder(run).metrics)
    evaluated = evaluations(entries)
    whole = evaluated and "tokens" not in evaluated[-1]  # those before it saw a part of the text
    best = evaluated[-1] if whole else min(evaluated, key=lambda each: float(each["val_loss"]), default=None)
    if as_json:
        facts = {
            "run": str(run),
            "ended": outcome.reason,
            "step": outcome.step,
            "seconds": round(outcome.seconds, 1),
        }
        answer_json(facts | {"best": best, "findings": [each.as_dict() for each in found]})
        return INTERRUPTED if outcome.interrupted else 0
    if outcome.interrupted:
        say(f"\nstopped at step {outcome.step}, all of it saved; go on with: {command('resume', run)}")
        return INTERRUPTED
    record = RunFolder(run).record()
    shards = Shards.open(record.shards)
    say(f"\n{outcome.reason} after {outcome.step:,} steps and {duration(outcome.seconds)}")
    if best:
        yardsticks = shards.split_facts("val").get("yardsticks", {}) if shards.tokenizer.keeps_text else {}
        say(f"\n  validation loss   {best['val_loss']:.4f} at step {best['step']:,}")
        say(f"  perplexity        {best['val_perplexity']:.1f}")
        say(f"  bits per byte     {best['val_bits_per_byte']:.3f}" + ("" if shards.tokenizer.keeps_text else DROPS))
        for packer, bits in yardsticks.items():
            say(f"  for scale         {bits:.3f} by {packer}, on the same text")
        say()
        for line in in_plain_words(best, shards.vocab_size, yardsticks, advised=bool(found)):
            say(line)
        say(f"What the words mean: {command('glossary', 'perplexity')}")
    tell_findings(found, run)
    prompts = _speak(outcome, record, shards)
    say(f"\nrun       {run}")
    say(f"report    {report}")
    for picture in pictures():
        say(f"picture   {picture}")
    say("\nnext:")
    epochs = next((float(each["epochs"]) for each in reversed(entries) if "epochs" in each), 0.0)
    worse = any(each.rule == "overfits" for each in found)
    for line in what_next(outcome, record, epochs, prompts[0] or "Once upon a time", worse):
        say(f"  {line}")
    return 0


@contextlib.contextmanager
def drawn_beside(run: Path) -> Iterator[Callable[[], list[Path]]]:
    """The run's pictures, once they are drawn: by a process of its own, as matplotlib alone takes a second to come in.
    It is waited for in the end, and where it failed they are drawn here."""
    from hornbook.report.curves import draw

    paths = os.pathsep.join(each for each in sys.path if each)
    drawn: list[Path] = []
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", DRAW, str(run)],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for those who wait
        )
    except OSError:  # no memory for another process
        yield lambda: draw(run)
        return

    def pictures() -> list[Path]:
        if not drawn:
            names, _ = process.communicate()
            drawn.extend([run / name for name in names.split()] if process.returncode == 0 else draw(run))
        return drawn

    with process:
        try:
            yield pictures
            pictures()
        except BaseException:
            process.kill()
            raise


def tell_findings(found: list[Finding], run: Path) -> None:
    """What was found to be wrong, or could go better: each with what it rests on, and what to do."""
    if found:
        say(f"\nwhat to know of {run}:")
    for each in found:
        paragraphs(f"{each.title}: {each.evidence}.", indent=2)
        paragraphs(f"-> {each.action}", indent=5)


def in_plain_words(
    best: Mapping[str, Any], vocabulary: int, yardsticks: Mapping[str, float], advised: bool
) -> Iterator[str]:
    """What the figures say, and beside what; and what would help, where no finding says so."""
    bits = best["val_bits_per_byte"]
    yield (
        f"On text that it was not trained on, the model is at each token as unsure as among "
        f"{best['val_perplexity']:,.0f} equally likely ones, of {vocabulary:,}."
    )
    better = [name for name, each in yardsticks.items() if bits < each]
    worse = [f"{name} ({each:.2f})" for name, each in yardsticks.items() if bits >= each]
    if worse:
        but = f", though better than by {better[0]}" if better else ""
        helps = "" if advised else ": train longer, or on more text"
        yield f"That text is still predicted better by {worse[0]}{but}{helps}."
    elif better:
        yield f"It predicts that text better than {' and '.join(better)} do: fewer bits are better."


def _speak(outcome: Outcome, record: Record, shards: Shards) -> list[str]:
    """Let the model continue prompts; those of the run, or where it has but one words from more places."""
    from hornbook.infer.looking_back import prompts_of
    from hornbook.infer.speaker import load_speaker

    prompts = list(prompts_of(record, shards))
    speaker = load_speaker(outcome.folder, device="cpu")
    for number in range(CONTINUATIONS):
        prompt = prompts[number % len(prompts)]
        say(f"\n--- continuation {number + 1} of {CONTINUATIONS}, from {prompt!r}")
        flowing = Flowing(sys.stdout)
        put(flowing.feed(visible(prompt)))
        for piece in speaker.stream(prompt, max_tokens=96, seed=number):
            put(flowing.feed(visible(piece)))
        put(flowing.end() + "\n")
    return prompts


def what_next(outcome: Outcome, record: Record, epochs: float, prompt: str, worse: bool) -> Iterator[str]:
    """Commands that fit the run: to look at it, to let it speak, and to go on, unless that would make it worse."""
    run, config, train = outcome.folder, record.config, record.config["train"]
    yield command("serve", run, "--open")
    yield command("generate", run, "--prompt", prompt)
    came_to = {
        "steps": float(outcome.step),
        "epochs": epochs,
        "tokens": float(outcome.step * train["batch_tokens"]),
        "minutes": outcome.seconds / 60,
    }
    shares = {stop: reached / train[stop] for stop, reached in came_to.items() if train.get(stop)}
    stop = max(shares, key=shares.__getitem__, default=None)
    chosen = config["recipe"] == "own-text" and "train.epochs" not in record.more.get("turned", ())
    if stop is not None and not worse and not (stop == "epochs" and chosen):  # or it would learn by heart
        knob = "--minutes" if stop == "minutes" else f"--train.{stop}"
        yield command("resume", run, knob, f"{2 * train[stop]:g}" if stop == "minutes" else f"{2 * train[stop]:.12g}")
    if config["recipe"] in ("own-text", "continued"):
        yield command("eval", run, "--data", "ANOTHER-TEXT")
    else:
        yield command("train", "PATH/TO/YOUR/TEXT")
