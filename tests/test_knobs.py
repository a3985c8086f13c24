"""Every knob of a run does something: turned from one value to another, what can be seen of the run changes.

A new knob needs a line in TURNS; one that changes nothing that can be seen should not be there.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.base.files import read_json, staged_folder
from hornbook.base.settings import knobs, merge
from hornbook.model.folder import read_weights
from hornbook.recipes import compose
from hornbook.runs.folder import RunFolder, step_of
from hornbook.runs.logs import read_log
from hornbook.shards.format import Shards
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, free_folder

BASE: dict[str, Any] = {
    "tokenizer": {"kind": "byte"},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_width": 16, "context": 16, "init": "gpt2"},
    "optim": {"lr": 0.03, "eps": 1e-8},
    "schedule": {"warmup_steps": 0},
    "sample": {"tokens": 3, "rules": {"temperature": 1.0, "top_p": None}},
    "train": {
        "steps": 4,
        "batch_tokens": 64,
        "dtype": "float32",
        "compile": False,
        "device": "cpu",
        "threads": 1,
        "eval_every_steps": 4,
        "save_every_steps": 4,
    },
}


@dataclass(frozen=True)
class Ended:
    """A run, or why there was none."""

    config: RunConfig
    folder: Path
    compilations: int
    refusal: str = ""

    def logged(self, kind: str) -> list[tuple[int, Any]]:
        return [(each["step"], each[kind]) for each in read_log(self.folder / "metrics.jsonl") if kind in each]


def losses(run: Ended) -> list[tuple[int, float]]:
    return run.logged("loss")


def last_step(run: Ended) -> int:
    return losses(run)[-1][0]


def validation_losses(run: Ended) -> list[tuple[int, float]]:
    return run.logged("val_loss")


def train_losses(run: Ended) -> list[tuple[int, float]]:
    return run.logged("train_loss")


def parameters(run: Ended) -> int:
    return run.config.model.with_(vocab_size=257).n_params()


def evaluations(run: Ended) -> list[int]:
    return [step for step, _ in run.logged("val_loss")]


def weights(run: Ended) -> int:
    """In the file, however its config tells of them."""
    return sum(tensor.numel() for tensor in read_weights(RunFolder(run.folder).checkpoints()[0]).values())


def trained_a_while(run: Ended) -> bool:
    return last_step(run) > 1


def samples(run: Ended) -> list[tuple[str, str]]:
    return [(each["prompt"], each["text"]) for each in read_log(run.folder / "samples.jsonl")]


def sampled_at(run: Ended) -> list[int]:
    return [each["step"] for each in read_log(run.folder / "samples.jsonl")]


def checkpoints(run: Ended) -> list[int]:
    return [step_of(each) for each in RunFolder(run.folder).checkpoints()]


def snapshots(run: Ended) -> list[int]:
    return [step_of(each) for each in RunFolder(run.folder).snapshots()]


def data(run: Ended) -> dict[str, Any]:
    shards = Shards.open(Path(read_json(run.folder / "run.json")["data"]["folder"]))
    return {"vocabulary": shards.vocab_size, "tokens": {name: len(shards.split(name)) for name in ("train", "val")}}


def vocabulary(run: Ended) -> list[str]:
    return sorted(read_json(RunFolder(run.folder).checkpoints()[0] / "tokenizer.json")["model"]["vocab"])


def cutting(run: Ended) -> Any:
    return read_json(RunFolder(run.folder).checkpoints()[0] / "tokenizer.json")["pre_tokenizer"]


def shown(run: Ended) -> tuple[str, bool]:
    """There, or told that it is not installed."""
    return run.refusal, (run.folder / "tensorboard").is_dir()


def machine(run: Ended) -> dict[str, Any]:
    record = read_json(run.folder / "run.json")["machine"] if not run.refusal else {}
    return {name: record.get(name) for name in ("device", "dtype", "threads")} | {"refusal": run.refusal}


def checkpoints_activations(run: Ended) -> bool:
    return bool(read_json(RunFolder(run.folder).checkpoints()[0] / "state.json")["checkpoints_activations"])


def is_sharded(run: Ended) -> bool:
    return bool(read_json(max(run.folder.glob("checkpoints/step-*")) / "state.json")["sharded"])


def compilations(run: Ended) -> int:
    return run.compilations


def refusal(run: Ended) -> str:
    return run.refusal


def place(run: Ended) -> str:
    return free_folder(run.config, run.folder.parent / "empty").name


@dataclass(frozen=True)
class Turn:
    """A knob's two values, where the difference shows, and what else must be set for it to bear."""

    one: Any
    other: Any
    shows_in: Callable[[Ended], Any] = losses
    given: dict[str, Any] = field(default_factory=dict)


