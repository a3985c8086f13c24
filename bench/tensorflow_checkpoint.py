"""A checkpoint by TensorFlow, and the same read without it.

    python bench/tensorflow_checkpoint.py write FOLDER    # where tensorflow is
    python bench/tensorflow_checkpoint.py read FOLDER     # where hornbook is

`write` leaves checkpoints in FOLDER, each with what is in it as numpy files: `openai`, GPT-2's variables in a small
size, by TensorFlow 1's Saver as OpenAI's were; `sharded`, the same over two devices and data files; `kinds`, numbers of
many kinds by TensorFlow 2's Checkpoint; and `124m`, GPT-2's variables in their full size. `read` compares every number
and tells how long it took.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np


def gpt2_sizes(layers: int, width: int, words: int, context: int) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {"model/wte": (words, width), "model/wpe": (context, width)}
    sizes |= {"model/ln_f/g": (width,), "model/ln_f/b": (width,)}
    for layer in range(layers):
        for norm in ("ln_1", "ln_2"):
            sizes |= {f"model/h{layer}/{norm}/{part}": (width,) for part in "gb"}
        for name, wide, out in (
            ("attn/c_attn", width, 3 * width),
            ("attn/c_proj", width, width),
            ("mlp/c_fc", width, 4 * width),
            ("mlp/c_proj", 4 * width, width),
        ):
            sizes |= {f"model/h{layer}/{name}/w": (1, wide, out), f"model/h{layer}/{name}/b": (out,)}
    return sizes


def filled(sizes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    chance = np.random.default_rng(0)
    return {name: chance.standard_normal(size, np.float32) for name, size in sizes.items()}


def keep(folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(values)
    for number, name in enumerate(names):
        np.save(folder / f"{number:04}.npy", values[name])
    (folder / "names.json").write_text(json.dumps(names))


def write(folder: Path) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    small, large = gpt2_sizes(3, 48, 500, 64), gpt2_sizes(12, 768, 50257, 1024)
    for kind, sizes in {"openai": small, "sharded": small, "124m": large}.items():
        values = filled(sizes)
        with v1.Graph().as_default():
            for turn, (name, value) in enumerate(values.items()):
                with v1.device(f"/cpu:{turn % 2}" if kind == "sharded" else "/cpu:0"):
                    v1.get_variable(name, value.shape, initializer=v1.zeros_initializer())
            saver = v1.train.Saver(sharded=kind == "sharded")
            with v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as session:
                for variable in v1.global_variables():
                    variable.load(values[variable.op.name], session)
                (folder / kind).mkdir(parents=True, exist_ok=True)
                saver.save(session, str(folder / kind / "model.ckpt"))
        keep(folder / kind / "wanted", values)
    chance = np.random.default_rng(1)
    kinds = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")
    values = {kind: (chance.standard_normal((7, 5)) * 50).astype(kind) for kind in kinds}
    variables = {kind: tf.Variable(value) for kind, value in values.items()}
    halves = tf.Variable(values["float32"], dtype=tf.bfloat16)
    tf.train.Checkpoint(bfloat16=halves, **variables).save(str(folder / "kinds" / "model.ckpt"))
    values["bfloat16"] = halves.numpy().astype(np.float32)
    keep(folder / "kinds" / "wanted", {f"{kind}/.ATTRIBUTES/VARIABLE_VALUE": value for kind, value in values.items()})
    print(json.dumps({"tensorflow": tf.__version__, "numpy": np.__version__}))


def read(folder: Path) -> None:
    from hornbook.exchange.tensorflow import read_checkpoint

    for kind in ("openai", "sharded", "kinds", "124m"):
        names = json.loads((folder / kind / "wanted" / "names.json").read_text())
        began = time.perf_counter()
        checkpoint = read_checkpoint(folder / kind)
        tensors = dict(checkpoint)
        seconds = time.perf_counter() - began
        counter = {"save_counter/.ATTRIBUTES/VARIABLE_VALUE"} if kind == "kinds" else set()
        same = set(tensors) == set(names) | counter
        for number, name in enumerate(names):
            wanted = np.load(folder / kind / "wanted" / f"{number:04}.npy")
            found = tensors[name]
            found = found.float() if name.startswith("bfloat16") else found
            same &= found.numpy().dtype == wanted.dtype and np.array_equal(found.numpy(), wanted)
        told = {
            "checkpoint": kind,
            "data_files": len(list((folder / kind).glob("*.data-*"))),
            "tensors": len(tensors),
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "equal": bool(same),
            "seconds": round(seconds, 3),
        }
        print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    (write if given.what == "write" else read)(given.folder)


if __name__ == "__main__":
    main()
