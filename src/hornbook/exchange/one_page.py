"""A model in one page: a file in which it speaks, in any browser, without a server or a network.

In: a model folder, and the run that it lies in, where it lies in one.  Out: one .html file with the page of
`hornbook serve`, a worker in plain JavaScript that computes what model/gpt.py computes, the tokenizer, the model's card
and curve, and its weights: a safetensors file in base64, of float16, or of int8 with a scale for each row of a matrix.
A strict policy in its head sees to it that it asks nobody for anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import safetensors.torch
import torch

from hornbook.base import files
from hornbook.base.console import count, duration
from hornbook.base.errors import UserError
from hornbook.exchange.card import Known, as_far_as_known
from hornbook.exchange.page_tokenizer import tokenizer_facts
from hornbook.model.config import ModelConfig
from hornbook.model.folder import load_model
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import read_log
from hornbook.text.tokenizer import Tokenizer

DTYPES = ("f16", "int8")
LARGEST = 1 << 29  # bytes of weights: a browser holds a page several times while it opens it
LARGEST_INT8 = 127
SCRIPTS = Path(__file__).parent / "page"
PAGES = [Path(__file__).parents[1] / room / "page" for room in ("serve", "report")]
# What page/gpt.js can compute of the parts that are entries in tables; all other knobs of a shape it knows.
COMPUTED = {
    "norm": ("layernorm", "rmsnorm"),
    "activation": ("gelu", "gelu_tanh", "relu", "relu2", "swiglu"),
    "positions": ("learned", "rotary", "none"),
}
WORKER = ("tokenizer.js", "gpt.js", "sampler.js", "worker.js")
MODULES = ("parts", "chart", "api", "answer", "looked", "beside", "curve", "knobs")  # each before those that import it
PIECE = 6 << 20  # of weights, in bytes, so that the worker decodes while the next is fetched
SAMPLES = 3
MOST_POINTS = 1000  # of a curve, whose steps stand on a log scale
# The page's links to the server's glossary, in scripts and in its text, and what stands there without.
LINK = re.compile(r"^export const toGlossary = .*?;$", re.MULTILINE | re.DOTALL)
NO_LINK = 'export const toGlossary = (word, text) => (text === "In the glossary" ? "" : text);'
LINKED = re.compile(r'<a class="([^"]*)" href="/glossary[^>]*>(.*?)</a>')


def export_page(folder: Path, out: Path, dtype: str) -> None:
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    _check(folder, model.config)
    weights = safetensors.torch.save(_stored(model.state_dict(), model.config, dtype))
    if len(weights) > LARGEST:
        raise UserError(f"{folder}: {count(float(len(weights)))}B of weights are too many for a page; --to gguf")
    begin = {
        "shape": _shape(model.config),
        "tokenizer": tokenizer_facts(folder, tokenizer),
        "known": tokenizer.vocab_size,
        "bytes": len(weights),
    }
    page = as_far_as_known(
        Known.of(folder), lambda known: _page(known, _shown(known) | {"begin": begin}, weights, dtype)
    )
    with files.staged_file(out) as staging:
        files.write_text(staging, page)


def _check(folder: Path, config: ModelConfig) -> None:
    for knob, known in COMPUTED.items():
        if getattr(config, knob) not in known:
            raise UserError(
                f"{folder}: a page cannot compute {knob} {getattr(config, knob)}, only {', '.join(known)}; --to hf"
            )


def _stored(state: dict[str, torch.Tensor], config: ModelConfig, dtype: str) -> dict[str, torch.Tensor]:
    """Under our own names; one matrix for embedding and head once."""
    stored = {}
    for name, tensor in state.items():
        if config.tied and name == "head.weight":
            continue
        if dtype == "f16":
            if not bool((tensor.abs() <= torch.finfo(torch.float16).max).all()):
                raise UserError(f"tensor {name} holds numbers that f16 cannot hold; --dtype int8")
            stored[name] = tensor.half().contiguous()
        elif tensor.ndim < 2:
            stored[name] = tensor.float().contiguous()
        else:
            scales = tensor.float().abs().amax(dim=1).clamp(min=1e-30) / LARGEST_INT8
            stored[name] = (tensor.float() / scales[:, None]).round().to(torch.int8).contiguous()
            stored[f"{name}.scales"] = scales
    return stored


def _shape(config: ModelConfig) -> dict[str, Any]:
    same = ("context", "n_layer", "n_head", "n_embd", "norm", "norm_eps", "embedding_norm", "activation", "positions")
    more = ("rope_theta", "qk_norm", "logit_cap", "bigram_embeddings")
    return {name: getattr(config, name) for name in (*same, *more)} | {
        "kv_heads": config.kv_heads,
        "head_width": config.width_of_head,
        "scale": config.scale_of_attention,
    }


def _shown(known: Known) -> dict[str, Any]:
    """What the server would answer to the page (serve/runs.py)."""
    curve: dict[str, Any] = {"run": known.name, "step": known.step, "steps_total": None, "training": False}
    train, val = [], []
    points = []
    samples: list[dict[str, Any]] = []
    if known.run is not None and known.record is not None:
        for each in read_log(RunFolder(known.run).metrics):
            train += [(each["step"], each["loss"])] if each.get("loss") is not None else []
            val += [(each["step"], each["val_loss"])] if each.get("val_loss") is not None else []
        points = [
            {
                "id": known.name,
                "step": known.step,
                "tokens": (known.trained or {}).get("tokens"),
                "val_loss": dict(val).get(known.step),
                "kind": "checkpoint",
            }
        ]
        samples = [{name: each[name] for name in ("step", "prompt", "text")} for each in known.samples[-SAMPLES:]]
        curve["step"] = train[-1][0] if train else known.step
    model = {
        "name": known.name,
        "kind": "model" if not points else "run",
        "parameters": known.model.n_params(),
        "context": known.model.context,
        "vocab_size": known.model.known_vocab_size,
        "training": False,
        "points": points,
    }
    return {"model": model, "curve": curve | {"train": _thinned(train), "val": _thinned(val)}, "samples": samples}


def _thinned(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    finite = [each for each in line if math.isfinite(each[1])]
    if len(finite) <= MOST_POINTS:
        return finite
    places = {round(len(finite) ** (place / MOST_POINTS)) - 1 for place in range(MOST_POINTS + 1)}
    return [finite[place] for place in sorted(places)]


def _page(known: Known, facts: dict[str, Any], weights: bytes, dtype: str) -> str:
    style, script = "".join(map(_part, ("look.css", "page.css", "card.css"))), _bundle()
    worker = "\n".join(map(_part, WORKER))
    icon = base64.b64encode(_part("icon.svg").encode()).decode()
    policy = (
        f'<meta http-equiv="Content-Security-Policy" content="'
        f"default-src 'none'; script-src '{_hash(script)}' blob:; worker-src blob:; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'\">"
    )
    page = LINKED.sub(r'<span class="\1">\2</span>', _part("index.html"))
    for before, after in {
        '<meta charset="utf-8">': f'<meta charset="utf-8">\n  {policy}',
        "<title>Hornbook</title>": f"<title>{html.escape(known.name)}</title>",
        "/page/icon.svg": f"data:image/svg+xml;base64,{icon}",
        '<link rel="stylesheet" href="/page/look.css">': "",
        '<link rel="stylesheet" href="/page/page.css">': f"<style>{style}</style>",
        '<label class="check"><input id="look"': '<label class="check" hidden><input id="look"',
        '<script type="module" src="/page/page.js"></script>': "",
        '<button id="share" type="button"': '<button id="share" type="button" hidden',
        "Programs ask at /v1/completions.": "The model in it is a program.",
        '<p id="facts"></p>': '<p id="facts"></p>\n' + _card(known, dtype),
    }.items():
        assert page.count(before) == 1, before
        page = page.replace(before, after)
    told = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")
    parts = [
        f'<script id="model-facts" type="application/json">{told}</script>',
        f'<script id="model-script" type="text/plain">{worker}</script>',
        *(f'<script class="weights" type="text/plain">{each}</script>' for each in _pieces(weights)),
        f'<script type="module">{script}</script>',
    ]
    return page.replace("</body>", "\n".join(parts) + "\n</body>")


def _part(name: str) -> str:
    """A file of the page's; that of the server and of reports, where it has none of its own."""
    path = next(folder / name for folder in (SCRIPTS, *PAGES) if (folder / name).is_file())
    return path.read_text("utf-8")


