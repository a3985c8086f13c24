"""Other people's models come in.

In: a file of torch.save, a Hugging Face folder or the name of one on the hub, a folder of OpenAI's.  Out: a model
folder of ours, with a tokenizer. Which of them it is follows from the names of its tensors; its sizes, from their
shapes. What a file does not say is taken as its program has it, noted, and can be given otherwise.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from hornbook.base import files
from hornbook.base.console import Progress, warn
from hornbook.base.errors import MachineError, UserError
from hornbook.base.hub import AbsentError, commit_of, fetch_from_hub, is_commit
from hornbook.base.settings import build
from hornbook.exchange import programs
from hornbook.exchange.characters import META, read_characters
from hornbook.exchange.moments import Moments, moments_in
from hornbook.exchange.tensorflow import read_checkpoint
from hornbook.exchange.torchfile import find_weights, read_torch
from hornbook.model.config import CONFIG, INDEX, WEIGHTS, ModelConfig
from hornbook.model.folder import (
    load_config,
    mistakes_in,
    model_of,
    read_tensors,
    read_weights,
    save_model,
    shards_of,
    type_of,
)
from hornbook.model.gpt import GPT
from hornbook.model.shapes import layout_of
from hornbook.runs.folder import OPTIMIZER, OPTIMIZER_KNOBS
from hornbook.text.merges import PAIRS_OF_FILES, find_tokenizer
from hornbook.text.tokenizer import TOKENIZER_FILES, Tokenizer, TokenizerConfig, train_tokenizer

HPARAMS = "hparams.json"
OLDER_WEIGHTS = "pytorch_model.bin"
STATE, OUR_CONFIG = "model_state_dict", "config"
GPT2_ENTRIES = 50_257
# 50,304 is the next multiple of 64, to which nanoGPT fills the vocabulary up.
GPT2_FILLED_UP = 50_304
HEAD_WIDTH = 64
MEND = "name a folder that is here"
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
FILES_OF_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# What a file of ours or its program may call the knobs that it names.
ARGUMENTS = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "block_size": "context"}
ARGUMENTS |= {"vocab_size": "vocab_size", "dropout": "dropout"}
HPARAMETERS = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_ctx": "context"}
HPARAMETERS |= {"n_vocab": "vocab_size"}


@dataclass
class Found:
    """A model that was read, and what there is to say about it."""

    kind: str
    model: GPT
    tokenizers_at: Path
    notes: list[str] = field(default_factory=list)
    tables: tuple[Path, ...] = ()
    """Where nanoGPT's table of characters may lie."""
    moments: Moments | None = None


@dataclass(frozen=True)
class Imported:
    folder: Path
    kind: str
    notes: list[str]
    config: ModelConfig
    tokenizer: str

    def as_dict(self) -> dict[str, Any]:
        """For a script to read."""
        result = {"model": str(self.folder), "kind": self.kind, "notes": self.notes, "tokenizer": self.tokenizer}
        return result | {"parameters": self.config.n_params(), "config": self.config.model_dump()}


