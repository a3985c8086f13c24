"""The commands.

In: words.  Out: one call each, its result printed, and an exit code: 0 done, 2 the user's input was at fault, 1 ours
or the machine's, 130 interrupted with the work saved. What a command needs is imported when it runs, so that --help
need not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.base.errors import HornbookError, UserError, one_line
from hornbook.base.machine import share_the_cores

if TYPE_CHECKING:
    from hornbook.base.settings import Settings
    from hornbook.train.start import Outcome

ABOUT = """\
hornbook trains GPT-style language models from scratch.

  hornbook train [RECIPE | FILE.toml] [--data CORPUS|PATH] [--out runs/NAME] [--any.knob VALUE ...]
  hornbook resume   runs/NAME              go on with a run that was stopped
  hornbook generate runs/NAME|MODEL        let a model speak: --prompt "Once upon a time"; with none, a prompt line
  hornbook eval     runs/NAME|MODEL        loss, perplexity and bits per byte: --data TEXT
  hornbook report   runs/NAME...           draw the curves
  hornbook prepare  CORPUS|PATH...         text to tokens on disk
  hornbook import   SOURCE OUT             a model from elsewhere: GPT-2 from the hub, nanoGPT's ckpt.pt, ...
  hornbook export   runs/NAME|MODEL        for other programs: --to hf|gguf|pt
  hornbook verify   PATH                   is every byte as it was written?
  hornbook model    RECIPE|runs/NAME|MODEL its parts, sizes, FLOPs, memory, and the GPUs that hold it
  hornbook recipes                         the runs that have a name
  hornbook corpora                         the texts that have a name

