"""Worlds of several ranks, for tests: processes forked from one that has imported everything.

In: the folder of a text, and where results go.  Out: JSON, by the size of the world and the name of what happened in
it, what each of its ranks has to tell. Run as a program of its own, so that no test forks a process with threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers  # noqa: F401  # this and the two below: imported before there is a world, not by each of its ranks
import torch
import torch._dynamo

from hornbook.base import files
from hornbook.base.errors import HornbookError
from hornbook.base.settings import merge
from hornbook.base.world import OthersLostError, leave_world, world
from hornbook.model.config import classic
from hornbook.model.gpt import GPT
from hornbook.model.layers import MLP
from hornbook.runs.logs import read_log
from hornbook.train import distributed_checkpoint, head_start, loop, sharded, timetable  # noqa: F401
from hornbook.train import learner as learners
from hornbook.train.checkpoint import TrainState
from hornbook.train.config import RunConfig, override
from hornbook.train.start import Outcome, fit, resume

STEPS = 4
BASE: dict[str, Any] = {
    "tokenizer": {"kind": "byte"},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32, "dropout": 0.1},
    "schedule": {"warmup_steps": 2},
    "sample": {"tokens": 4},
    "train": {
        "steps": STEPS,
        "batch_tokens": 256,
        "micro_batch": 1,
        "dtype": "float32",
        "compile": False,
        "device": "cpu",
        "threads": 1,
        "snapshots": False,
        "eval_every_steps": 3,
    },
}
# What must not show in the weights: 8 micro-batches; or 7 or 6, which 4 ranks do not divide.
SAME: dict[str, dict[str, Any]] = {
    "muon": {},
    "muon, bfloat16, averaged": {"train": {"dtype": "bfloat16", "average": "ema", "batch_tokens": 7 * 32}},
    "adamw, tied, two at once": {
        "optim": {"kind": "adamw"},
        "model": {"tied": True, "dropout": 0.0},
        "train": {"batch_tokens": 11 * 32, "micro_batch": 2},
    },
}
CLASSIC = classic(n_layer=2, n_head=2, n_embd=32, context=32, vocab_size=257)
SHARDED: dict[str, Any] = {"train": {"parallel": "sharded"}}
# Two replicas of two slices each, on four ranks.
GRID: dict[str, Any] = {"train": {"parallel": 2}}
HAPPENS = {
    1: ["same", "sharded_alone", "best_before"],
    2: [
        "same",
        "best_before",
        "other_processors",
        "in_parts",
        "overflow",
        "out_of_memory",
        "asked_to_stop",
        "full_disk",
        "full_disk_of_another",
    ],
    4: ["same", "sharded", "best_before", "sharded_out_of_memory"],
}


class Scenes:
    """What happens in a world, in a folder of its own: to its last rank in the third step, or to another."""

    def __init__(self, text: Path, folder: Path, culprit: int = -1, at: int = 3, how: Any = None) -> None:
        self.text, self.folder, self.culprit, self.at, self.how = text, folder, culprit, at, how or {}

    def it_is_time(self, steps: Iterator[int]) -> bool:
        """For who is hit."""
        return next(steps) == self.at and world().rank == self.culprit % world().size

    def config(self, *knobs: dict[str, Any]) -> RunConfig:
        tree = merge(BASE, {"data": str(self.text)}, self.how)
        for each in knobs:
            tree = merge(tree, each)
        return override(RunConfig.model_validate({"train": {"steps": 1}}), tree)

    def run(self, name: str, *knobs: dict[str, Any]) -> Path:
        return fit(self.config(*knobs), self.folder / name).folder

    def same(self) -> dict[str, Any]:
        return {name: told_of(self.run(name, knobs)) for name, knobs in SAME.items()}

    def sharded(self) -> dict[str, Any]:
        how = {name: GRID if "bfloat16" in name else SHARDED for name in SAME}
        return {name: told_of(self.run(f"{name}, sharded", knobs, how[name])) for name, knobs in SAME.items()}

    def sharded_alone(self) -> dict[str, Any]:
        """In one slice, as it is tried where there is but one device."""
        return {"muon": told_of(self.run("muon, sharded", SHARDED))}

    def best_before(self) -> list[Any]:
        """The first evaluation was the best one, of a part of the text; which step is scored on all of it in the end,
        and how well, by replicas and in slices."""
        record, told = TrainState.record_evaluation, list[Any]()
        part = {"LEAST_TOKENS": 64, "SHARE_FOR_EVALUATIONS": 1.0, "SHARE_FOR_THE_WHOLE": 100.0}
        with contextlib.ExitStack() as stack:
            for name, value in part.items():
                stack.enter_context(replaced(timetable, name, value))
            worse = lambda state, loss: record(state, loss + state.step)  # noqa: E731
            stack.enter_context(replaced(TrainState, "record_evaluation", worse))
            for name, how in (("replicas", {}), ("slices", SHARDED)):
                knobs = {"train": {"eval_every_steps": None, "dtype": "bfloat16"}, "optim": {"matrix_lr": 0.2}}
                run = self.run(f"best before, {name}", knobs, how)
                last = world().by_first(lambda run=run: read_log(run / "metrics.jsonl")[-1])
                told.append([last["step"], last["final_val_loss"]])
        return told

    def other_processors(self) -> Any:
        """On which the factors of a head start come out turned."""
        found = head_start._leading

        def turned(*given: Any) -> Any:
            left, lengths, right = found(*given)
            signs = torch.ones_like(lengths)
            signs[:: world().rank + 2] = -1 if world().rank else 1
            return left * signs, lengths, right * signs

        with replaced(head_start, "_leading", turned):
            return told_of(self.run("other processors"))

    def not_finite(self, by: float = math.nan, dtype: str = "float32") -> Any:
        """The gradients of one rank in one step; of each step, whether they were finite and by what the next loss is
        scaled."""
        loss, step, steps, told = GPT.loss, learners.Learner._step, iter(range(1, 100)), list[Any]()
        hit = [False]

        def of_batch(model: GPT, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            of_it = loss(model, hidden, targets)
            if hit[0]:
                of_it.register_hook(lambda gradient: gradient * by)
            return of_it

        def stepping(learner: learners.Learner, *given: Any) -> Any:
            hit[0] = self.it_is_time(steps)
            numbers = step(learner, *given)
            told.append([bool(numbers.grad_norm.isfinite()), learner.scaler.scale.item()])
            return numbers

        with replaced(GPT, "loss", of_batch), replaced(learners.Learner, "_step", stepping):
            self.run(f"not finite in {dtype}", {"train": {"dtype": dtype}})
        return told

    def overflow(self) -> Any:
        return self.not_finite(2.0**40, "float16")

    def out_of_memory(self) -> Any:
        """Of one rank alone, in the middle of a step; then all of them compute fewer sequences at once, as if they
        always had."""
        learn, forward, seen, steps = learners.Learner.learn, MLP.forward, list[int](), iter(range(1, 100))
        hit = [False]

        def short(mlp: MLP, x: torch.Tensor) -> torch.Tensor:
            if hit[0]:
                hit[0] = False
                torch.empty(1 << 60)
            return forward(mlp, x)

        def learning(learner: learners.Learner, *given: Any) -> Any:
            hit[0] = self.it_is_time(steps)
            numbers = learn(learner, *given)
            seen.append(learner.micro_batch)
            return numbers

        with replaced(MLP, "forward", short), replaced(learners.Learner, "learn", learning):
            self.run("out of memory", {"train": {"micro_batch": 2}})
        return seen

    def sharded_out_of_memory(self) -> Any:
        """Of one that others wait for in the middle of a block; after an evaluation."""
        how = merge(GRID, {"train": {"activation_checkpointing": True}})
        return Scenes(self.text, self.folder / "sharded", at=4, how=how).out_of_memory()

    def asked_to_stop(self) -> Any:
        """One rank, by SIGTERM in the middle of a step."""
        update, steps = loop.update, iter(range(1, 100))

        def interrupted(run: loop.Run, share: float) -> None:
            if self.it_is_time(steps):
                os.kill(os.getpid(), signal.SIGTERM)
            update(run, share)

        with replaced(loop, "update", interrupted):
            outcome = fit(self.config(), self.folder / "asked to stop")
        return ended(outcome)

    def full_disk(self) -> Any:
        """Of the one that writes; all end, and what was saved before is whole."""
        write, path = files.write_json, self.folder / "full disk"

        def full(there: Path, value: Any) -> None:
            if there.name == "state.json" and value["step"] == 4:
                raise OSError(28, "No space left on device", str(there))
            write(there, value)

        with replaced(files, "write_json", full):
            try:
                fit(self.config({"train": {"save_every_steps": 2}}), path)
                return "done"
            except HornbookError as error:
                told = [type(error).__name__, *error.mistakes]
        return [told, sorted(each.name for each in path.glob("checkpoints/step-*")), ended(resume(path))]

    def in_parts(self) -> Any:
        """A checkpoint that all write, of a shape that transformers knows: where it is."""
        with replaced(distributed_checkpoint, "PARTS_FROM", 0):
            run = self.run("in parts", {"model": CLASSIC.model_dump(), "optim": {"kind": "adamw"}})
        return str(max(run.glob("checkpoints/step-*")))

    def full_disk_of_another(self) -> Any:
        """Of one that writes a part; all end at the same step, and what was saved before is whole."""
        save, saves, path = safetensors.torch.save_file, iter(range(1, 100)), self.folder / "full disk of another"
        taken: list[int] = []

        def full(tensors: Any, there: Any, facts: Any = None) -> None:
            if self.it_is_time(saves):  # two of each checkpoint
                raise OSError(28, "No space left on device", str(there))
            save(tensors, there, facts)

        def taking(run: loop.Run, share: float) -> None:
            update(run, share)
            taken.append(run.state.step)

        update, knobs = loop.update, {"train": {"save_every_steps": 2, "eval_every_steps": 9}}
        with replaced(safetensors.torch, "save_file", full), replaced(distributed_checkpoint, "PARTS_FROM", 0):
            try:
                with replaced(loop, "update", taking):
                    fit(self.config(knobs), path)
                return "done"
            except HornbookError as error:
                told = [type(error).__name__, *error.mistakes]
        return [told, sorted(each.name for each in path.glob("checkpoints/step-*")), ended(resume(path)), taken[-1]]

    def lost(self) -> Any:
        """One rank ends in the middle of a step, the others tell so."""
        update, steps = loop.update, iter(range(1, 100))

        def dies(run: loop.Run, share: float) -> None:
            if next(steps) == 3 and world().rank == world().size - 1:
                os._exit(9)
            update(run, share)

        with replaced(loop, "update", dies):
            try:
                self.run("lost")
            except OthersLostError as error:
                return list(error.mistakes)
        return "done"


def told_of(run: Path) -> list[Any]:
    """Of a run: a digest of its weights and moments, and its losses."""
    losses = [
        {name: each.get(name) for name in ("loss", "grad_norm", "val_loss")} for each in read_log(run / "metrics.jsonl")
    ]
    return [digest(run), losses]


def digest(run: Path) -> str:
    newest = max(run.glob("checkpoints/step-*"))
    parts = [(newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def to(step: int) -> dict[str, Any]:
    return {"train": {"steps": step}}


def ended(outcome: Outcome) -> list[Any]:
    return [outcome.reason, outcome.step]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def in_a_world(size: int, act: Callable[[], Any], results: Path) -> list[Any]:
    """What each rank of a new world has to tell of `act`; None of one that died."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ["HORNBOOK_PATIENCE_SECONDS"] = "300"
                world.cache_clear()
                (results / f"{rank}.json").write_text(json.dumps(act()))
                leave_world()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = [results / f"{rank}.json" for rank in range(size)]
    told = [json.loads(each.read_text()) if each.exists() else None for each in found]
    for each in found:
        each.unlink(missing_ok=True)
    return told


