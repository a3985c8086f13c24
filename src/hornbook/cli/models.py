"""Commands of models at rest: what they are, where they come from and go to, and whether they are whole."""

from __future__ import annotations

from pathlib import Path

from hornbook.base.console import command, count, say, table
from hornbook.base.errors import UserError
from hornbook.base.output import answer, answer_json
from hornbook.cli.words import asks_help, long_forms, parser_of, take_flag, told_apart, with_json


def import_foreign(words: list[str]) -> int:
    parser = parser_of(
        "import",
        "A model from elsewhere becomes a model folder. SOURCE is a file of torch.save (of nanoGPT, the book, and "
        "others: docs/import-export.md), a Hugging Face folder, OWNER/NAME of one on the hub (or gpt2, gpt2-medium, "
        "gpt2-large, gpt2-xl), or a folder of OpenAI's TensorFlow files.",
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--n-head", type=int, help="attention heads, where the file does not tell")
    parser.add_argument("--activation", choices=("gelu", "gelu_tanh"), help="where the file does not tell")
    parser.add_argument(
        "--attention-scale", choices=("head", "width"), help="for train-llm-from-scratch without a projection"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="the model's: a folder, a tokenizer.json, or nanoGPT's meta.pkl"
    )
    parser.add_argument("--ranks", metavar="FILE", help="GPT-2's vocabulary: a local copy of r50k_base.tiktoken")
    given = with_json(parser, words)
    from hornbook.exchange.imports import import_model

    named = {name: getattr(given, name) for name in ("n_head", "activation", "attention_scale")}
    knobs = {name: value for name, value in named.items() if value is not None}
    found = import_model(given.source, given.out, knobs=knobs, tokenizer=given.tokenizer, ranks=given.ranks)
    config = found.config
    if given.json:
        answer_json(found.as_dict())
        return 0
    say(f"found       {found.kind}")
    for note in found.notes:
        say(f"taken       {note}")
    sizes = f"{config.n_layer} layers of width {config.n_embd:,}, {config.n_head} heads, context {config.context:,}"
    say(f"parameters  {config.n_params():,}: {sizes}")
    say(f"tokenizer   {found.tokenizer}")
    say(f"model       {given.out}")
    say(f"\nnext:\n  {command('generate', given.out, '--prompt', 'Once upon a time')}")
    say(f"  {command('train', '--from', given.out, '--data', 'PATH/TO/YOUR/TEXT')}")
    return 0


def export(words: list[str]) -> int:
    parser = parser_of(
        "export",
        "A model for other programs: a folder for transformers (hf), a file for llama.cpp (gguf), one page in which it "
        "speaks in any browser (html), or a plain PyTorch state dict (pt).",
    )
    parser.add_argument("model", type=Path, metavar="runs/NAME|MODEL")
    parser.add_argument("--to", required=True, metavar="hf|gguf|html|pt")
    parser.add_argument("--out", type=Path, help="NAME-hf, NAME.gguf, NAME.html or NAME.pt here when not given")
    parser.add_argument("--at", default="best", help="which checkpoint of a run: best, newest, or a step")
    parser.add_argument(
        "--dtype",
        help="f32, f16, bf16; for gguf also q8_0; for html f16 or int8; f16 for these two when not given, else f32",
    )
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="for hf: where transformers has no such shape, put a modelling file of ours into the folder, which "
        "transformers runs with trust_remote_code=True only",
    )
    given = with_json(parser, words)
    from hornbook.exchange.export import CODE, FORMATS, export_model

    out = export_model(given.model, given.to, given.out, given.at, given.dtype, given.with_code)
    code = (out / CODE).is_file()
    if given.json:
        answer_json({"out": str(out), "to": given.to, "code": code})
        return 0
    if code:
        say(f"written {out}; it holds code ({CODE}), so transformers needs trust_remote_code=True\nnext:")
    else:
        needless = "; no code in it: transformers has this shape" if given.with_code else ""
        say(f"written {out}{needless}\nnext:")
    say(f"  {FORMATS[given.to].use(out, given.model)}")
    return 0


