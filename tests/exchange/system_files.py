"""Files as the five systems write them, from the weights of references.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tensorflow_files
import torch
from references import Sizes, Weights


def tensors(state: Weights) -> dict[str, torch.Tensor]:
    """Two names of one array stay two names of one tensor."""
    once = {id(array): torch.from_numpy(array) for array in state.values()}
    return {name: once[id(array)] for name, array in state.items()}


def optimizer_state() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def nanogpt(state: Weights, sizes: Sizes) -> Any:
    arguments = {"n_layer": sizes.n_layer, "n_head": sizes.n_head, "n_embd": sizes.n_embd}
    arguments |= {"block_size": sizes.context, "vocab_size": sizes.vocab_size, "dropout": 0.2}
    return {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in tensors(state).items()},
        "optimizer": optimizer_state(),
        "model_args": arguments | {"bias": "transformer.ln_f.bias" in state},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True, "init_from": "scratch"},
    }


def wikitext(state: Weights, sizes: Sizes) -> Any:
    loss = torch.tensor(2.5, requires_grad=True)
    held = {"model_state_dict": tensors(state), "optimizer_state_dict": optimizer_state()}
    return held | {"loss": loss, "iter": 10_000}


def pile(state: Weights, sizes: Sizes) -> Any:
    held = {"model_state_dict": tensors(state), "optimizer_state_dict": optimizer_state(), "losses": [3.0, 2.5]}
    return held | {"train_loss": torch.tensor(2.5), "dev_loss": torch.tensor(2.75), "steps": 2}


def pile_later(state: Weights, sizes: Sizes) -> Any:
    newer = {"device": "cuda", "pytorch_version": torch.__version__, "cuda_version": None, "is_final": True}
    config = {"n_head": sizes.n_head, "n_embed": sizes.n_embd, "n_blocks": sizes.n_layer}
    return pile(state, sizes) | newer | {"config": config, "lr_state": {"step": 2}, "dev_loss": None}


def both(state: Weights, sizes: Sizes) -> Any:
    return {"model_state_dict": tensors(state), "optimizer_state_dict": optimizer_state()}


def bare(state: Weights, sizes: Sizes) -> Any:
    return tensors(state)


def hugging_face(state: Weights, sizes: Sizes, folder: Path) -> None:
    described = {"model_type": "gpt2", "n_positions": sizes.context, "n_embd": sizes.n_embd}
    described |= {"n_layer": sizes.n_layer, "n_head": sizes.n_head, "vocab_size": sizes.vocab_size}
    (folder / "config.json").write_text(json.dumps(described))
    kept = {name.removeprefix("transformer."): array for name, array in state.items() if name != "lm_head.weight"}
    safetensors.numpy.save_file(kept, folder / "model.safetensors")


def openai(state: Weights, sizes: Sizes, folder: Path) -> None:
    said = {"n_vocab": sizes.vocab_size, "n_ctx": sizes.context, "n_embd": sizes.n_embd}
    said |= {"n_head": sizes.n_head, "n_layer": sizes.n_layer}
    (folder / "hparams.json").write_text(json.dumps(said))
    held: Weights = {}
    for name, array in state.items():
        if name == "lm_head.weight" or name.endswith(".attn.bias"):
            continue
        *path, last = name.removeprefix("transformer.").split(".")
        if path[0] == "h":
            path[:2] = [f"h{path[1]}"]
        norm = path[-1].startswith("ln")
        if path[-1] not in ("wte", "wpe"):
            path.append({"weight": "g" if norm else "w", "bias": "b"}[last])
        held["model/" + "/".join(path)] = array[None] if array.ndim == 2 and path[-1] == "w" else array
    rows, data = tensorflow_files.rows_and_data(held)
    tensorflow_files.write(folder / "model.ckpt", tensorflow_files.table(rows), data)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')


# How a file of each system lies on disk, and what it cannot tell.
Writer = Callable[[Weights, Sizes], Any]
KEPT_IN: dict[str, tuple[str, Writer, dict[str, Any]]] = {
    "julius-caesar-small": ("best_model_params.pt", bare, {"n_head": True}),
    "nanogpt": ("ckpt.pt", nanogpt, {}),
    "nanogpt-no-biases": ("ckpt.pt", nanogpt, {}),
    "wikitext-wordpiece": ("model_iter_10000.pt", wikitext, {"n_head": True}),
    "pile": ("transformer_B.pt", pile, {}),
    "pile-between": ("transformer_B.pt", pile, {"attention_scale": "head"}),
    "pile-later": ("transformer_B.pt", pile_later, {}),
    "the-verdict": ("model.pth", bare, {"n_head": True}),
    "the-verdict-qkv-bias": ("model_and_optimizer.pth", both, {"n_head": True}),
}
FOLDERS = {"huggingface": hugging_face, "openai": openai}


def written(form: str, state: Weights, sizes: Sizes, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A system's own file in a folder, and the knobs with which it is to be read. `form` is the system's name, or
    shakespeare-124m with the program whose files hold it."""
    folder.mkdir(exist_ok=True)
    if form not in KEPT_IN:
        FOLDERS[form.rpartition(" ")[2]](state, sizes, folder)
        return folder, {}
    name, tree, knobs = KEPT_IN[form]
    torch.save(tree(state, sizes), folder / name)
    return folder / name, knobs | ({"n_head": sizes.n_head} if "n_head" in knobs else {})


def copied(state: Weights) -> Weights:
    once = {id(array): np.array(array) for array in state.values()}
    return {name: once[id(array)] for name, array in state.items()}
