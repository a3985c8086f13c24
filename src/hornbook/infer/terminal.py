"""A model at a terminal.

In: a model with its tokenizer, prompts from words, a file, a pipe or a prompt line, and options.  Out: text as it
comes, or JSON, a line for each continuation. At a terminal, controls in a text are spelt out, so that a model does not
steer it; into a file or a pipe goes the text as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import columns, say, warn
from hornbook.base.errors import UserError
from hornbook.base.output import Flowing, answer, answer_json, fresh_line, is_terminal, tell, visible
from hornbook.infer.continuation import Continuation
from hornbook.infer.speaker import Speaker

HISTORY = "prompt-history.txt"
LINES_KEPT = 1000


def read_prompts(path: Path) -> list[str]:
    """Each line is a prompt, an empty one the beginning of a document; of a .jsonl file, each line is a JSON string, or
    an object with a `prompt`."""
    try:
        lines = files.read_small(path).split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert it, for example with iconv") from None
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if path.suffix == ".jsonl":
        lines = [_prompt_of(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: holds no prompt")
    return lines


def _prompt_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise UserError(f"{where}: should be a JSON string, or an object with a string under prompt")
    return prompt


def piped_prompt() -> str | None:
    """What was piped in, without the line's end that `echo` puts; None where a person sits at the other end."""
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        return None
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise UserError("standard input: not UTF-8; convert it, for example with iconv") from None


def speak(speaker: Speaker, prompts: list[str], options: dict[str, Any], as_json: bool) -> None:
    """Print the continuations of prompts: one as it comes, several one after the other."""
    context = speaker.model.config.context
    shown = visible if is_terminal(sys.stdout) else str
    if len(prompts) == options.get("n", 1) == 1 and "beams" not in options and not as_json:
        pieces = speaker.stream_batch(prompts, **options)
        flowing = Flowing(sys.stdout)
        answer(flowing.feed(shown(prompts[0])))
        last = None
        for last, piece in pieces:  # noqa: B007
            answer(flowing.feed(shown(piece)))
        answer(flowing.end() + "\n")
        _tell_of_the_window([last] if last else [], context)
        return
    continuations = _continuations(speaker, prompts, options)
    for number, each in enumerate(continuations, 1):
        if as_json:
            answer_json(each.as_dict())
        else:
            answer(f"--- {number} of {len(continuations)}, {_drawn(each)}\n{shown(each.prompt + each.text)}\n")
    _tell_of_the_window(continuations, context)


def speak_side_by_side(
    speakers: list[Speaker], names: list[str], prompts: list[str], options: dict[str, Any], as_json: bool
) -> None:
    """Print what several models, known by these names, make of the same prompts: a column for each."""
    answers = [_continuations(speaker, prompts, options) for speaker in speakers]
    shown = visible if is_terminal(sys.stdout) else str
    for alike in zip(*answers, strict=True):
        if as_json:
            for name, each in zip(names, alike, strict=True):
                answer_json({"model": name} | each.as_dict())
        else:
            headings = [f"{name}, {_drawn(each)}" for name, each in zip(names, alike, strict=True)]
            columns(headings, [shown(each.prompt + each.text) for each in alike])
    for speaker, continuations in zip(speakers, answers, strict=True):
        _tell_of_the_window(continuations, speaker.model.config.context)


def _continuations(speaker: Speaker, prompts: list[str], options: dict[str, Any]) -> list[Continuation]:
    if "beams" not in options:
        return speaker.generate_batch(prompts, **options)
    return [each for prompt in prompts for each in speaker.beam_search(prompt, **options)]


def _drawn(continuation: Continuation) -> str:
    return f"seed {continuation.seed}" if continuation.score is None else f"score {continuation.score:.4f}"


def _tell_of_the_window(continuations: list[Continuation], context: int) -> None:
    longest = max((each.forgotten for each in continuations), default=0)
    if longest:
        warn(
            f"the prompt is longer than the {context} tokens that the model sees at once: "
            f"the first {longest} of them were out of sight when the text began"
        )


def prompt_line(speaker: Speaker, options: dict[str, Any]) -> None:
    """Prompts as they are typed, each answered at once, until the end of input. The seed grows by one each time, so
    that the same prompt can be tried again."""
    config = speaker.model.config
    say(f"{speaker.folder}: {config.n_params():,} parameters, a context of {config.context:,} tokens")
    say("Type a prompt; an empty one begins a document. Ctrl-C stops an answer, Ctrl-D ends.")
    answered = 0
    remember = _history()
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say()
            continue
        remember(prompt)
        own = options if "beams" in options else options | {"seed": options["seed"] + answered}
        try:
            speak(speaker, [prompt], own, as_json=False)
        except KeyboardInterrupt:
            fresh_line()
        except UserError as error:
            tell(f"error: {error}")
        answered += 1


def _history() -> Callable[[str], None]:
    """Earlier prompts at the arrow keys, where the system has readline. What comes back takes in a new one, and keeps
    it for the next time."""
    try:
        import readline
    except ImportError:
        return lambda _: None
    path = files.home() / HISTORY
    lines: list[str] = []
    readline.set_auto_history(False)
    try:
        lines = files.read_small(path).splitlines()
    except FileNotFoundError:
        pass
    except (OSError, UserError, ValueError):  # none of ours: nothing is kept in its place
        return readline.add_history
    for line in lines:
        readline.add_history(line)

    def remember(prompt: str) -> None:
        """At once: a terminal that is closed ends the program without a word."""
        if not prompt.strip() or prompt in lines[-1:]:
            return
        lines.append(prompt)
        readline.add_history(prompt)
        try:
            files.make_folder(path.parent)
            files.write_text(path, "".join(f"{line}\n" for line in lines[-LINES_KEPT:]))
        except (OSError, UserError) as error:
            warn(f"{path}: the history was not kept ({error})")

    return remember
