"""What the models of a run say to the same prompts, from its first snapshot to its last checkpoint.

In: a run.  Out: `Answers`, kept in its folder, where the report finds them: of each step that is kept, what
`hornbook generate --at STEP` writes after the run's prompts, by one seed and one set of rules. What was answered before
by the same weights is not asked again; what there is no time for is left to the next look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from hornbook.base import files
from hornbook.base.console import warn
from hornbook.base.errors import HornbookError, UserError
from hornbook.base.machine import free_memory_bytes, is_out_of_memory
from hornbook.infer.speaker import Speaker
from hornbook.runs.answers import Answers, Asked
from hornbook.runs.folder import Record, RunFolder, damage_of_model, resolve, step_of, strangeness
from hornbook.shards.format import Shards
from hornbook.shards.openings import openings

PROMPTS = 3
# At a time, and it goes on from there: of a large model, a snapshot may take a minute.
SECONDS = 60.0
BYTES_OF_A_PARAMETER = 4
# Of the memory that is free: a model that takes more is not asked.
SHARE_OF_MEMORY = 0.5


def prompts_of(record: Record, shards: Shards | None) -> tuple[str, ...]:
    """The run's own; where it has but words with which its text begins, words from more places of it."""
    own = tuple(record.config["sample"]["prompts"] or ())
    found = openings(shards, PROMPTS) if shards is not None else ()
    return tuple(dict.fromkeys(found if found and own in ((), found[:1]) else own or ("",)))


def look_back(
    path: Path, seconds: float = SECONDS, progress: Callable[[int, int], object] = lambda done, of: None
) -> Answers | None:
    """Lets the run's models answer, as many as there is time for; None of a run that trains at this moment, whose
    machine is its own, of one that was lost but for its logs, and of a model that there is no memory for."""
    run = RunFolder(path)
    began = time.monotonic()
    try:
        asked, fits = asked_of(run), _fits(run)
    except (UserError, KeyError, TypeError):
        return None
    known = Answers.of(run)
    found = Answers(asked)
    kept = {step_of(each): each for each in reversed(run.kept())}
    waiting = []
    for step, folder in kept.items():
        weights = _hash_of(folder)
        if known is not None and known.asked == asked and known.weights.get(step) == weights:
            found.texts[step], found.weights[step] = known.texts[step], weights
        else:
            waiting.append((folder, weights))
    new = 0
    if fits and not files.is_locked(path):
        for folder, weights in _from_all_over(waiting):
            taken = time.monotonic() - began
            if taken + taken / max(new, 1) > seconds:
                found.unasked = len(waiting) - new
                break
            if (texts := _answers(folder, asked)) is None:
                continue
            found.texts[step_of(folder)], found.weights[step_of(folder)] = texts, weights
            new += 1
            progress(len(found.texts), len(kept))
    found.texts = dict(sorted(found.texts.items()))
    if new or (known is not None and known.texts.keys() != found.texts.keys()):
        found.write(run)
    return found


def asked_of(run: RunFolder) -> Asked:
    """As the run's own samples are drawn."""
    record = run.record()
    try:
        shards = Shards.open(record.shards)
    except UserError:
        shards = None
    sample = record.config["sample"]
    return Asked(prompts_of(record, shards), int(record.config["seed"]), int(sample["tokens"]), sample["rules"])


def answers_beside(paths: list[Path]) -> list[Answers | None]:
    """What the best model of each of several runs says to the prompts of the first: about as much text, in whatever
    pieces its vocabulary cuts it."""
    try:
        asked = asked_of(RunFolder(paths[0]))
    except (UserError, KeyError, TypeError):
        return [None] * len(paths)
    sizes = [_bytes_of_a_token(RunFolder(path)) for path in paths]
    longest = asked.max_tokens * max(sizes)
    lengths = [math.ceil(longest / size) if size else asked.max_tokens for size in sizes]
    return [
        _of_the_best(RunFolder(path), replace(asked, max_tokens=length))
        for path, length in zip(paths, lengths, strict=True)
    ]


def _bytes_of_a_token(run: RunFolder) -> float:
    try:
        facts = Shards.open(run.record().shards).split_facts("train")
    except UserError:
        return 0.0
    return float(facts["bytes_of_text"] / max(facts["tokens"], 1))


def _of_the_best(run: RunFolder, asked: Asked) -> Answers | None:
    try:
        folder = resolve(run.path) if _fits(run) else None
    except UserError:
        return None
    texts = _answers(folder, asked) if folder is not None else None
    return Answers(asked, {step_of(folder): texts}) if folder is not None and texts is not None else None


def _answers(folder: Path, asked: Asked) -> tuple[str, ...] | None:
    """None where it cannot speak, which is told in one line."""
    try:
        if (wrong := damage_of_model(folder) or strangeness(folder)) is not None:
            raise UserError(wrong)
        said = Speaker(folder).generate_batch(
            asked.prompts, seed=asked.seed, max_tokens=asked.max_tokens, **asked.rules
        )
    except (HornbookError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, HornbookError) and not is_out_of_memory(error):
            raise
        warn(f"{folder}: is not asked: {error}")
        return None
    return tuple(each.text for each in said)


def _fits(run: RunFolder) -> bool:
    free = free_memory_bytes("cpu")
    return free is None or BYTES_OF_A_PARAMETER * run.model().n_params() < SHARE_OF_MEMORY * free


def _hash_of(folder: Path) -> str:
    try:
        return str(files.read_json(folder / files.MANIFEST).get("sha256"))
    except UserError:
        return ""


def _from_all_over(waiting: list[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    """The newest and the oldest, then what lies between, ever more closely: some of them show the whole way."""
    last = len(waiting) - 1
    for place in sorted(range(last + 1), key=lambda place: (place > 0, place < last, -(place & -place))):
        yield waiting[last - place]