def import_model(
    source: str,
    out: Path,
    *,
    knobs: Mapping[str, Any] | None = None,
    tokenizer: Path | None = None,
    ranks: str | None = None,
) -> Imported:
    """Read a model from elsewhere and write it as a model folder. `knobs` are those of ModelConfig that the source
    does not say: n_head, activation, attention_scale."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; choose another OUT, or delete it")
    found = _read(source, knobs or {})
    entries = found.model.config.known_vocab_size
    known, where = _tokenizer_for(found, tokenizer, ranks)
    if not found.model.config.fits_vocabulary(known.vocab_size):
        raise UserError(
            f"{where}: has {known.vocab_size:,} entries, the model {entries:,}; name the one that it was trained with: "
            "--tokenizer FOLDER"
        )
    with files.staged_folder(out, {"imported": source, "kind": found.kind}) as staging:
        save_model(found.model, known, staging)
        if found.moments is not None:
            safetensors.torch.save_file(found.moments.tensors, staging / OPTIMIZER)
            files.write_json(staging / OPTIMIZER_KNOBS, found.moments.settings())
    return Imported(out, found.kind, found.notes, found.model.config, where)


def imported_from_hub(source: str) -> Path:
    """The model folder of a name on the hub: made once of each commit, and kept beside the files that were fetched."""
    fetched = fetch_model(source)
    out = fetched.with_name(f"{fetched.name}-imported")
    if files.damage(out) is not None:
        files.remove_sealed(out)
        if os.path.lexists(out):
            files.set_aside(out, "is not the model that was imported")
        import_model(str(fetched), out)
    return out


def _read(source: str, knobs: Mapping[str, Any]) -> Found:
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, knobs)
    if path.is_file():
        return _from_file(path, knobs)
    if path.with_name(path.name + ".index").is_file():
        return _from_openai(path.parent, path, knobs)
    if is_hub_name(source):
        return _from_folder(fetch_model(source), knobs)
    raise UserError(f"{source}: no such file or folder, nor a model on the hub (OWNER/NAME, or {', '.join(PUBLISHED)})")


def is_hub_name(source: str) -> bool:
    """Whether that which is no path may be a model on the Hugging Face hub."""
    name = source.removeprefix("hub:").partition("@")[0]
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None and ".." not in name
    return name in PUBLISHED or (plain and not name.endswith(FILES_OF_WEIGHTS))


def fetch_model(source: str) -> Path:
    """The folder in the cache with the files of a model on the hub, fetched where they are not there yet. They are
    those of one commit: what a branch is at is asked each time, and where the hub does not answer, is what it was."""
    name, _, revision = source.removeprefix("hub:").partition("@")
    repository = f"openai-community/{name}" if name in PUBLISHED else name
    revision = revision or "main"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", revision):
        raise UserError(f"{source}: {revision[:40]!r} is not a revision; name a branch, a tag or a commit")
    home = files.home() / "models" / repository.replace("/", "--")
    known = home / f"{revision}.commit"  # written when all of its files had come
    before = files.read_small(known).strip() if known.is_file() else ""
    has_before = is_commit(before) and (home / before).is_dir()
    if is_commit(revision):
        commit = revision
    else:
        try:
            commit = commit_of(repository, revision, CONFIG, MEND)
        except MachineError:
            if not has_before:
                raise
            warn(f"{source}: the hub does not answer; taken as it was when it was fetched, at commit {before[:8]}")
            commit = before
    if commit != before or not has_before:
        _fetch_commit(repository, commit, home / commit)
        files.write_text(known, commit + "\n")
    return home / commit


def _fetch_commit(repository: str, commit: str, folder: Path) -> None:
    progress = Progress(sys.stderr)
    progress.note(f"fetching {repository} from the Hugging Face hub, once; kept in {folder} (HORNBOOK_HOME)")

    def fetch(path: str) -> bool:
        try:
            fetch_from_hub(repository, commit, path, folder, path, progress=progress, kind="model", otherwise=MEND)
        except AbsentError:
            return False
        return True

    with progress:
        if not fetch(CONFIG):
            raise UserError(f"{repository}: has no {CONFIG} there; is it a language model?")
        load_config(folder)  # before gigabytes are fetched of what is not read here
        if not fetch(WEIGHTS):
            if fetch(INDEX):
                missing = [name for name in shards_of(folder / INDEX) if not fetch(name)]
            else:
                missing = [] if fetch(OLDER_WEIGHTS) else [f"{WEIGHTS} nor {OLDER_WEIGHTS}"]
            if missing:
                raise UserError(f"{repository}: has no {missing[0]} there; is it a language model?")
        if fetch(TOKENIZER_FILES[0]):
            fetch(TOKENIZER_FILES[1])
        else:
            for name in PAIRS_OF_FILES[0]:
                fetch(name)


def _from_folder(folder: Path, knobs: Mapping[str, Any]) -> Found:
    if (folder / HPARAMS).is_file():
        return _from_openai(folder, folder, knobs)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: neither a Hugging Face folder (no {CONFIG}) nor one of OpenAI's (no {HPARAMS})")
    config = load_config(folder)
    _refuse_known(folder / CONFIG, knobs)
    kind, path = type_of(folder, config), folder / WEIGHTS
    if not path.is_file() and not (folder / INDEX).is_file() and (folder / OLDER_WEIGHTS).is_file():
        path = folder / OLDER_WEIGHTS
        weights = find_weights(read_torch(path), path)
    else:
        weights = read_weights(folder)
    return Found(
        f"a Hugging Face folder of type {kind or 'hornbook'}", model_of(config, layout_of(kind), weights, path), folder
    )


def _from_openai(folder: Path, checkpoint: Path, knobs: Mapping[str, Any]) -> Found:
    path = folder / HPARAMS
    said = files.read_json(path)
    _refuse_known(path, knobs)
    # Matrices have an axis of one before theirs.
    weights = {
        name: tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor
        for name, tensor in read_checkpoint(checkpoint).items()
    }
    return _converted(programs.OPENAI, weights, _knobs_in(said, HPARAMETERS, path), checkpoint, folder, [])


def _from_file(path: Path, knobs: Mapping[str, Any]) -> Found:
    if path.suffix == ".safetensors":
        tree: Mapping[Any, Any] = {}
        weights = read_tensors(path)
    else:
        tree = read_torch(path)
        weights = find_weights(tree, path)
    if "blocks.0.attention.query.weight" in weights:
        return _ours(tree, weights, knobs, path)
    program = programs.program_of(weights)
    if program is None:
        raise UserError(_unknown(weights, path))
    weights = programs.learned(program, weights)
    notes: list[str] = []
    said: dict[str, Any] = {}
    arguments = tree.get("model_args")
    if isinstance(arguments, dict):
        said = _knobs_in(arguments, ARGUMENTS, path)
        if "n_head" in said and knobs.get("n_head", said["n_head"]) != said["n_head"]:
            raise UserError(f"{path}: its model_args say {said['n_head']} heads; leave --n-head out")
    heads = programs.heads_in(program, weights)
    if heads is not None:
        if knobs.get("n_head", heads) != heads:
            raise UserError(f"{path}: has {heads} heads; leave --n-head out")
        said["n_head"] = heads
        if not programs.has_projection(program, weights) and "attention_scale" not in knobs:
            said["attention_scale"] = "width"
            notes.append("scores are scaled by the width of the stream, as published; --attention-scale head if later")
    elif "n_head" not in said and "n_head" not in knobs:
        said["n_head"] = _assumed_heads(program, weights, path, notes)
    if program.knobs["activation"] == "gelu" and "activation" not in knobs:
        notes.append(
            "activation: the exact GELU, as in its program; --activation gelu_tanh for its files before May 2023"
        )
    found = _converted(program, weights, {**said, **knobs}, path, path.parent, notes)
    found.tables = _tables_near(tree, path)
    found.moments = moments_in(tree, program, found.model.config, weights, found.notes)
    return found


def _tables_near(tree: Mapping[Any, Any], path: Path) -> tuple[Path, ...]:
    """Beside the weights, or where nanoGPT leaves it: in data/NAME beside the folder that the weights are in."""
    settings = tree.get("config")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    named = isinstance(dataset, str) and re.fullmatch(r"\w[\w-]*", dataset) is not None
    return (path.parent / META, *([path.resolve().parent.parent / "data" / str(dataset) / META] if named else []))


def _converted(
    program: programs.Program,
    weights: Mapping[str, Any],
    said: Mapping[str, Any],
    path: Path,
    folder: Path,
    notes: list[str],
) -> Found:
    with mistakes_in(path):
        config = programs.config_of(program, weights, said)
    return Found(f"weights of {program.name}", model_of(config, program.layout, dict(weights), path), folder, notes)


def _knobs_in(said: Mapping[str, Any], arguments: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What a table beside the weights says of the knobs; ModelConfig looks at the values."""
    missing = next((name for name in arguments if name not in said and name != "dropout"), None)
    if missing is not None:
        raise UserError(f"{path}: does not say {missing}, which its program always does")
    return {knob: said[name] for name, knob in arguments.items() if name in said}