def average(words: list[str]) -> int:
    parser = parser_of("average", "The mean of the weights of a run's newest checkpoints, as a model folder.")
    parser.add_argument("run", type=Path, metavar="runs/NAME")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--last", type=int, metavar="N", help="of how many; of all that are kept when not given")
    given = with_json(parser, words)
    from hornbook.exchange.mean import average_checkpoints

    if given.last is not None and given.last < 2:
        raise UserError(f"--last {given.last}: a mean needs two checkpoints or more")
    steps = average_checkpoints(given.run, given.out, given.last)
    if given.json:
        answer_json({"out": str(given.out), "steps": steps})
        return 0
    say(f"written {given.out}, the mean of steps {', '.join(f'{step:,}' for step in steps)}")
    say(f"next:\n  {command('generate', given.out, '--prompt', 'Once upon a time')}")
    return 0


def model(words: list[str]) -> int:
    if asks_help(words):
        answer(
            "hornbook model RECIPE|FILE.toml|runs/NAME|MODEL [--json] [--any.knob VALUE ...]\n\n"
            "What a model is and takes: its tree with shapes, parameters, FLOPs, bytes at rest and in training,\n"
            "each with its arithmetic, and the GPUs that hold it. A recipe's knobs can be turned:\n"
            "hornbook model demo --model.n-layer 32; of a run or a model folder, those of training.\n"
        )
        return 0
    as_json = take_flag(words, "--json")
    if not words or words[0].startswith("-"):
        raise UserError("model: name a recipe, a run or a model folder: hornbook model demo")
    from hornbook.base.settings import from_words
    from hornbook.train.config import RunConfig

    knobs = from_words(RunConfig, long_forms(words[1:]))
    from hornbook.plan.sizes import find  # torch comes in when the words are understood

    sizes = find(words[0], knobs)
    if as_json:
        answer_json(sizes.as_dict())
    else:
        sizes.show()
    return 0


def verify_path(words: list[str]) -> int:
    parser = parser_of("verify", "Is every byte of a run, a checkpoint or a folder of shards as it was written?")
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--replay",
        action="store_true",
        help="train a run again from its second newest checkpoint to its newest one: are losses, weights and moments "
        "the same, bit for bit? Nothing is written",
    )
    given = with_json(parser, words)
    from hornbook.report.verify import verify

    with told_apart(given.json):
        found = verify(given.path)
        replayed = None
        if given.replay:
            from hornbook.train.replay import replay

            replayed = replay(given.path)
    if given.json:
        told = {str(folder): damage or "good" for folder, damage in found.items()}
        answer_json(told | ({"replay": str(replayed)} if replayed is not None else {}))
    else:
        for folder, damage in found.items():
            say(f"{'damaged' if damage else 'good':8} {folder}" + (f": {damage}" if damage else ""))
        if replayed is not None:
            say(f"replayed {given.path}: {replayed}")
    return 1 if any(found.values()) or (replayed is not None and replayed.difference) else 0


def runs(words: list[str]) -> int:
    parser = parser_of(
        "runs", "The runs in a folder: which of them are at work or done, how far they came, their size."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER")
    given = with_json(parser, words)
    from hornbook.report.listing import show, standings

    found = standings(given.folder)
    if given.json:
        answer_json([each.as_dict() for each in found])
    elif found:
        show(found)
        stopped = [each for each in found if each.state in ("interrupted", "failed")]
        if stopped:
            say(f"\nnext:\n  {command('resume', stopped[0].run)}")
    else:
        say(f"{given.folder}: no runs in it")
    return 0


def recipes(words: list[str]) -> int:
    given = with_json(parser_of("recipes", "The runs that have a name."), words)
    from hornbook.recipes import RECIPES, vocabulary_of

    rows = []
    for name, recipe in RECIPES.items():
        config = recipe()
        entries = vocabulary_of(config)
        parameters = None if entries is None else config.model.with_(vocab_size=entries).n_params()
        rows.append((name, parameters, config.data, (recipe.__doc__ or "").strip().partition("\n")[0]))
    if given.json:
        answer_json([dict(zip(("name", "parameters", "data", "about"), row, strict=True)) for row in rows])
    else:
        table(
            ("recipe", "parameters", "data", "what it is"),
            [(n, "-" if p is None else count(float(p)), d, a) for n, p, d, a in rows],
        )
    return 0