`hornbook train` alone trains a small model in three minutes. `hornbook COMMAND --help` tells more.
"""
INTERRUPTED = 130
DROPS = " (without what the tokenizer drops, such as blanks and accents: lower than of the whole text)"
# A name that no file can have, or one that may not be looked at, wherever it was met.
PATH_ERRORS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.ENOTDIR, errno.EISDIR}
SHORT = {"--errors": "--text.errors", "--max-documents": "--text.max-documents", "--from": "--start-from"}


def main(words: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    share_the_cores()
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(ABOUT, end="")
            return 0
        if words[0] == "--version":
            from importlib.metadata import version

            print(f"hornbook {version('hornbook')}")
            return 0
        if words[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(words[0], COMMANDS, n=1)
            raise UserError(
                f"{words[0]}: no such command; " + (f"did you mean {near[0]}?" if near else "see hornbook --help")
            )
        return COMMANDS[words[0]](words[1:])
    except HornbookError as error:
        for mistake in error.mistakes:
            print(f"error: {mistake}", file=sys.stderr)
        if os.environ.get("HORNBOOK_DEBUG"):
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull)  # noqa: SIM115
        return 0
    except BaseException as error:  # a panic in a library's Rust is no Exception
        is_ours = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_ours or os.environ.get("HORNBOOK_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in PATH_ERRORS:
            print(f"error: {one_line(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
            return UserError.exit_code
        what = one_line(f"{type(error).__name__}: {error}")
        print(
            f"error: {what}\nThis is a bug of ours, or of the machine. HORNBOOK_DEBUG=1 shows where.",
            file=sys.stderr,
        )
        return 1


def _train(words: list[str]) -> int:
    if _asks_help(words):
        _print_knobs()
        return 0
    as_json, tiny = _take_flag(words, "--json"), _take_flag(words, "--tiny")
    named = words.pop(0) if words and not words[0].startswith("-") else None
    from hornbook.base.settings import from_words
    from hornbook.recipes import compose
    from hornbook.recipes.modern import why_these_sizes
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, _long_forms(words))
    out = knobs.pop("out", None)
    with _told_apart(as_json):
        config = compose(named, knobs, tiny)
        if config.recipe == "own-text":
            print(why_these_sizes(config))
        from hornbook.train.start import fit, free_folder  # torch comes in when the settings are right

        outcome = fit(config, Path(str(out)) if out is not None else free_folder(config))
    return _conclude(outcome, as_json)


def _resume(words: list[str]) -> int:
    if _asks_help(words):
        print(
            "hornbook resume runs/NAME [--train.minutes N | --train.steps N | ...] [--json]\n\n"
            "Go on with a run from its newest good checkpoint."
        )
        return 0
    as_json = _take_flag(words, "--json")
    if not words or words[0].startswith("-"):
        raise UserError("resume: name the run to go on with: hornbook resume runs/NAME")
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig
    from hornbook.train.start import resume

    with _told_apart(as_json):
        outcome = resume(Path(words[0]), from_words(RunConfig, words[1:]))
    return _conclude(outcome, as_json)


def _conclude(outcome: Outcome, as_json: bool) -> int:
    """Draw the curves, tell what was reached, let the model speak, and say what to try next."""
    from hornbook.base import files
    from hornbook.base.console import duration, say
    from hornbook.base.logs import read_log
    from hornbook.infer.speaker import load_speaker
    from hornbook.model.folder import RUN
    from hornbook.report.curves import draw
    from hornbook.shards.format import Shards

    run = outcome.folder
    pictures = draw(run)
    evaluated = [each for each in read_log(run / "metrics.jsonl") if each.get("val_loss") is not None]
    best = min(evaluated, key=lambda each: float(each["val_loss"]), default=None)
    if as_json:
        facts = {
            "run": str(run),
            "ended": outcome.reason,
            "step": outcome.step,
            "seconds": round(outcome.seconds, 1),
        }
        print(json.dumps(facts | {"best": best}))
        return INTERRUPTED if outcome.interrupted else 0
    if outcome.interrupted:
        say(f"\nstopped at step {outcome.step}, all of it saved; go on with: hornbook resume {run}")
        return INTERRUPTED
    record = files.read_json(run / RUN)
    shards = Shards.open(Path(record["data"]["folder"]))
    say(f"\n{outcome.reason} after {outcome.step:,} steps and {duration(outcome.seconds)}")
    if best:
        say(f"\n  validation loss   {best['val_loss']:.4f} at step {best['step']:,}")
        say(f"  perplexity        {best['val_perplexity']:.1f}")
        say(f"  bits per byte     {best['val_bits_per_byte']:.3f}" + ("" if shards.tokenizer.keeps_text else DROPS))
        for program, bits in shards.split_facts("val").get("yardsticks", {}).items():
            say(f"  for scale         {bits:.3f} by {program}, on the same text")
    speaker = load_speaker(run, device="cpu")
    prompts = record["config"]["sample"]["prompts"]
    for number in range(3):
        prompt = prompts[number % len(prompts)]
        say(f"\n--- continuation {number + 1} of 3, from {prompt!r}")
        print(prompt, end="", flush=True)
        _print_stream(speaker.stream(prompt, max_tokens=96, seed=number))
    said = (prompts[0] or "Once upon a time").replace('"', "'")
    say(f"\nrun       {run}")
    for picture in pictures:
        say(f"picture   {picture}")
    say("\nnext:")
    say(f'  hornbook generate {run} --prompt "{said}"')
    say(f"  hornbook resume {run} --train.minutes {2 * max(round(outcome.seconds / 60), 1)}")
    say("  hornbook train --data PATH/TO/YOUR/TEXT")
    return 0


def _prepare(words: list[str]) -> int:
    from hornbook.base.console import Progress, say
    from hornbook.base.settings import build, from_words
    from hornbook.shards.prepare import PrepareConfig, default_folder, prepare, report
    from hornbook.text.corpora import find_source
    from hornbook.text.readers import joined

    if _asks_help(words):
        print(
            "hornbook prepare CORPUS|PATH|PATTERN|-... [--out FOLDER] [--json] [--errors strict|replace]\n"
            "                 [--max-documents N] [--any.knob VALUE ...]\n\nText to tokens on disk.\n"
        )
        _print_described(PrepareConfig)
        return 0
    as_json = _take_flag(words, "--json")
    names = []
    while words and not words[0].startswith("--"):
        names.append(words.pop(0))
    if not names:
        raise UserError("prepare: name a corpus or a path: hornbook prepare python-stdlib")
    given = from_words(PrepareConfig, _long_forms(words))
    chosen = given.pop("out", None)
    knobs = build(PrepareConfig, given)
    progress = Progress(sys.stderr if as_json else None)
    source = joined([find_source(name, knobs.text, progress=progress) for name in names])
    out = Path(str(chosen)) if chosen is not None else default_folder(source, knobs.tokenizer, knobs.shards)
    with progress:
        shards = prepare(source, knobs.tokenizer, knobs.shards, out, progress)
    if as_json:
        print(json.dumps({"folder": str(out), **shards.manifest}))
        return 0
    for line in report(shards.manifest):
        say(line)
    say(f"shards {out}\nnext:  hornbook train --data {out}")
    return 0


def _eval(words: list[str]) -> int:
    parser = _parser("eval", "Loss, perplexity and bits per byte of a text under a model.")
    parser.add_argument("model", type=Path, metavar="runs/NAME|MODEL")
    parser.add_argument("--data", help="a corpus, a text, or shards; a run's own validation text when not given")
    given = _with_model_options(parser, words)
    from hornbook.base.console import say
    from hornbook.infer.evaluate import evaluate

    result = evaluate(given.model, given.data, given.at, given.device)
    if given.json:
        print(json.dumps(result))
        return 0
    say(f"text           {result['text']}")
    say(f"model          {result['model']}")
    say(f"loss           {result['loss']:.4f} nats per token, over {result['tokens']:,} tokens")
    say(f"perplexity     {result['perplexity']:.2f}")
    say(f"bits per byte  {result['bits_per_byte']:.4f}" + ("" if result["keeps_text"] else DROPS))
    return 0


def _generate(words: list[str]) -> int:
    parser = _parser(
        "generate", "Let a model continue prompts: those given, what is piped in, or, at a terminal, what you type."
    )
    parser.add_argument("model", type=Path, metavar="runs/NAME|MODEL")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help='what to continue; "" begins a document; may be repeated'
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt on each line, or of .jsonl in each line")
    parser.add_argument(
        "--special-tokens", action="store_true", help="read special tokens out of prompts, such as <|endoftext|>"
    )
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--n", type=int, help="so many continuations of each prompt, with the seeds from --seed on")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text; 0 when not given")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this; may be repeated")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and of N alternatives to each token"
    )
    parser.add_argument(
        "--beams", type=int, metavar="N", help="search for the likeliest text with N beams; draw nothing"
    )
    parser.add_argument("--length-penalty", type=float, metavar="X", help="of beams; above 0 longer texts score higher")
    rules = ("temperature", "top-k", "top-p", "min-p", "repetition-penalty", "presence-penalty")
    for rule in rules:
        parser.add_argument(f"--{rule}", type=int if rule == "top-k" else float)
    given = _with_model_options(parser, words)
    for name, least in (("max_tokens", 1), ("n", 1), ("beams", 1), ("logprobs", 0)):
        if (value := getattr(given, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}: should be at least {least}, not {value}")
    if given.length_penalty is not None and given.beams is None:
        raise UserError("--length-penalty: goes with --beams")
    if given.logprobs is not None and not given.json:
        raise UserError("--logprobs: goes with --json")
    from hornbook.infer.speaker import load_speaker
    from hornbook.infer.terminal import piped_prompt, prompt_line, read_prompts, speak

    names = ("max_tokens", "n", "seed", "stop", "logprobs", "beams", "length_penalty")
    chosen = {name: getattr(given, name) for name in (*names, *(rule.replace("-", "_") for rule in rules))}
    options = {name: value for name, value in chosen.items() if value is not None} | {"specials": given.special_tokens}
    if given.beams is None:
        options.setdefault("seed", 0)
    prompts = [*(given.prompt or []), *(read_prompts(given.prompts) if given.prompts else [])]
    speaker = load_speaker(given.model, given.at, given.device)
    if not prompts:
        piped = piped_prompt()
        if piped is None and given.json:
            raise UserError("generate: --json needs a prompt: --prompt TEXT, --prompts FILE, or text that is piped in")
        if piped is None:
            prompt_line(speaker, options)
            return 0
        prompts = [piped]
    speak(speaker, prompts, options, given.json)
    return 0


def _import(words: list[str]) -> int:
    parser = _parser(
        "import",
        "A model from elsewhere becomes a model folder. SOURCE is a file of torch.save (of nanoGPT, the book, and "
        "others: docs/import-export.md), a Hugging Face folder, OWNER/NAME of one on the hub (or gpt2, gpt2-medium, "
        "gpt2-large, gpt2-xl), or a folder of OpenAI's TensorFlow files.",
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--n-head", type=int, help="attention heads, where the file does not tell")
    parser.add_argument("--activation", choices=("gelu", "gelu_tanh"), help="the bend, where the file does not tell")
    parser.add_argument(
        "--attention-scale", choices=("head", "width"), help="for train-llm-from-scratch without a projection"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="a folder with the model's, or a tokenizer.json")
    parser.add_argument("--ranks", metavar="FILE", help="GPT-2's vocabulary: a local copy of r50k_base.tiktoken")
    given = _with_json(parser, words)
    from hornbook.base.console import say
    from hornbook.exchange.doors import import_model

    named = {name: getattr(given, name) for name in ("n_head", "activation", "attention_scale")}
    knobs = {name: value for name, value in named.items() if value is not None}
    found = import_model(given.source, given.out, knobs=knobs, tokenizer=given.tokenizer, ranks=given.ranks)
    config = found.config
    if given.json:
        print(json.dumps(found.as_dict()))
        return 0
    say(f"found       {found.kind}")
    for note in found.notes:
        say(f"taken       {note}")
    sizes = f"{config.n_layer} layers of width {config.n_embd:,}, {config.n_head} heads, context {config.context:,}"
    say(f"parameters  {config.n_params():,}: {sizes}")
    say(f"tokenizer   {found.tokenizer}")
    say(f"model       {given.out}")
    say(f'\nnext:\n  hornbook generate {given.out} --prompt "Once upon a time"')
    say(f"  hornbook train --from {given.out} --data PATH/TO/YOUR/TEXT")
    return 0


def _export(words: list[str]) -> int:
    parser = _parser(
        "export",
        "A model for other programs: a folder for transformers (hf), a file for llama.cpp (gguf), or a plain "
        "PyTorch state dict (pt).",
    )
    parser.add_argument("model", type=Path, metavar="runs/NAME|MODEL")
    parser.add_argument("--to", required=True, choices=("hf", "gguf", "pt"))
    parser.add_argument("--out", type=Path, help="NAME-hf, NAME.gguf or NAME.pt here when not given")
    parser.add_argument("--at", default="best", help="which checkpoint of a run: best, newest, or a step")
    parser.add_argument("--dtype", help="f32, f16, bf16, and for gguf q8_0; for gguf f16 when not given, else f32")
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="for hf: where transformers has no such shape, put a modelling file of ours into the folder, which "
        "transformers runs with trust_remote_code=True only",
    )
    given = _with_json(parser, words)
    from hornbook.base.console import say
    from hornbook.exchange.export import CODE, export_model

    out = export_model(given.model, given.to, given.out, given.at, given.dtype, given.with_code)
    code = (out / CODE).is_file()
    if given.json:
        print(json.dumps({"out": str(out), "to": given.to, "code": code}))
        return 0
    if code:
        say(f"written {out}; it holds code ({CODE}), so transformers needs trust_remote_code=True\nnext:")
    else:
        needless = "; no code in it: transformers has this shape" if given.with_code else ""
        say(f"written {out}{needless}\nnext:")
    if given.to == "hf":
        trust = ", trust_remote_code=True" if code else ""
        call = f"pipeline('text-generation', '{out}'{trust})('The')"
        say(f'  python -c "from transformers import pipeline; print({call})"')
    elif given.to == "gguf":
        say(f'  llama-cli -m {out} -p "Once upon a time"')
    else:
        say(f"  hornbook import {out} OUT --tokenizer {given.model}")
    return 0


def _report(words: list[str]) -> int:
    parser = _parser("report", "Draw the curves of runs; of several, also their comparison.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="runs/NAME")
    given = _parse(parser, words)
    from hornbook.base.console import say
    from hornbook.report.curves import compare, draw

    for run in given.runs:
        for picture in draw(run):
            say(str(picture))
    if len(given.runs) > 1:
        say(str(compare(given.runs, given.runs[0].parent / "comparison.png")))
    return 0


def _model(words: list[str]) -> int:
    if _asks_help(words):
        print(
            "hornbook model RECIPE|FILE.toml|runs/NAME|MODEL [--json] [--any.knob VALUE ...]\n\n"
            "The truth about a model: its tree with shapes, parameters, FLOPs, bytes at rest and in training,\n"
            "each with its arithmetic, and the GPUs that hold it. A recipe's knobs can be turned:\n"
            "hornbook model demo --model.n-layer 32; of a run or a model folder, those of training."
        )
        return 0
    as_json = _take_flag(words, "--json")
    if not words or words[0].startswith("-"):
        raise UserError("model: name a recipe, a run or a model folder: hornbook model demo")
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, _long_forms(words[1:]))
    from hornbook.plan.truth import find  # torch comes in when the words are understood

    truth = find(words[0], knobs)
    if as_json:
        print(json.dumps(truth.as_dict()))
    else:
        truth.show()
    return 0


def _recipes(words: list[str]) -> int:
    given = _with_json(_parser("recipes", "The runs that have a name."), words)
    from hornbook.base.console import count, table
    from hornbook.recipes import RECIPES

    rows = []
    for name, recipe in RECIPES.items():
        config = recipe()
        vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
        shape = config.model.with_(vocab_size=vocab_size)
        rows.append((name, shape.n_params(), config.data, (recipe.__doc__ or "").strip().partition("\n")[0]))
    if given.json:
        print(json.dumps([dict(zip(("name", "parameters", "data", "about"), row, strict=True)) for row in rows]))
    else:
        table(
            ("recipe", "parameters", "data", "what it is"),
            [(n, count(float(p)), d, a) for n, p, d, a in rows],
        )
    return 0


def _corpora(words: list[str]) -> int:
    parser = _parser("corpora", "The texts that have a name; of one: its files, its switches, a look into it.")
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
        print(json.dumps(facts))
    else:
        show(facts)
    return 0


def _show_text(name: str, shown: int, knobs: list[str], as_json: bool) -> int:
    from hornbook.base.settings import build, from_words
    from hornbook.text.look import LookConfig, look_into

    if not name:
        raise UserError("corpora: --show needs a name: hornbook corpora python-stdlib --show")
    if shown < 1:
        raise UserError(f"--documents: should be at least 1, not {shown}")
    config = build(LookConfig, from_words(LookConfig, _long_forms(knobs)))
    look = look_into(name, config)
    if as_json:
        print(json.dumps(look.as_dict(shown), ensure_ascii=False))
    else:
        look.show(shown, config.tokenizer.kind)
    return 0


def _verify(words: list[str]) -> int:
    parser = _parser("verify", "Is every byte of a run, a checkpoint or a folder of shards as it was written?")
    parser.add_argument("path", type=Path)
    given = _with_json(parser, words)
    from hornbook.base.console import say
    from hornbook.report.verify import verify

    found = verify(given.path)
    if given.json:
        print(json.dumps({str(folder): damage or "good" for folder, damage in found.items()}))
    else:
        for folder, damage in found.items():
            say(f"{'damaged' if damage else 'good':8} {folder}" + (f": {damage}" if damage else ""))
    return 1 if any(found.values()) else 0


COMMANDS = {
    "train": _train,
    "resume": _resume,
    "prepare": _prepare,
    "eval": _eval,
    "generate": _generate,
    "import": _import,
    "export": _export,
    "report": _report,
    "model": _model,
    "recipes": _recipes,
    "corpora": _corpora,
    "verify": _verify,
}


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints in our form."""

    def error(self, message: str) -> Any:
        raise UserError(f"{self.prog.removeprefix('hornbook ')}: {message}; see {self.prog} --help")


