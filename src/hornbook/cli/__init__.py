"""The commands.

In: words.  Out: one call each, its result printed, and an exit code: 0 done, 2 the user's input was at fault, 1 ours
or the machine's, 130 interrupted with the work saved. What a command needs is imported when it runs, so that --help
need not wait for torch.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from hornbook.base.background import left_at_once
from hornbook.base.errors import HornbookError, UserError, one_line
from hornbook.base.files import is_utf8
from hornbook.base.machine import share_the_cores
from hornbook.base.output import OutputLostError, answer, discard, is_terminal, settle, tell, tell_mistake
from hornbook.base.world import ToldElsewhereError, leave_world
from hornbook.cli import glossary, meeting, models, serving, speaking, texts, training, vocabularies
from hornbook.cli.words import INTERRUPTED, in_columns

ABOUT = """\
hornbook trains GPT-style language models from scratch.

  hornbook train [RECIPE | TEXT | FILE.toml] [--minutes N] [--out runs/NAME] [--any.knob VALUE ...]
  hornbook plan  ...                       with the same words: what would be chosen, when it ends, which loss
  hornbook resume   runs/NAME              go on with a run that was stopped
  hornbook generate runs/NAME|MODEL        let a model speak: --prompt "Once upon a time"; with none, a prompt line
  hornbook serve    runs/NAME|MODEL...     a page to play with, and an API as OpenAI's
  hornbook eval     runs/NAME|MODEL        loss, perplexity and bits per byte: --data TEXT
  hornbook originality runs/NAME           what it merely recites from its training text
  hornbook report   runs/NAME...           how it went: findings, curves; of several, who won
  hornbook prepare  CORPUS|PATH...         text to tokens on disk
  hornbook tokenizer train TEXT --out FILE learn a vocabulary by itself; tokenizer show FILE TEXT
  hornbook import   SOURCE OUT             a model from elsewhere: GPT-2 from the hub, nanoGPT's ckpt.pt, ...
  hornbook export   runs/NAME|MODEL        for other programs: --to hf|gguf|html|pt
  hornbook average  runs/NAME --out DIR    the mean of its last checkpoints, as a model
  hornbook verify   PATH                   is every byte as it was written? --replay: does a run continue exactly?
  hornbook model    RECIPE|runs/NAME|MODEL its parts, sizes, FLOPs, memory, and the GPUs that hold it
  hornbook meet     [ADDRESS:]PORT         keep the place where the hosts of a run find one another
  hornbook runs     [FOLDER]               the runs there are, how each stands, and who is at work
  hornbook recipes                         the runs that have a name
  hornbook corpora                         the texts that have a name
  hornbook glossary [WORD]                 what a word means: perplexity, bits per byte, top-p

`hornbook train` alone trains a small model in three minutes. `hornbook COMMAND --help` tells more.
"""
SECOND_COLUMN = 43
COMMANDS = {
    "train": training.train,
    "plan": training.plan,
    "resume": training.resume,
    "generate": speaking.generate,
    "serve": serving.serve,
    "eval": speaking.evaluate_text,
    "originality": speaking.originality,
    "report": training.report,
    "prepare": texts.prepare_text,
    "tokenizer": vocabularies.tokenizer,
    "import": models.import_foreign,
    "export": models.export,
    "average": models.average,
    "verify": models.verify_path,
    "model": models.model,
    "meet": meeting.meet,
    "runs": models.runs,
    "recipes": models.recipes,
    "corpora": texts.corpora,
    "glossary": glossary.glossary,
}
# A name that no file can have, or one that may not be looked at, wherever it was met.
PATH_ERRORS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.ENOTDIR, errno.EISDIR}


@left_at_once
def main(words: Sequence[str] | None = None) -> int:
    share_the_cores()
    try:
        return _run(list(sys.argv[1:] if words is None else words))
    except HornbookError as error:
        for mistake in error.mistakes if not isinstance(error, ToldElsewhereError) else []:
            tell_mistake(mistake)
        if os.environ.get("HORNBOOK_DEBUG"):
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except OutputLostError as lost:
        discard(sys.stdout)
        if lost.is_gone:  # as `head` goes, when it has seen enough
            return 0
        tell(f"error: {one_line(str(lost))}")
        return 1
    except BaseException as error:  # a panic in a library's Rust is no Exception
        is_ours = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_ours or os.environ.get("HORNBOOK_DEBUG"):
            raise
        if isinstance(error, UnicodeEncodeError) and not is_utf8(error.object):
            tell_mistake(one_line(f"{error.object}: not UTF-8, as names have to be here; rename it"))
            return UserError.exit_code
        if isinstance(error, OSError) and error.errno in PATH_ERRORS:
            tell_mistake(one_line(f"{error.filename}: {error.strerror}"))
            return UserError.exit_code
        tell_mistake(one_line(f"{type(error).__name__}: {error}"))
        tell("This is a bug of ours, or of the machine. HORNBOOK_DEBUG=1 shows where.")
        return 1
    finally:
        leave_world()
        settle()


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        answer(in_columns(ABOUT, SECOND_COLUMN) if is_terminal(sys.stdout) else ABOUT)
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        from hornbook.base.machine import choose_machine
        from hornbook.base.names import own_version

        machine = choose_machine()
        answer(f"hornbook {own_version()}\n")
        answer(f"torch {version('torch')} on {machine.device}: {machine.name}, {machine.dtype}\n")
        return 0
    if words[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        raise UserError(
            f"{words[0]}: no such command; " + (f"did you mean {near[0]}?" if near else "see hornbook --help")
        )
    return COMMANDS[words[0]](words[1:])
