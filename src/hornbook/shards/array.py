"""A text is prepared by processes that know nothing of one another, as those of a job array on a cluster.

In: a source, knobs, and which of how many processes this one is.  Out: its share of the parts; and where no other part
is missing, the shards. The first to come plans for all; the last to be done puts the shards together.
"""

from __future__ import annotations

import re
import time

from hornbook.base.background import ended_by_signals
from hornbook.base.errors import UserError
from hornbook.base.unfinished import beside_others
from hornbook.shards.format import Shards
from hornbook.shards.prepare import Preparation
from hornbook.shards.tasks import Workers

ASK_AGAIN_SECONDS = 1.0


class _TakenError(Exception):
    """Another process has the folder."""


def place_in_array(text: str) -> tuple[int, int]:
    """`3/64` as 3 and 64."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise UserError(f"--part {text}: should be a number, from 1, and how many there are: --part 3/64")
    return number, of


def prepare_part(work: Preparation, number: int, of: int, workers: Workers) -> Shards | int:
    """The shards where all is done; otherwise how many parts are still missing, for others to make."""
    with ended_by_signals():
        missing, told = None, False
        while missing is None:
            missing = _made_beside_others(work, number, of, workers)
            if missing is None:
                try:
                    with work.turn(_taken):
                        if (there := work.there()) is not None:
                            return there
                        work.plan()
                except _TakenError:
                    if not told:
                        work.tell_of_another()
                    told = True
                    time.sleep(ASK_AGAIN_SECONDS)
        if not missing:
            try:
                with work.turn(_taken):
                    return work.there() or work.finish(workers)
            except _TakenError:  # who lets go of it last sees that all is there
                pass
        return missing


def _made_beside_others(work: Preparation, number: int, of: int, workers: Workers) -> int | None:
    """How many parts are missing when those of this process are made; None where there is no plan yet."""
    with beside_others(work.out) as place:
        spread = None if place is None else work.begun_by_others()
        if spread is None:
            return None
        mine = range(len(work.shares))[number - 1 :: of]
        with workers:
            spread.make(spread.missing(mine), workers, mine)
    return len(spread.missing())


def _taken() -> None:
    raise _TakenError