def _pieces(weights: bytes) -> Iterator[str]:
    for start in range(0, len(weights), PIECE):
        yield base64.b64encode(weights[start : start + PIECE]).decode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _bundle() -> str:
    """The page's modules as one: each a function that is called once, and hands out what it exports. What talks to a
    server is left out for what talks to the model beside it."""
    parts = []
    for name in MODULES:
        source = LINK.sub(NO_LINK, _part("local.js" if name == "api" else f"{name}.js"))
        exported = re.findall(r"^export (?:async )?(?:const|class|function\*?) (\w+|\$)", source, flags=re.MULTILINE)
        body = re.sub(r"^export ", "", _without_imports(source), flags=re.MULTILINE)
        parts.append(f"const {name}_js = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();")
    return "\n".join([*parts, _without_imports(_part("page.js"))])


def _without_imports(source: str) -> str:
    return re.sub(r'^import (\{[^}]*\}) from "\./(\w+)\.js";', r"const \1 = \2_js;", source, flags=re.MULTILINE)


def _card(known: Known, dtype: str) -> str:
    forms = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = _part("card.html.jinja")
    return forms.from_string(template).render(
        known=known, rows=_rows(known, dtype), limits=known.limits, count=lambda value: count(float(value))
    )


def _rows(known: Known, dtype: str) -> dict[str, str]:
    model = known.model
    rows = {
        "parameters": f"{model.n_params():,}",
        "layers, heads, width": f"{model.n_layer}, {model.n_head}, {model.n_embd:,}",
        "vocabulary": f"{model.known_vocab_size:,} tokens",
        "weights here": {"f16": "16 bits", "int8": "8 bits"}[dtype],
    }
    if known.record is not None:
        rows["text"] = known.data
        if known.manifest is not None:
            rows["text"] += f", {count(float(known.manifest['splits']['train']['bytes_of_text']))}B to train on"
        if known.trained is not None:
            rows["tokens read"] = f"{known.trained['tokens']:,}"
            if known.times_read is not None:
                rows["tokens read"] += f", {known.times_read:.1f} times its text"
            machine = known.record.more.get("machine", {})
            rows["trained for"] = f"{duration(known.trained['seconds'])} on {machine.get('name', 'an unknown machine')}"
        rows["step"] = f"{known.step:,}"
    rows |= {kind: f"{value:.4g}" for kind, value in known.measures.items()}
    return rows