def compiled(text: Path, folder: Path) -> None:
    """Slices, eager and compiled block by block, by one rank and by two."""
    results, told = folder / "results", dict[str, dict[str, Any]]()
    results.mkdir()
    for size in (1, 2):
        for name in ("eager", "compiled")[size - 1 :]:
            knobs = {"model": {"dropout": 0.0}, "train": {"compile": name == "compiled"}}
            run = partial(Scenes(text, folder / str(size), how=merge(SHARDED, knobs)).run, name)
            told.setdefault(str(size), {})[name] = in_a_world(size, lambda run=run: told_of(run()), results)
    (folder / "told.json").write_text(json.dumps(told))


# Among how many, and who has the model.
WAYS: list[tuple[int, dict[str, Any]]] = [(2, {}), (2, SHARDED), (4, {}), (4, GRID)]
BEFALLS = {
    "SIGTERM": Scenes.asked_to_stop,
    "NaN": Scenes.not_finite,
    "overflow": Scenes.overflow,
    "out of memory": Scenes.out_of_memory,
    "ENOSPC": Scenes.full_disk_of_another,
}


def trials(text: Path, folder: Path, times: int) -> None:
    """Each of what may befall a process, so many times, a random one of them at a random step; what each rank did."""
    results, told = folder / "results", dict[str, list[Any]]()
    results.mkdir()
    drawn = {
        (name, trial): (
            place := trial % len(WAYS),
            chance.randrange(WAYS[place][0]),
            chance.randint(3 if name == "ENOSPC" else 2, STEPS),
        )
        for chance in [random.Random(1)]
        for name in BEFALLS
        for trial in range(times)
    }
    for place, (size, how) in enumerate(WAYS):
        mine = {each: (culprit, at) for each, (where, culprit, at) in drawn.items() if where == place}

        def all_of_them(mine: Any = mine, how: Any = how) -> dict[str, Any]:
            return {
                f"{name} {trial}": BEFALLS[name](Scenes(text, folder / f"{name} {trial}", culprit, at, how))
                for (name, trial), (culprit, at) in mine.items()
            }

        ranks = in_a_world(size, all_of_them, results)
        for (name, trial), (culprit, at) in mine.items():
            did = [rank and rank[f"{name} {trial}"] for rank in ranks]
            facts = {"ranks": size, "parallel": how.get("train", {}).get("parallel", "replicated")}
            told.setdefault(name, []).append(facts | {"rank": culprit, "step": at, "did": did})
    (folder / "told.json").write_text(json.dumps(told, indent=1) + "\n")


