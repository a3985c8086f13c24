"""A model on disk.

In: a GPT and its tokenizer.  Out: a Hugging Face folder, and back.
`config.json` names a model type of transformers where there is one of exactly this shape, so that
AutoModelForCausalLM loads the folder by its path alone; our own ModelConfig stands in it under "hornbook", where
transformers keeps and ignores it. A shape that has no such type is saved as model type `hornbook`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hornbook.base import files
from hornbook.base.console import command, warn
from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT
from hornbook.model.init import outline
from hornbook.model.layouts import Layout, Tensors, to_ours, to_theirs
from hornbook.model.shapes import SHAPES, layout_of, read_description, shape_of
from hornbook.text.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
RUN = "run.json"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
MOST_STEPS_NAMED = 10


def save_model(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write model and tokenizer into a staged folder; as `dtype`, in which a number too large becomes the largest."""
    config, dtype = model.config, dtype or model.embedding.weight.dtype
    kind = shape_of(config)
    end = tokenizer.end_of_text
    ids = {"bos_token_id": end, "eos_token_id": end}
    description: dict[str, Any] = {
        "model_type": kind or "hornbook",
        "vocab_size": config.known_vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if kind is not None:
        description |= {"architectures": [SHAPES[kind].architecture], "tie_word_embeddings": config.tied}
        description |= SHAPES[kind].describe(config)
    # Their layouts are copies, for which an accelerator that is full of training has no room.
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    if dtype != model.embedding.weight.dtype:
        most = torch.finfo(dtype).max
        state = {name: tensor.clamp(-most, most).to(dtype) for name, tensor in state.items()}
    files.write_json(folder / CONFIG, description | ids | {"hornbook": config.model_dump()})
    # Not in config.json: there, some types never train the embedding of the padding, which is the end of text here.
    files.write_json(folder / "generation_config.json", ids | {"pad_token_id": end})
    safetensors.torch.save_file(to_theirs(layout_of(kind), config, state), folder / WEIGHTS, {"format": "pt"})
    tokenizer.save(folder, config.context)


def load_config(folder: Path) -> ModelConfig:
    """What a folder's model is; of one that another program wrote, from transformers' description of it."""
    description = files.read_json(folder / CONFIG)
    ours, kind = description.get("hornbook"), str(description.get("model_type", ""))
    with mistakes_in(folder / CONFIG):
        config = build(ModelConfig, ours) if isinstance(ours, dict) else read_description(kind, description)
    if config.vocab_size is None:
        raise UserError(f"{folder / CONFIG}: has no vocab_size")
    return config


@contextlib.contextmanager
def mistakes_in(path: Path) -> Iterator[None]:
    """What is wrong in here is wrong with that file."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{path}: {mistake}" for mistake in error.mistakes)) from None


def load_model(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a folder, ready to speak; every tensor must be there, of the right shape, and no other."""
    config = load_config(folder)
    model = model_of(config, layout_of(type_of(folder, config)), read_weights(folder), folder / WEIGHTS)
    return model.to(device=device, dtype=dtype)


def load_weights(model: GPT, folder: Path) -> None:
    """Put a folder's weights into a model of the same sizes."""
    _fill(model, layout_of(type_of(folder, model.config)), read_weights(folder), folder / WEIGHTS)


def type_of(folder: Path, config: ModelConfig) -> str | None:
    """The model type of transformers' by which a folder's tensors are named; None where they have our names."""
    description = files.read_json(folder / CONFIG)
    said = str(description.get("model_type", ""))
    if "hornbook" in description and said != "hornbook" and not (said in SHAPES and SHAPES[said].fits(config)):
        raise UserError(f"{folder / CONFIG}: model_type {said[:40]!r} does not go with its hornbook section")
    return said if said in SHAPES else None


def model_of(config: ModelConfig, layout: Layout | None, found: Tensors, path: Path) -> GPT:
    """A model from tensors as a program has them, or as ours are; `path` is for errors."""
    _check_plausible(config, found, path)
    model = outline(config)
    _fill(model, layout, found, path)
    return model.eval()


def _check_plausible(config: ModelConfig, found: Tensors, path: Path) -> None:
    """Even a model without numbers takes long to build when its config claims a billion layers."""
    held = sum(tensor.numel() for tensor in found.values())
    if config.n_layer > len(found) or config.n_params() > 4 * held + 1000:
        claimed = f"{config.n_layer:,} layers, {config.n_params():,} parameters"
        raise UserError(f"{path}: has {len(found):,} tensors, {held:,} numbers; its config claims {claimed}")


def _fill(model: GPT, layout: Layout | None, found: Tensors, path: Path) -> None:
    with mistakes_in(path):
        ours = {name: tensor.float() for name, tensor in to_ours(layout, model.config, found).items()}
    if next(model.parameters()).is_meta:
        model.load_state_dict(ours | _tied(model.config, ours), assign=True)
        if model.config.tied:
            model.head.weight = model.embedding.weight
    else:
        model.load_state_dict(ours | _tied(model.config, ours))


def read_tensors(path: Path) -> Tensors:
    """A safetensors file, or a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def read_weights(folder: Path) -> Tensors:
    """The tensors of a folder, from one file, or from several with an index."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return read_tensors(folder / WEIGHTS)
    tensors: Tensors = {}
    for name in shards_of(folder):
        tensors |= read_tensors(folder / name)
    return tensors


def shards_of(folder: Path) -> list[str]:
    """The files in which an index says that the tensors are."""
    index = folder / INDEX
    places = files.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise UserError(f"{index}: has no weight_map from tensors to files; fetch the model again")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names a file outside its folder, or none of weights: {name[:80]}")
    return names


def resolve(path: Path, at: str = "best") -> Path:
    """The model folder that is meant: `path` itself, or of a run the best checkpoint, or the newest, or that of a
    step, be it a checkpoint or a snapshot."""
    if not path.exists():
        raise UserError(f"{path}: no such model or run; hornbook train makes one")
    if (path / CONFIG).is_file():
        return path
    if not (path / RUN).is_file():
        raise UserError(f"{path}: neither a model (no {CONFIG}) nor a run (no {RUN})")
    kept = kept_folders(path)
    if at == "best":
        candidates = [*sorted(checkpoint_folders(path), key=_validation_loss), *snapshot_folders(path)]
    elif at == "newest":
        candidates = kept
    else:
        candidates = [each for each in kept if each.name.removeprefix("step-").lstrip("0") == at.lstrip("0")]
        if not candidates:
            steps = [str(step) for step in sorted({step_of(each) for each in kept})] or ["none"]
            if len(steps) > MOST_STEPS_NAMED:
                steps[MOST_STEPS_NAMED // 2 : -MOST_STEPS_NAMED // 2] = ["..."]
            raise UserError(f"{path}: no checkpoint of step {at}; kept are {', '.join(steps)}, and best and newest")
    return first_good(path, candidates)


def is_run(folder: Path) -> bool:
    """Whether Hornbook wrote the record that lies in a folder."""
    try:
        record = files.read_json(folder / RUN)
    except UserError:
        return False
    data = record.get("data")
    return {"run_id", "config"} <= record.keys() and isinstance(data, dict) and "fingerprint" in data


def config_of_run(run: Path) -> ModelConfig:
    """What a run trains, which it knows before its first checkpoint."""
    try:
        return build(ModelConfig, files.read_json(run / RUN)["config"]["model"])
    except (KeyError, TypeError):
        raise UserError(f"{run / RUN}: damaged; it does not say which model the run trains") from None


def data_of_run(run: Path) -> Path:
    """The shards that a run was trained on."""
    try:
        return Path(files.read_json(run / RUN)["data"]["folder"])
    except (KeyError, TypeError):
        raise UserError(f"{run / RUN}: damaged; it does not say which data the run was trained on") from None


def first_good(run: Path, candidates: list[Path], wrong_with: Callable[[Path], str | None] = files.damage) -> Path:
    """The first checkpoint that nothing is wrong with; each before it is named in one line, and so is what lies in it
    and is not ours."""
    for folder in candidates:
        wrong = wrong_with(folder)
        if wrong is None:
            files.name_strangers(folder)
            return folder
        warn(f"{folder}: {wrong}; taking the next one")
    if candidates:
        raise UserError(f"{run}: every checkpoint is damaged; train again into another --out")
    raise UserError(f"{run}: has no checkpoint yet; begin it anew: {command('train', '--out', run)}")


def checkpoint_folders(run: Path) -> list[Path]:
    """A run's finished checkpoints, newest first."""
    return _folders_of_steps(run / CHECKPOINTS)


def snapshot_folders(run: Path) -> list[Path]:
    """The weights of earlier steps, kept for looking back, newest first."""
    return _folders_of_steps(run / SNAPSHOTS)


def kept_folders(run: Path) -> list[Path]:
    """Checkpoints and snapshots, newest first; where a step has both, its checkpoint first."""
    return sorted([*checkpoint_folders(run), *snapshot_folders(run)], key=step_of, reverse=True)


def _folders_of_steps(folder: Path) -> list[Path]:
    found = [each for each in folder.glob("step-*") if each.name.removeprefix("step-").isdigit() and _is_of_ours(each)]
    return sorted(found, key=step_of, reverse=True)


def _is_of_ours(folder: Path) -> bool:
    """Not what somebody had put into a checkpoint and stayed when that was let go of."""
    return not folder.is_dir() or any((folder / name).exists() for name in (files.MANIFEST, CONFIG, WEIGHTS))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _validation_loss(checkpoint: Path) -> float:
    try:
        loss = float(files.manifest_notes(checkpoint)["val_loss"])
    except (UserError, KeyError, ValueError, TypeError):
        return math.inf
    return math.inf if math.isnan(loss) else loss  # nothing sorts beside a NaN


def _tied(config: ModelConfig, state: Tensors) -> Tensors:
    return {"head.weight": state["embedding.weight"]} if config.tied else {}
