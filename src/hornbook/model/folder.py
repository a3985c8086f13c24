"""A model on disk.

In: a GPT and its tokenizer.  Out: a Hugging Face folder, and back.
`config.json` names a model type of transformers where there is one of exactly this shape, so that
AutoModelForCausalLM loads the folder by its path alone; our own ModelConfig stands in it under "hornbook", where
transformers keeps and ignores it. A shape that has no such type is saved as model type `hornbook`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.stored import stored
from hornbook.model.config import CONFIG, INDEX, WEIGHTS, ModelConfig
from hornbook.model.gpt import GPT
from hornbook.model.init import outline
from hornbook.model.layouts import Layout, Tensors, rows_of_several, to_ours, to_ours_in_turn, to_theirs
from hornbook.model.shapes import SHAPES, layout_of, read_description, shape_of
from hornbook.text.tokenizer import Tokenizer

LARGEST_ROTATION = 1 << 27  # places times width of a head, for which sines are kept: no weight shows that they are many


def save_model(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer into a staged folder."""
    save_weights(model.config, model.state_dict(), tokenizer, folder)


def save_weights(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """The same of a state as it was at a moment; as `dtype`, in which a number too large becomes the largest."""
    as_it_is = weights["embedding.weight"].dtype
    dtype = dtype or as_it_is
    describe_model(config, tokenizer, folder, dtype)
    # Their layouts are copies, for which an accelerator that is full of training has no room.
    state = {name: tensor.cpu() for name, tensor in weights.items()}
    if dtype != as_it_is:
        most = torch.finfo(dtype).max
        state = {name: tensor.clamp(-most, most).to(dtype) for name, tensor in state.items()}
    safetensors.torch.save_file(
        to_theirs(layout_of(shape_of(config)), config, state), folder / WEIGHTS, {"format": "pt"}
    )


def tensors_on_disk(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Tensors:
    """Some of a model's weights, as its folder has them."""
    return to_theirs(layout_of(shape_of(config)), config, weights, some=True)


def written_together(config: ModelConfig) -> list[tuple[str, ...]]:
    """Names of weights that a folder has as one tensor."""
    return rows_of_several(layout_of(shape_of(config)), config)


def describe_model(config: ModelConfig, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """All that a folder says of a model beside its weights."""
    kind = shape_of(config)
    end = tokenizer.stop
    ids = {"bos_token_id": end, "eos_token_id": end}
    description: dict[str, Any] = {
        "model_type": kind or "hornbook",
        "vocab_size": config.known_vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if kind is not None:
        description |= {"architectures": [SHAPES[kind].architecture], "tie_word_embeddings": config.tied}
        description |= SHAPES[kind].describe(config)
    files.write_json(folder / CONFIG, description | ids | {"hornbook": config.model_dump()})
    # Not in config.json: there, some types never train the embedding of the padding, which is the end of text here.
    files.write_json(folder / "generation_config.json", ids | {"pad_token_id": end})
    tokenizer.save(folder, config.context)


def load_config(folder: Path) -> ModelConfig:
    """What a folder's model is; of one that another program wrote, from transformers' description of it."""
    description = files.read_json(folder / CONFIG)
    ours, kind = description.get("hornbook"), str(description.get("model_type", ""))
    if isinstance(ours, dict):
        config = stored(ModelConfig, ours, folder / CONFIG)
    else:
        with mistakes_in(folder / CONFIG):
            config = read_description(kind, description)
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
    """Put a folder's weights into a model of the same sizes; of one that has numbers for some alone, these."""
    places = {name: each.detach() for name, each in model.named_parameters() if not each.is_meta}
    for name, weight in weights_in_turn(model.config, folder, places.__contains__):
        if name in places:
            places[name].copy_(weight)


def weights_in_turn(
    config: ModelConfig, folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """A folder's weights by our names, one after another, each read when it is its turn."""
    with contextlib.ExitStack() as stack:
        found: Tensors = {}
        fetches: dict[int, Callable[[], torch.Tensor]] = {}
        for path in weight_files(folder):
            with broken_file_named(path):
                file = stack.enter_context(safetensors.safe_open(path, framework="pt"))
                for name in file.keys():  # noqa: SIM118
                    found[name] = _outline_of(file.get_slice(name))
                    fetches[id(found[name])] = partial(file.get_tensor, name)
        with mistakes_in(folder / WEIGHTS):
            layout = layout_of(type_of(folder, config))
            yield from to_ours_in_turn(layout, config, found, wanted, lambda each: fetches[id(each)]())


def _outline_of(part: Any) -> torch.Tensor:
    """Of a tensor in a file its shape and the kind of its numbers."""
    shape = part.get_shape()
    return torch.empty(shape, dtype=(part[:0] if shape else part[...]).dtype, device="meta")


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
    if config.positions == "rotary" and config.context * config.width_of_head > LARGEST_ROTATION:
        raise UserError(f"{path}: its config claims a context of {config.context:,}, more than rotation is known for")


def _fill(model: GPT, layout: Layout | None, found: Tensors, path: Path) -> None:
    with mistakes_in(path):
        ours = {name: tensor.float() for name, tensor in to_ours(layout, model.config, found).items()}
    model.load_state_dict(ours | _tied(model.config, ours), assign=True)
    if model.config.tied:
        model.head.weight = model.embedding.weight


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    """Those of a safetensors file that are wanted, or a UserError."""
    with broken_file_named(path), safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118


@contextlib.contextmanager
def broken_file_named(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def read_weights(folder: Path) -> Tensors:
    """The tensors of a folder, from one file, or from several with an index."""
    return {name: each for path in weight_files(folder) for name, each in read_tensors(path).items()}


def weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    return [folder / name for name in shards_of(folder / INDEX)]


def shards_of(index: Path) -> list[str]:
    """The files in which an index says that the tensors are."""
    places = files.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise UserError(f"{index}: has no weight_map from tensors to files; fetch the model again")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names a file outside its folder, or none of weights: {name[:80]}")
    return names


def _tied(config: ModelConfig, state: Tensors) -> Tensors:
    return {"head.weight": state["embedding.weight"]} if config.tied else {}