BPE = {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 280}
NO_STEPS = {"train.steps": None}

TURNS = {
    "recipe": Turn("custom", "mine", place),
    "data": Turn("short.txt", "other.txt"),
    "start_from": Turn(None, "taught"),
    "grow.n_layer": Turn(None, 2, weights, {"start_from": "taught"}),
    "grow.n_embd": Turn(None, 16, weights, {"start_from": "taught"}),
    "grow.n_head": Turn(None, 4, weights, {"start_from": "taught"}),
    "grow.mlp_width": Turn(None, 24, weights, {"start_from": "taught"}),
    "seed": Turn(1, 2),
    "text.format": Turn(None, "text", data, {"data": "rows.jsonl"}),
    "text.field": Turn("text", "title", losses, {"data": "rows.jsonl"}),
    "text.document": Turn(None, "file", data, {"data": "rows.jsonl"}),
    "text.headers": Turn(("Subject",), (), data, {"data": "letters.mbox"}),
    "text.errors": Turn("strict", "replace", refusal, {"data": "latin1.txt"}),
    "text.bad_records": Turn("stop", "skip", refusal, {"data": "bad.jsonl"}),
    "text.max_documents": Turn(None, 50, data, {"data": "rows.jsonl"}),
    "tokenizer.kind": Turn("byte", "char", vocabulary),
    "tokenizer.vocab_size": Turn(262, 270, data, {"tokenizer.kind": "bpe"}),
    "tokenizer.train_bytes": Turn(64_000_000, 100, vocabulary, BPE | {"data": "folder"}),
    "tokenizer.ranks_file": Turn("one.tiktoken", "other.tiktoken", refusal, {"tokenizer.kind": "gpt2"}),
    "tokenizer.file": Turn("taught/tokenizer", "pairs", data, {"tokenizer.kind": "file"}),
    "tokenizer.as_published": Turn(False, True, cutting, {"tokenizer.kind": "wordpiece"}),
    "shards.val_fraction": Turn(None, 0.3, data),
    "shards.test_fraction": Turn(0.0, 0.3, data),
    "order.kind": Turn("phased", "windows"),
    "order.stride": Turn(None, 4),
    "order.drop_last": Turn(False, True, losses, {"train.batch_tokens": 16 * 50}),
    "model.vocab_size": Turn(257, 300),
    "model.context": Turn(16, 8),
    "model.n_layer": Turn(1, 2),
    "model.n_head": Turn(2, 1),
    "model.n_kv_head": Turn(None, 1),
    "model.n_embd": Turn(8, 12),
    "model.head_width": Turn(None, 8),
    "model.mlp_width": Turn(16, 24),
    "model.norm": Turn("rmsnorm", "layernorm"),
    "model.norm_eps": Turn(1e-6, 1e-2),
    "model.activation": Turn("swiglu", "gelu_tanh"),
    "model.positions": Turn("rotary", "learned"),
    "model.rope_theta": Turn(10_000.0, 50.0),
    "model.norm_weight": Turn(True, False, parameters),
    "model.embedding_norm": Turn(False, True),
    "model.qk_norm": Turn("before", "after", losses, {"optim.lr": 0.3}),
    "model.attention_scale": Turn("head", "width"),
    "model.out_projection": Turn(True, False),
    "model.biases": Turn((), ("qkv", "head")),
    "model.logit_cap": Turn(None, 0.5),
    "model.value_embeddings": Turn(False, True),
    "model.bigram_embeddings": Turn(0, 50),
    "model.embedding_skip": Turn(False, True),
    "model.dropout_at": Turn(("embedding",), ("mlp",), losses, {"model.dropout": 0.2}),
    "model.tied": Turn(False, True),
    "model.dropout": Turn(0.0, 0.2),
    "model.init": Turn("gpt2", "modern"),
    "optim.kind": Turn("muon", "adamw"),
    "optim.lr": Turn(0.03, 0.01),
    "optim.embedding_lr": Turn(None, 0.1),
    "optim.matrix_lr": Turn(0.02, 0.05),
    "optim.lr_scale": Turn(1.0, 2.0),
    "optim.momentum": Turn(0.95, 0.5),
    "optim.nesterov": Turn(False, True, losses, {"optim.kind": "sgd"}),
    "optim.weight_decay": Turn(0.1, 1.0),
    "optim.beta1": Turn(0.9, 0.5),
    "optim.beta2": Turn(0.95, 0.5),
    "optim.eps": Turn(1e-8, 1e-3),
    "optim.decay": Turn("matrices", "all", losses, {"optim.weight_decay": 1.0}),
    "optim.clip": Turn(1.0, 0.01),
    "optim.spike": Turn(0.01, None, losses, {"train.steps": 80}),
    "schedule.kind": Turn("trapezoid", "cosine"),
    "schedule.warmup_steps": Turn(0, 3),
    "schedule.decay_share": Turn(0.5, 1.0),
    "schedule.warmup_share": Turn(None, 0.5),
    "schedule.decay_steps": Turn(None, 1, losses, {"train.steps": 6}),
    "schedule.drop_step": Turn(2, 3, losses, {"schedule.kind": "drop"}),
    "schedule.drop_share": Turn(0.2, 0.5, losses, {"schedule.kind": "drop"}),
    "schedule.final_share": Turn(0.0, 0.5, losses, {"train.steps": 6}),
    "sample.prompts": Turn(("",), ("the cat", "a mat"), samples),
    "sample.tokens": Turn(3, 2, samples),
    "sample.rules.temperature": Turn(1.0, 0.0, samples),
    "sample.rules.top_k": Turn(None, 1, samples),
    "sample.rules.top_p": Turn(None, 0.05, samples),
    "sample.rules.min_p": Turn(None, 0.9, samples),
    "sample.rules.repetition_penalty": Turn(1.0, 50.0, samples, {"sample.rules.temperature": 0.0}),
    "sample.rules.presence_penalty": Turn(0.0, 50.0, samples, {"sample.rules.temperature": 0.0, "sample.tokens": 8}),
    "train.steps": Turn(4, 3, last_step),
    "train.epochs": Turn(0.1, 0.2, last_step, NO_STEPS),
    "train.tokens": Turn(100, 200, last_step, NO_STEPS),
    "train.minutes": Turn(0.00001, 0.02, trained_a_while, NO_STEPS),
    "train.target_loss": Turn(None, 100.0, last_step),
    "train.patience": Turn(
        None, 1, last_step, {"train.eval_every_steps": 1, "train.steps": 20, "optim.lr_scale": 99.0}
    ),
    "train.batch_tokens": Turn(64, 32),
    "train.context": Turn(None, 8),
    # Each micro-batch has dropout of its own.
    "train.micro_batch": Turn(None, 1, losses, {"model.dropout": 0.2}),
    "train.head_start": Turn(None, False, losses, {"model.init": "modern"}),
    "train.average": Turn(None, "ema", validation_losses),
    "train.average_share": Turn(0.1, 0.4, validation_losses, {"train.average": "ema"}),
    "train.eval_every_steps": Turn(4, 2, evaluations),
    "train.eval_from_step": Turn(None, 1, evaluations),
    "train.eval_batches": Turn(None, 1, train_losses),
    "train.save_every_steps": Turn(4, 2, checkpoints),
    "train.save_every_minutes": Turn(
        None, 1e-9, checkpoints, {"train.save_every_steps": 1000, "train.keep_checkpoints": 9}
    ),
    "train.sample_every_steps": Turn(None, 2, sampled_at),
    "train.keep_checkpoints": Turn(2, 9, checkpoints, {"train.save_every_steps": 1}),
    "train.snapshots": Turn(True, False, snapshots),
    "train.dashboards": Turn((), ("tensorboard",), shown),
    "train.device": Turn("cpu", "cuda", machine),
    "train.dtype": Turn("float32", "bfloat16"),
    "train.activation_checkpointing": Turn(None, True, checkpoints_activations),
    "train.parallel": Turn("replicated", "sharded", is_sharded),
    "train.compile": Turn(False, True, compilations),
    "train.threads": Turn(1, 2, machine),
}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ended]]:
    """Trains with some knobs turned, once for each setting of them."""
    home = tmp_path_factory.mktemp("knobs")
    chance = random.Random(0)
    for name, words in (("short", "the cat sat on a mat and ate the rat"), ("other", "two dogs ran to an old red hut")):
        (home / f"{name}.txt").write_text(" ".join(chance.choices(words.split(), k=520)))
    (home / "folder").mkdir()
    for number in range(20):
        letters = "abcdefghijklmnopqrst"[number] + "uvwxyz"
        (home / "folder" / f"{number:02}.txt").write_text(" ".join(chance.choices(letters, k=60)) * 2)
    rows = [json.dumps({"text": f"{number} " + "the cat " * 5, "title": "ab " * 20}) for number in range(100)]
    (home / "rows.jsonl").write_text("\n".join(rows))
    (home / "bad.jsonl").write_text("\n".join([*rows, "{}"]))
    letters = [f"From a\nSubject: number {number}\n\n" + "the cat sat. " * 9 + "\n\n" for number in range(90)]
    (home / "letters.mbox").write_text("".join(letters))
    (home / "latin1.txt").write_bytes(b"na\xefve " * 100)
    taught = fit(RunConfig.model_validate(merge(BASE, {"data": str(home / "other.txt")})), home / "taught").folder
    (home / "taught" / "tokenizer").symlink_to(RunFolder(taught).checkpoints()[0])
    pairs = TokenizerConfig(kind="bpe", vocab_size=262)
    with staged_folder(home / "pairs", {}) as staging:
        train_tokenizer(pairs, ["the cat sat"], 100).save(staging)
    compiled: list[int] = []
    threads = torch.get_num_threads()

    def compile_nothing(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        compiled.append(1)
        return function

    @cache
    def run(turned: str, repetition: int = 0) -> Ended:
        tree: dict[str, Any] = {"data": "short.txt"}
        for name, value in json.loads(turned).items():
            for part in reversed(name.split(".")):
                value = {part: value}
            tree = merge(tree, value)
        tree["data"] = str(home / tree["data"])
        if "file" in tree.get("tokenizer", {}):
            tree["tokenizer"]["file"] = str(home / tree["tokenizer"]["file"])
        begin = {"start_from": str(home / tree.pop("start_from"))} if tree.get("start_from") else {}
        begin |= {"grow": tree.pop("grow")} if "grow" in tree else {}
        config = compose(RunConfig.model_validate(merge(BASE, tree)), begin)
        folder = home / f"run-{len(list(home.glob('run-*')))}"
        folder.mkdir()
        compiled.clear()
        try:
            fit(config, folder, Progress(io.StringIO(), live=False))
        except UserError as error:
            return Ended(config, folder, 0, str(error))
        return Ended(config, folder, len(compiled))

    def train_with(turned: dict[str, Any], repetition: int = 0) -> Ended:
        return run(json.dumps(turned, sort_keys=True), repetition)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_nothing)
        yield train_with
    torch.set_num_threads(threads)


def without_defaults(turned: dict[str, Any]) -> dict[str, Any]:
    """Knobs that stand as they do in BASE left out, so that many share its run."""

    def in_base(name: str) -> Any:
        value: Any = BASE
        for part in name.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        return value

    return {name: value for name, value in turned.items() if in_base(name) != value}


@pytest.mark.parametrize("name", TURNS)
def test_turning_a_knob_changes_what_happens(name: str, train: Callable[..., Ended]) -> None:
    turn = TURNS[name]
    one, other = (train(without_defaults(turn.given | {name: value})) for value in (turn.one, turn.other))
    assert turn.shows_in(one) != turn.shows_in(other)


def test_turning_nothing_changes_nothing(train: Callable[..., Ended]) -> None:
    """Or a difference above could be chance."""
    one, again = train({}), train({}, repetition=1)
    assert one.folder != again.folder
    for shows_in in {turn.shows_in for turn in TURNS.values()} - {place, trained_a_while}:
        assert shows_in(one) == shows_in(again)


def test_every_knob_is_turned_here() -> None:
    assert sorted(TURNS) == sorted(knobs(RunConfig))