def main(text: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    results = folder / "results"
    results.mkdir()
    told: dict[str, dict[str, list[Any]]] = {}
    for size, names in HAPPENS.items():
        scenes = Scenes(text, folder / str(size))

        def all_of_them(scenes: Scenes = scenes, names: list[str] = names) -> dict[str, Any]:
            return {name: getattr(scenes, name)() for name in names}

        ranks = in_a_world(size, all_of_them, results)
        told[str(size)] = {name: [rank and rank[name] for rank in ranks] for name in names}
    told["2"]["lost"] = in_a_world(2, Scenes(text, folder / "2").lost, results)

    steady = {"schedule": {"kind": "constant"}, "train": {"average": "ema"}}
    scenes, path = Scenes(text, folder), folder / "moved on"
    for at, size in ((2, 1), (4, 2), (6, 4), (8, 2), (10, 1)):

        def go_on(at: int = at, size: int = size) -> Any:
            if at == 2:
                return ended(fit(scenes.config(steady, to(at)), path))
            with replaced(distributed_checkpoint, "PARTS_FROM", 0 if size > 1 else distributed_checkpoint.PARTS_FROM):
                return ended(resume(path, merge(to(at), SHARDED if at == 6 else {})))

        in_a_world(size, go_on, results)
    in_a_world(1, lambda: ended(fit(scenes.config(steady, to(10)), folder / "in one")), results)
    told["1"]["moved on"] = [digest(path), digest(folder / "in one")]
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    if sys.argv[3:] == ["compiled"]:
        compiled(Path(sys.argv[1]), Path(sys.argv[2]))
    elif len(sys.argv) > 3:
        trials(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
