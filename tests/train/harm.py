"""What can become of a checkpoint, besides being as it was written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch


def one_before(folder: Path) -> Path:
    """The checkpoint before this one."""
    return max(each for each in folder.parent.glob("step-*") if each.name < folder.name)


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "optimizer.safetensors", 100)


def zeros(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))


def empty(folder: Path) -> None:
    (folder / "state.json").write_bytes(b"")


def missing(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def missing_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()


def file_of_another_step(folder: Path) -> None:
    shutil.copy(one_before(folder) / "model.safetensors", folder)


def whole_of_another_step(folder: Path) -> None:
    before = one_before(folder)
    shutil.rmtree(folder)
    shutil.copytree(before, folder)


def stale_manifest(folder: Path) -> None:
    shutil.copy(one_before(folder) / "MANIFEST.json", folder)


def edited_state(folder: Path) -> None:
    path = folder / "state.json"
    step = int(folder.name[5:])
    path.write_text(path.read_text().replace(f'"step": {step}', f'"step": {step - 1}'))


def edited_manifest(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["notes"]["val_loss"] = 0.5
    path.write_text(json.dumps(manifest))


def manifest_of_rubbish(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text("[[[")


def wrong_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, path)


def wrong_dtype(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, path)


def linked_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    elsewhere = folder.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def linked_folder(folder: Path) -> None:
    elsewhere = folder.parent.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


HARMS: list[Callable[[Path], None]] = [
    flip_a_bit, truncate, zeros, empty, missing, missing_manifest, file_of_another_step, whole_of_another_step,
    stale_manifest, edited_state, edited_manifest, manifest_of_rubbish, wrong_shape, wrong_dtype, linked_file,
    linked_folder, a_file,
]  # fmt: skip
