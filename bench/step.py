"""A training step in nanoGPT's shapes, ours and its own turn by turn, eager and compiled; and its share of the
machine's matrix product. Rows 4 and 5.

    python bench/step.py [--peer NANOGPT] [--shapes "4 x 128" ...] [--rounds 5] [--eager] [--out FOLDER]

A step is forwards, backwards, clipping and the optimizer, on a batch that is there, in float32 and without dropout.
`hornbook` computes what nanoGPT does, GPT-2's layers and AdamW; `hornbook modern` is the same size with what our own
recipes train: rotary positions, QK-norm, SwiGLU, Muon. Where the processor is fast in bfloat16, the largest shapes are
measured in it too, beside nanoGPT under autocast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measuring import Claim, Contestant, Found, medians, run, timed, times_faster, turns
from nanogpt import step_of

from hornbook.base.machine import choose_machine
from hornbook.base.process import keep_freed_memory
from hornbook.base.world import World
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.shards.order import Batch
from hornbook.train.config import OptimConfig, RunConfig, TrainConfig
from hornbook.train.learner import Learner
from hornbook.train.sizing import first_micro_batch


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_head: int
    n_embd: int
    context: int
    vocab_size: int
    batch: int
    window: int
    biases: bool
    aim: str = "1.0"

    @property
    def sizes(self) -> dict[str, int]:
        return {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd, "vocab_size": self.vocab_size}

    @property
    def tokens(self) -> int:
        return self.batch * self.window

    @property
    def model(self) -> ModelConfig:
        without = {} if self.biases else {"biases": ()}
        return classic(context=self.context, **self.sizes, **without)


SHAPES = {
    "4 x 128": Shape(4, 4, 128, 64, 65, 12, 64, biases=False, aim="1.5"),
    "6 x 384": Shape(6, 6, 384, 256, 65, 12, 256, biases=False),
    "124M, 4 x 256": Shape(12, 12, 768, 1024, 50_257, 4, 256, biases=True),
    "124M, 2 x 1024": Shape(12, 12, 768, 1024, 50_257, 2, 1024, biases=True),
}
TINY = {"1 x 32": Shape(1, 2, 32, 16, 65, 2, 16, biases=True)}
SHARE_FROM = 100_000_000  # parameters: of smaller models a step is not products alone
AIMED_SHARE = {"float32": "90%", "bfloat16": "75%"}
PEER = "nanoGPT"


def ours(shape: Shape, model: ModelConfig, optim: OptimConfig, dtype: str, compiled: bool) -> Callable[[], None]:
    config = RunConfig(model=model, optim=optim, train=TrainConfig(steps=1, batch_tokens=shape.tokens))
    if shape.window != shape.context:
        config = config.with_(train=TrainConfig(steps=1, batch_tokens=shape.tokens, context=shape.window).model_dump())
    machine = choose_machine("cpu", dtype)
    learner = Learner(config, machine, World(), first_micro_batch(config, machine), compiled)
    learner.prepare()
    ids, targets = batch_of(shape)

    def take(first: int, count: int) -> Batch:
        return ids[first : first + count], targets[first : first + count]

    def step() -> None:
        learner.learn(take, 0, 0.1)

    return step


def under_autocast(step: Callable[[], None]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        step()


def batch_of(shape: Shape) -> Batch:
    ids = torch.randint(shape.vocab_size, (shape.batch, shape.window + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def contestants(shape: Shape, dtype: str, peer: Path | None, compiled: bool) -> dict[str, Contestant]:
    how = "compiled" if compiled else "eager"
    adamw, muon = OptimConfig(kind="adamw"), OptimConfig()
    like_ours = modern(context=shape.context, tied=True, **{**shape.sizes})
    steps = {f"hornbook {how}": ours(shape, shape.model, adamw, dtype, compiled)}
    if not compiled:
        steps[f"hornbook modern {how}"] = ours(shape, like_ours, muon, dtype, compiled)
    if peer is not None:
        sizes = {**shape.sizes, "block_size": shape.context, "bias": shape.biases}
        theirs = step_of(peer, sizes, batch_of(shape), compiled)
        steps[f"{PEER} {how}"] = theirs if dtype == "float32" else partial(under_autocast, theirs)
    return {name: timed(step) for name, step in steps.items()}


def measure(given: argparse.Namespace) -> Found:
    keep_freed_memory()
    found = Found()
    if given.peer is None:
        found.pass_over(f"{PEER}: no --peer")
    if not (can_compile := choose_machine("cpu").can_compile):
        found.pass_over("compiled steps: no C++ compiler")
    shapes = TINY if given.tiny else {name: SHAPES[name] for name in given.shapes or SHAPES}
    dtypes = ["float32", choose_machine("cpu").dtype]
    if dtypes[1] == "float32":
        found.pass_over("bfloat16: this processor is not fast in it")
    for name, shape in shapes.items():
        for dtype in dict.fromkeys(dtypes):
            if dtype == "float32" or shape.model.n_params() >= SHARE_FROM:
                compete(found, name, shape, dtype, given, can_compile and not given.eager)
    return found


def compete(found: Found, name: str, shape: Shape, dtype: str, given: argparse.Namespace, compiled: bool) -> None:
    entering = contestants(shape, dtype, given.peer, False)
    if compiled:
        entering |= contestants(shape, dtype, given.peer, True)
    seconds = turns(entering, given.rounds)
    median = medians(seconds)
    found.figures[f"{name}, {dtype}"] = {
        contestant: {
            "seconds": seconds[contestant],
            "median_ms": round(1000 * each, 2),
            "tokens_per_second": round(shape.tokens / each, 1),
        }
        for contestant, each in median.items()
    }
    peers = {each: median[each] for each in entering if each.startswith(PEER)}
    rivals = {each: median[each] for each in entering if each not in peers and "modern" not in each}
    fastest = min(rivals, key=rivals.__getitem__)
    for mine in [each for each in entering if each not in peers]:
        peer = min(peers, key=peers.__getitem__, default=None)
        found.claims.append(
            Claim(
                4,
                f"a step, {name}, {dtype}, {mine.removeprefix('hornbook ')}",
                1000 * median[mine],
                "ms",
                1000 * peers[peer] if peer else None,
                peer or "",
                shape.aim if mine == fastest else "",
                times_faster(seconds, mine, peer) if peer else None,
            )
        )
    if shape.model.n_params() < SHARE_FROM and not given.tiny:
        return
    for mine in rivals:
        peer = mine.replace("hornbook", PEER)
        found.claims.append(
            Claim(
                5,
                f"share of the matrix product, {name}, {dtype}, {mine.removeprefix('hornbook ')}",
                100 * share(shape, dtype, median[mine], given.ceilings),
                "%",
                100 * share(shape, dtype, peers[peer], given.ceilings) if peer in peers else None,
                peer,
                AIMED_SHARE[dtype],
            )
        )


def share(shape: Shape, dtype: str, seconds: float, ceilings: dict[str, float]) -> float:
    """Of the machine's product of large matrices: 6 floating-point operations for each weight that multiplies a token,
    and the attention's own."""
    flops = shape.tokens * shape.model.flops_per_token(shape.window) / seconds
    return flops / 1e9 / ceilings[f"product {dtype}, GFLOP/s"]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT; without it, ours alone")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="nothing compiled, which takes minutes")


if __name__ == "__main__":
    run(__doc__, measure, options)