def _refuse_known(path: Path, knobs: Mapping[str, Any]) -> None:
    for knob in knobs:
        raise UserError(f"{path}: says what the model is; leave --{knob.replace('_', '-')} out")


def _assumed_heads(program: programs.Program, weights: Mapping[str, Any], path: Path, notes: list[str]) -> int:
    """No tensor shows how many heads its matrices are cut into."""
    with mistakes_in(path):
        _, width = programs.matrix(program, weights, "embedding")
    if program is programs.WIKITEXT:
        for near in (path.parent / CONFIG, path.parent / "config" / CONFIG, path.parent.parent / "config" / CONFIG):
            heads = _heads_in_config(near)
            if heads:
                notes.append(f"{heads} heads, from {near}")
                return heads
    if width % HEAD_WIDTH or program is programs.NOTEBOOK:
        raise UserError(f"{path}: does not say the number of heads; name it: --n-head {max(width // HEAD_WIDTH, 1)}")
    heads = width // HEAD_WIDTH
    notes.append(f"{heads} heads of width {HEAD_WIDTH}, as is usual; the file does not say, --n-head says otherwise")
    return heads


def _heads_in_config(path: Path) -> int | None:
    section = files.read_json(path).get("model") if path.is_file() else None
    heads = section.get("n_heads") if isinstance(section, dict) else None
    return heads if type(heads) is int else None