def _parser(command: str, about: str) -> _Parser:
    return _Parser(prog=f"hornbook {command}", description=about, allow_abbrev=False)


def _parse(parser: _Parser, words: list[str]) -> argparse.Namespace:
    return parser.parse_args(words)


def _with_json(parser: _Parser, words: list[str]) -> argparse.Namespace:
    parser.add_argument("--json", action="store_true", help="print JSON, for a script to read")
    return _parse(parser, words)


def _with_model_options(parser: _Parser, words: list[str]) -> argparse.Namespace:
    parser.add_argument("--at", default="best", help="which checkpoint of a run: best, newest, or a step")
    parser.add_argument("--device", help="cpu, cuda, mps; the fastest there is when not given")
    return _with_json(parser, words)


def _told_apart(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """Where a script reads the answer, what is told on the way goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _asks_help(words: list[str]) -> bool:
    return "-h" in words or "--help" in words


def _take_flag(words: list[str], flag: str) -> bool:
    there = flag in words
    while flag in words:
        words.remove(flag)
    return there


def _long_forms(words: list[str]) -> list[str]:
    """The knobs of a text that have a short name."""
    pairs = [word.partition("=") for word in words]
    return [SHORT.get(name, name) + equals + value for name, equals, value in pairs]


def _print_stream(pieces: Any) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _print_knobs() -> None:
    from hornbook.train.config import RunConfig

    print(
        "hornbook train [RECIPE | FILE.toml] [--data CORPUS|PATH] [--out runs/NAME] [--tiny] [--json]\n"
        "               [--from MODEL|runs/NAME] [--any.knob VALUE ...]\n"
    )
    print(
        "With no recipe: the demo's. With --data PATH and no recipe: sizes from the amount of text.\n"
        "With --from MODEL|runs/NAME: from its weights rather than from nothing, with its sizes and its tokenizer.\n"
        "With --tiny: the run's miniature, which takes seconds.\n"
        "Every knob, and its default where no recipe sets it:\n"
    )
    _print_described(RunConfig)


def _print_described(config: type[Settings]) -> None:
    from hornbook.base.settings import described

    for knob, default, about in described(config):
        print(f"  {knob} ({default})\n      {about}")


if __name__ == "__main__":
    sys.exit(main())
