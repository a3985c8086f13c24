"""The command of a model that others talk to: serve."""

from __future__ import annotations

import os
from pathlib import Path

from hornbook.base.output import going_on
from hornbook.cli.words import parse, parser_of


@going_on()
def serve(words: list[str]) -> int:
    parser = parser_of(
        "serve",
        "A page to play with, and OpenAI's completions API, for models and runs, also while they train. It listens to "
        "this machine alone, unless --host says otherwise.",
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="runs/NAME|MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for every address of this machine: with --key")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    parser.add_argument("--key", help="asked of everyone; rather HORNBOOK_KEY, as others see a command's words")
    parser.add_argument(
        "--name", action="append", default=[], help="another name by which it is reached, such as a proxy's"
    )
    parser.add_argument("--rows", type=int, help="texts that a model continues at once")
    parser.add_argument("--queue", type=int, help="requests that may wait; more are refused with 429")
    parser.add_argument("--loaded", type=int, help="models that are kept in memory; the one idle longest makes room")
    parser.add_argument("--device", help="cpu, cuda, mps; the fastest there is when not given")
    parser.add_argument("--dtype", help="float32, exact, when not given; bfloat16 or, on a CPU, int8 are faster")
    given = parse(parser, words)
    from hornbook.base.settings import build
    from hornbook.serve.config import ServeConfig

    limits = {name: value for name in ("rows", "queue", "loaded") if (value := getattr(given, name)) is not None}
    config = build(ServeConfig, limits)
    from hornbook.serve.server import serve as run

    run(
        given.models,
        host=given.host,
        port=given.port,
        key=given.key or os.environ.get("HORNBOOK_KEY") or None,
        names=given.name,
        device=given.device,
        dtype=given.dtype,
        config=config,
        to_open=given.open,
    )
    return 0