def _ours(tree: Mapping[Any, Any], weights: Mapping[str, Any], knobs: Mapping[str, Any], path: Path) -> Found:
    held = tree.get(OUR_CONFIG)
    if not isinstance(held, dict):
        raise UserError(f"{path}: weights of Hornbook without their config; hornbook export --to pt writes both")
    _refuse_known(path, knobs)
    with mistakes_in(path):
        config = build(ModelConfig, held)
    learned = dict(weights)
    if config.tied and programs.are_the_same(learned.get("head.weight"), learned.get("embedding.weight")):
        del learned["head.weight"]
    return Found("weights of Hornbook", model_of(config, None, learned, path), path.parent)


def _unknown(weights: Mapping[str, Any], path: Path) -> str:
    if "model.embed_tokens.weight" in weights:
        return f"{path}: weights of a Hugging Face model without its {CONFIG}; name the folder that has both"
    there = ", ".join(list(weights)[:2])[:70]
    return f"{path}: no program that is known names tensors so ({there}); see docs/import-export.md"


def _tokenizer_for(found: Found, given: Path | None, ranks: str | None) -> tuple[Tokenizer, str]:
    """The tokenizer that belongs to the model, and where it comes from."""
    entries = found.model.config.known_vocab_size
    if given is not None and given.suffix == Path(META).suffix:
        return read_characters(given), str(given)
    if given is not None:
        folder = given if given.is_dir() else given.parent
        if given.is_file() and given.name != TOKENIZER_FILES[0]:
            raise UserError(f"--tokenizer {given}: should be a folder, a {TOKENIZER_FILES[0]}, or a {META}")
        tokenizer = find_tokenizer(folder)
        if tokenizer is None:
            raise UserError(f"--tokenizer {given}: no {TOKENIZER_FILES[0]} there, nor vocab.json and merges.txt")
        return tokenizer, str(given)
    if ranks is None:
        tokenizer = find_tokenizer(found.tokenizers_at)
        if tokenizer is not None:
            return tokenizer, str(found.tokenizers_at)
        if table := next((place for place in found.tables if place.is_file()), None):
            return read_characters(table), str(table)
    if GPT2_ENTRIES <= entries <= GPT2_FILLED_UP:
        return train_tokenizer(TokenizerConfig(kind="gpt2", ranks_file=ranks), [], 0), "GPT-2's vocabulary"
    if ranks is not None:
        raise UserError(f"--ranks: GPT-2's vocabulary has {GPT2_ENTRIES:,} entries, the model {entries:,}; --tokenizer")
    raise UserError(
        f"the model knows {entries:,} tokens, and no tokenizer lies beside it; name the one that it was trained with: "
        "--tokenizer FOLDER, a tokenizer.json, or nanoGPT's meta.pkl"
    )
