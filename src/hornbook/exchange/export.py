"""Our models go out.

In: a model folder, or a run.  Out: a folder that transformers opens by its path, one GGUF file for llama.cpp, one page
in which it speaks by itself, or one file of torch.save with the state dict under our own names and the config that
builds a GPT for it. Into a folder of a shape that transformers does not have goes, where it is asked for, a modelling
file (modeling.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from hornbook.base import files
from hornbook.base.console import command, shell
from hornbook.base.errors import UserError
from hornbook.exchange.card import write_card
from hornbook.exchange.gguf import DTYPES, export_gguf
from hornbook.exchange.imports import OUR_CONFIG, STATE
from hornbook.exchange.modeling import modeling_file
from hornbook.exchange.one_page import DTYPES as PAGE_DTYPES
from hornbook.exchange.one_page import export_page
from hornbook.model.config import CONFIG
from hornbook.model.folder import load_model, save_model
from hornbook.model.shapes import SHAPES, shape_of
from hornbook.runs.folder import resolve
from hornbook.text.tokenizer import Tokenizer

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
LARGEST_HALF = 65504.0
CODE = "modeling_hornbook.py"
CLASSES = {"AutoConfig": "HornbookConfig", "AutoModelForCausalLM": "HornbookForCausalLM"}


def export_model(
    model: Path,
    to: str,
    out: Path | None = None,
    at: str = "best",
    dtype: str | None = None,
    with_code: bool = False,
) -> Path:
    """Write a model in another program's form; hands back where."""
    if to not in FORMATS:
        raise UserError(f"--to {to}: not a format that is written; take one of {', '.join(FORMATS)}")
    format = FORMATS[to]
    write, dtype = format.write, dtype or format.dtypes[0]
    if with_code:
        if to != "hf":
            raise UserError(f"--with-code: a modelling file is for transformers; take --to hf, not {to}")
        write = partial(_to_transformers, with_code=True)
    if dtype not in format.dtypes:
        raise UserError(f"--dtype {dtype}: {to} is written as {', '.join(format.dtypes)}")
    out = out or Path(model.resolve().name + format.ending)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; choose another --out, or delete it")
    write(resolve(model, at), out, dtype)
    return out


def _to_transformers(folder: Path, out: Path, dtype: str, with_code: bool = False) -> None:
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    with_code = with_code and shape_of(model.config) is None
    if shape_of(model.config) is None and not with_code:
        raise UserError(
            f"{folder}: transformers has no model of exactly this shape, only {', '.join(SHAPES)}; "
            "--with-code adds a modelling file of ours, --to pt writes the weights alone"
        )
    _check_range(model.state_dict(), dtype)
    with files.staged_folder(out, {"exported": str(folder)}) as staging:
        save_model(model.to(PLAIN[dtype]), tokenizer, staging)
        if with_code:
            _add_code(staging)
        write_card(folder, staging, dtype, with_code)


def _add_code(staging: Path) -> None:
    """The modelling file, and where config.json and transformers look for it."""
    files.write_text(staging / CODE, modeling_file())
    auto_map = {auto: f"{Path(CODE).stem}.{name}" for auto, name in CLASSES.items()}
    described = files.read_json(staging / CONFIG) | {"architectures": [CLASSES["AutoModelForCausalLM"]]}
    files.write_json(staging / CONFIG, described | {"auto_map": auto_map})


def _to_torch(folder: Path, out: Path, dtype: str) -> None:
    model = load_model(folder)
    _check_range(model.state_dict(), dtype)
    state = model.to(PLAIN[dtype]).state_dict()
    # Given a path, torch puts its name into the file, and takes none without an ending.
    with files.staged_file(out) as staging, files.open_to_write(staging, "wb") as file:
        torch.save({STATE: dict(state), OUR_CONFIG: model.config.model_dump(mode="json")}, file)


def _check_range(state: dict[str, torch.Tensor], dtype: str) -> None:
    """bf16 holds whatever float32 does; f16 does not."""
    for name, tensor in state.items() if dtype == "f16" else ():
        if not bool((tensor.abs() <= LARGEST_HALF).all()):
            raise UserError(f"tensor {name} holds numbers that f16 cannot hold; export as f32 or bf16")


def _with_transformers(out: Path, model: Path) -> str:
    trust = ", trust_remote_code=True" if (out / CODE).is_file() else ""
    call = f'pipeline("text-generation", {json.dumps(str(out))}{trust})("The")'
    return shell("python", "-c", f"from transformers import pipeline; print({call})")


@dataclass(frozen=True)
class ExportFormat:
    """A form in which models go out."""

    write: Callable[[Path, Path, str], None]
    """Writes a model folder to a new path, in a dtype."""
    ending: str
    """How the name of what is written ends, where none is given."""
    dtypes: tuple[str, ...]
    """The first is the usual one."""
    use: Callable[[Path, Path], str]
    """A command that uses what was written, of a run or a model folder."""


FORMATS = {
    "hf": ExportFormat(_to_transformers, "-hf", tuple(PLAIN), _with_transformers),
    "gguf": ExportFormat(
        export_gguf, ".gguf", tuple(DTYPES), lambda out, _: shell("llama-cli", "-m", out, "-p", "Once upon a time")
    ),
    "html": ExportFormat(
        export_page, ".html", PAGE_DTYPES, lambda out, _: shell("python", "-m", "webbrowser", out.resolve().as_uri())
    ),
    "pt": ExportFormat(
        _to_torch, ".pt", tuple(PLAIN), lambda out, model: command("import", out, "OUT", "--tokenizer", model)
    ),
}
