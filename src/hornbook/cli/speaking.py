"""Commands of a model at work: generate, eval, originality."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hornbook.base.console import Progress, command, count, note, say, table
from hornbook.base.errors import UserError
from hornbook.base.output import answer_json
from hornbook.cli.words import DROPS, parser_of, with_model_options


def evaluate_text(words: list[str]) -> int:
    parser = parser_of("eval", "Loss, perplexity and bits per byte of a text under a model, or under several.")
    parser.add_argument("models", type=Path, nargs="+", metavar="runs/NAME|MODEL")
    parser.add_argument("--data", help="a corpus, a text, or shards; a run's own validation text when not given")
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="val",
        help="of a run or of shards; of a run's test part every look is kept",
    )
    given = with_model_options(parser, words)
    from hornbook.infer.evaluate import evaluate

    results = [evaluate(model, given.data, given.at, given.device, given.dtype, given.split) for model in given.models]
    if given.json:
        for result in results:
            answer_json(result)
        return 0
    if len(results) > 1:
        _show_beside(results)
        return 0
    [result] = results
    say(f"text           {result['text']}")
    say(f"model          {result['model']}")
    if result.get("looked_before"):
        say(f"scored         {result['scored_at']}")
    say(f"loss           {result['loss']:.4f} nats per token, over {result['tokens']:,} tokens")
    say(f"perplexity     {result['perplexity']:.2f}")
    say(f"bits per byte  {result['bits_per_byte']:.4f}" + ("" if result["keeps_text"] else DROPS))
    say(f"words          {command('glossary', 'perplexity')}")
    return 0


def _show_beside(results: list[dict[str, Any]]) -> None:
    """The fewer bits per byte, the better; losses and perplexities are of tokens, which may be others."""

    rows = [
        [
            each["model"],
            f"{each['loss']:.4f}",
            f"{each['perplexity']:.2f}",
            f"{each['bits_per_byte']:.4f}",
            each["text"],
        ]
        for each in results
    ]
    table(["model", "loss", "perplexity", "bits per byte", "text"], rows, right={1, 2, 3})
    if len({each["text"] for each in results}) > 1:
        note("these are different texts; --data TEXT scores all on the same")


def prompt_last(models: list[str]) -> tuple[list[str], list[str] | None]:
    """`generate RUN "Once upon a time"`: a last word that names nothing, and looks like no path, is the prompt."""
    from hornbook.runs.folder import did_you_mean

    *others, last = models
    is_words = any(each.isspace() for each in last)
    if not others or (not is_words and ("/" in last or Path(last).exists() or did_you_mean(Path(last)))):
        return models, None
    return others, [last]


def generate(words: list[str]) -> int:
    from hornbook.base.settings import described
    from hornbook.infer.config import SamplerConfig

    parser = parser_of(
        "generate",
        "Let a model continue prompts: those given, what is piped in, or, at a terminal, what you type; several models "
        "beside one another.",
    )
    parser.add_argument("models", nargs="+", metavar="runs/NAME|MODEL")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help='what to continue; "" begins a document; may be repeated'
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt on each line, or of .jsonl in each line")
    parser.add_argument(
        "--special-tokens", action="store_true", help="read special tokens out of prompts, such as <|endoftext|>"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="of each continuation; %(default)s when not given"
    )
    parser.add_argument(
        "--n", type=int, help="so many continuations of each prompt, with the seeds from --seed on; 1 when not given"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same text; 0 when not given")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this; may be repeated")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and of N alternatives to each token"
    )
    parser.add_argument(
        "--beams", type=int, metavar="N", help="search for the likeliest text with N beams; draw nothing"
    )
    parser.add_argument("--length-penalty", type=float, metavar="X", help="of beams; above 0 longer texts score higher")
    rules = list(SamplerConfig.model_fields)
    for (rule, default, about), name in zip(described(SamplerConfig), rules, strict=True):
        whole = f"{about} ({default.replace('auto', 'off')} when not given)"
        parser.add_argument(rule, type=int if name == "top_k" else float, metavar="X", help=whole)
    given = with_model_options(parser, words, intermixed=True)
    if given.prompt is None and given.prompts is None:
        given.models, given.prompt = prompt_last(given.models)
    for name, least in (("max_tokens", 1), ("n", 1), ("beams", 1), ("logprobs", 0)):
        if (value := getattr(given, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}: should be at least {least}, not {value}")
    if given.length_penalty is not None and given.beams is None:
        raise UserError("--length-penalty: goes with --beams")
    if given.logprobs is not None and not given.json:
        raise UserError("--logprobs: goes with --json")
    from hornbook.infer.speaker import load_speaker
    from hornbook.infer.terminal import piped_prompt, prompt_line, read_prompts, speak, speak_side_by_side

    names = ("max_tokens", "n", "seed", "stop", "logprobs", "beams", "length_penalty")
    chosen = {name: getattr(given, name) for name in (*names, *rules)}
    options = {name: value for name, value in chosen.items() if value is not None} | {"specials": given.special_tokens}
    if given.beams is None:
        options.setdefault("seed", 0)
    prompts = [*(given.prompt or []), *(read_prompts(given.prompts) if given.prompts else [])]
    speaker, *others = [load_speaker(Path(model), given.at, given.device, given.dtype) for model in given.models]
    if not prompts:
        piped = piped_prompt()
        if piped is None and given.json:
            raise UserError("generate: --json needs a prompt: --prompt TEXT, --prompts FILE, or text that is piped in")
        if piped is None and others:
            raise UserError("generate: several models need a prompt: --prompt TEXT, or --prompts FILE")
        if piped is None:
            prompt_line(speaker, options)
            return 0
        prompts = [piped]
    if others:
        speak_side_by_side([speaker, *others], given.models, prompts, options, given.json)
    else:
        speak(speaker, prompts, options, given.json)
    return 0


def originality(words: list[str]) -> int:
    parser = parser_of(
        "originality",
        "What a model merely recites: how much of what it writes stands in its training text word for word, and where, "
        "beside how much of the validation text does.",
    )
    parser.add_argument("run", type=Path, metavar="runs/NAME")
    parser.add_argument(
        "--log", action="store_true", help="look at the run's newest logged samples instead of letting it write some"
    )
    given = with_model_options(parser, words)
    from hornbook.base.output import visible
    from hornbook.infer.originality import SHOWN, originality
    from hornbook.shards.recited import LEAST

    with Progress(sys.stderr) as line:
        found = originality(
            given.run,
            given.at,
            given.device,
            given.dtype,
            given.log,
            lambda done, of: line.update(f"read {count(float(done))} of {count(float(of))} tokens"),
        )
    if given.json:
        answer_json(found.as_dict())
        return 0
    say(f"samples      {found.of_samples} stand in the training text ({found.samples} samples)")
    say(f"fresh text   {found.of_held_out}, of the validation text")
    say(f"passages     {found.covered:.1%} of what it wrote lies in passages of {LEAST} bytes or more that stand there")
    for each in found.passages:
        shown = each["text"] if len(each["text"]) <= SHOWN else each["text"][:SHOWN] + " ..."
        say(f"  {each['bytes']:,} bytes, as in document {each['document']:,} (token {each['token']:,}):")
        say(f"    {visible(shown)}")
    twins = found.twins
    if twins.compared:
        say(f"twins        {twins.documents:,} of {twins.compared:,} validation documents are in the training text too")
    else:
        say("twins        no validation document could be compared with the training text's")
    say(f"\n{found.verdict}")
    return 0
