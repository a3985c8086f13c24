"""What is reckoned, beside what torch's own allocator reports."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from effort import long
from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.base.machine import choose_machine
from hornbook.base.world import World
from hornbook.model.config import classic, modern
from hornbook.model.init import outline
from hornbook.train import loop
from hornbook.train.config import RunConfig
from hornbook.train.memory import bytes_in_slices, training_memory
from hornbook.train.optim_config import OPTIMIZERS
from hornbook.train.sizing import LEAST_BYTES_OF_A_PARAMETER, refuse_without_room, slices_of_model
from hornbook.train.start import fit

Assemble = Callable[..., loop.Run]


@pytest.fixture
def trained(tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assemble:
    """A run as `fit` assembles it, after two steps and perhaps an evaluation."""

    def train(evaluated: bool = False, **knobs: Any) -> loop.Run:
        runs: list[loop.Run] = []

        def two_steps(run: loop.Run) -> str:
            runs.append(run)
            for _ in range(2):
                loop.update(run, 0.0)
            if evaluated:
                loop.evaluate(run)
            run.metrics.close()
            return "looked at"

        monkeypatch.setattr(loop, "train", two_steps)
        fit(tiny(**knobs), tmp_path / "run", Progress())
        return runs[0]

    return train


def shape(preset: Callable[..., Any], **sizes: Any) -> dict[str, Any]:
    knobs: dict[str, Any] = preset(**sizes).model_dump()
    return knobs


def reckoned(run: loop.Run) -> Any:
    dtype = run.machine.torch_dtype
    return training_memory(run.config, outline(run.config.model), run.learner.micro_batch, dtype, "cpu")


ADAMW = {"kind": "adamw", "lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "small, fp32, Muon": {
        "model": shape(modern, n_layer=4, n_head=4, n_embd=128, context=128),
        "train": {"batch_tokens": 2048, "micro_batch": 8},
    },
    "small, fp32, all at once": {
        "model": shape(modern, n_layer=4, n_head=2, n_embd=64, context=256),
        "optim": ADAMW,
        "train": {"batch_tokens": 2048, "micro_batch": 8},
    },
    "classic, fp32, dropout": {
        "model": shape(classic, n_layer=3, n_head=4, n_embd=128, context=128, dropout=0.1),
        "optim": ADAMW,
        "train": {"batch_tokens": 1024, "micro_batch": 4},
    },
    "relu, no projection, a head with bias": {
        "model": shape(
            modern,
            n_layer=4,
            n_head=4,
            n_embd=128,
            context=256,
            norm="layernorm",
            activation="relu",
            positions="learned",
            qk_norm="none",
            out_projection=False,
            biases=("norm", "mlp", "head"),
        ),
        "optim": ADAMW,
        "train": {"batch_tokens": 2048, "micro_batch": 4},
    },
    "relu squared, capped, value embeddings, skips": {
        "model": shape(
            modern,
            n_layer=4,
            n_head=4,
            n_embd=128,
            context=256,
            activation="relu2",
            logit_cap=15.0,
            value_embeddings=True,
            embedding_skip=True,
        ),
        "train": {"batch_tokens": 2048, "micro_batch": 4, "dtype": "bfloat16"},
    },
    "middle, bf16, Muon, shared keys": {
        "model": shape(modern, n_layer=5, n_head=4, n_kv_head=2, n_embd=256, context=512),
        "train": {"batch_tokens": 2048, "micro_batch": 2, "dtype": "bfloat16"},
    },
    "Lion, whose updates are the largest": {
        "model": shape(modern, n_layer=2, n_head=4, n_embd=320, context=32),
        "optim": {"kind": "lion"},
        "train": {"batch_tokens": 64, "micro_batch": 1},
    },
    "small, bf16, short windows": {
        "model": shape(modern, n_layer=4, n_head=4, n_embd=128, context=128),
        "optim": ADAMW,
        "train": {"batch_tokens": 2048, "micro_batch": 8, "dtype": "bfloat16"},
    },
    "wide and shallow, where Muon's own need is the largest": {
        "model": shape(modern, n_layer=2, n_head=4, n_embd=384, context=32),
        "train": {"batch_tokens": 64, "micro_batch": 1, "dtype": "bfloat16"},
    },
    "activation checkpointing": {
        "model": shape(modern, n_layer=6, n_head=4, n_embd=128, context=256),
        "train": {"batch_tokens": 4096, "micro_batch": 8, "activation_checkpointing": True},
    },
    "activation checkpointing, all at once": {
        "model": shape(modern, n_layer=12, n_head=4, n_embd=64, context=256),
        "train": {"batch_tokens": 4096, "micro_batch": 16, "activation_checkpointing": True},
    },
    "activation checkpointing, fp16": {
        "model": shape(modern, n_layer=5, n_head=4, n_embd=256, context=128),
        "train": {"batch_tokens": 2048, "micro_batch": 8, "activation_checkpointing": True, "dtype": "float16"},
    },
    "tiny, where evaluation is the fullest moment": {
        "model": shape(modern, n_layer=1, n_head=2, n_embd=16, context=32),
        "train": {"batch_tokens": 64, "micro_batch": 1},
        "shards": {"val_fraction": 0.3},
        "evaluated": True,
    },
}


# Between them they have all of the parts and all of the fullest moments; the others are more of the same.
QUICK = {
    "small, fp32, Muon",
    "classic, fp32, dropout",
    "Lion, whose updates are the largest",
    "relu squared, capped, value embeddings, skips",
    "wide and shallow, where Muon's own need is the largest",
    "activation checkpointing",
    "tiny, where evaluation is the fullest moment",
}


@pytest.mark.parametrize("case", [pytest.param(each, marks=() if each in QUICK else long) for each in CASES])
def test_the_peak_is_what_torch_allocates(case: str, trained: Assemble, tmp_path: Path) -> None:
    knobs = CASES[case]
    short = knobs["train"].get("dtype") == "bfloat16"
    if (
        short and choose_machine("cpu").dtype != "bfloat16"
    ):  # emulated, it takes forty times as long: minutes for some of these
        knobs = knobs | {"train": knobs["train"] | {"dtype": "float32"}}
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run = trained(**knobs)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    told = [event["args"] for event in events if event["name"] == "[memory]"]
    before = told[0]["Total Allocated"] - told[0]["Bytes"]
    measured = max(each["Total Allocated"] for each in told) - before
    print("RATIO", case, reckoned(run).bytes / measured)
    assert reckoned(run).bytes == pytest.approx(measured, rel=0.1)


def test_an_average_of_the_weights_is_reckoned_with(trained: Assemble) -> None:
    held, plain = (reckoned(trained(train={"average": average})).held for average in ("ema", None))
    (more,) = [part for part in held if part not in plain]
    assert (more.what, more.bytes) == ("averaged weights, fp32", held[0].bytes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_grows_with_the_parameters_is_exact(dtype: str, kind: str, tied: bool, trained: Assemble) -> None:
    run = trained(model={"tied": tied}, optim={"kind": kind}, train={"dtype": dtype, "micro_batch": 4})
    held = {part.what.partition(",")[0]: part.bytes for part in reckoned(run).held}
    held |= {part.what.partition(",")[0]: part.bytes for part in reckoned(run).moments[0].parts}

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    weights = list(run.learner.model.parameters())
    remembered = run.learner.optimizer.tensors()
    assert held["weights"] == size(weights)
    assert held["gradients"] == size(weight.grad for weight in weights)
    for what, rule in (("momentum of Muon", "muon"), ("moments of AdamW", "adamw"), ("momentum of Lion", "lion")):
        assert held.get(what, 0) == size(t for name, t in remembered.items() if name.startswith(f"{rule}."))
    assert sum(bytes for what, bytes in held.items() if what.startswith("mom")) == size(remembered.values())
    copied = run.learner._working.model.parameters() if dtype != "float32" else []
    assert held.get("working copy", 0) == size(copied)
    assert all(parameter.grad is None for parameter in copied), "those of the working copy are gone after each piece"


def test_more_sequences_at_once_need_more_and_the_arithmetic_says_why(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(model={"n_layer": 6, "n_embd": 64, "n_head": 2, "context": 256, "vocab_size": 500})
    model = outline(config.model)
    sizes = []
    for at_once in (1, 2, 4, 8):
        memory = training_memory(config.with_(train={"batch_tokens": 16 * 256}), model, at_once, torch.bfloat16, "cuda")
        sizes.append(memory.moments[0].bytes)
        for part in (*memory.held, *(part for moment in memory.moments for part in moment.parts)):
            written = part.arithmetic.replace(",", "").replace(" tokens", "").replace(" logits", "").replace("x", "*")
            assert eval(written) == part.bytes, part
    assert sizes == sorted(set(sizes))


def test_as_few_processes_have_a_model_together_as_have_room_for_it(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(model={"n_layer": 24, "n_embd": 64, "n_head": 2, "context": 32, "vocab_size": 257})
    machine, model = choose_machine("cpu", "float32"), outline(config.model)
    whole = training_memory(config, model, 1, torch.float32, "cpu", True)
    needed = [bytes_in_slices(whole, model, torch.float32, slices, 16) for slices in (4, 16)]
    assert whole.bytes > needed[0] > needed[1]

    def slices(memory: float, ranks: int = 16, on_host: int = 4, parallel: str | int | None = None) -> int | None:
        asked = config.with_(train={"parallel": parallel})
        return slices_of_model(asked, replace(machine, memory_bytes=int(memory / 0.8)), ranks, on_host)

    assert slices(1.01 * whole.bytes) is None
    assert slices(0.99 * whole.bytes) == 4, "those of a host"
    assert slices(0.99 * needed[0]) == 16
    assert slices(0.99 * whole.bytes, ranks=6, on_host=4) == 6, "hosts that are not alike"
    plenty = 10 * whole.bytes
    assert slices(plenty, parallel="sharded") == 4
    assert slices(0, parallel="replicated") is None
    assert [slices(plenty, parallel=asked) for asked in (1, 2, 3, 8, 9, 99)] == [None, 2, 4, 8, 16, 16]
    assert slices(plenty, ranks=3, parallel=2) == 3, "a host is lost"
    assert slices(plenty, ranks=1, parallel=2) is None
    assert slices(plenty, ranks=1, on_host=1, parallel="sharded") == 1


def test_a_model_that_only_many_hold_is_refused_to_few(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(model={"n_layer": 24, "n_embd": 64, "n_head": 2, "context": 32, "vocab_size": 257})
    of_one = LEAST_BYTES_OF_A_PARAMETER * config.model.n_params()
    hosts = World()
    hosts.size, hosts.size_of_host = 8, 4
    for device, slices, share in (("cuda", None, 1), ("cuda", 4, 8), ("cpu", 4, 2), ("cpu", None, 1)):
        machine = replace(choose_machine("cpu", "float32"), device=device, memory_bytes=of_one // share + 1)
        refuse_without_room(config, machine, hosts, slices)
        with pytest.raises(UserError, match="GB to train") as told:
            refuse_without_room(config, replace(machine, memory_bytes=of_one // share - 1), hosts, slices)
        assert ("--processes" in str(told.value)) == (slices is not None)
