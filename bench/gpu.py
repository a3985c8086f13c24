"""What a GPU makes of our runs, beside nanoGPT on the same card.

    PYTHONPATH=src python bench/gpu.py [--out FILE.json] [--texts FOLDER] [--peer NANOGPT] [--only NAME,NAME] [--tiny]

Needs torch with CUDA, numpy, pydantic, tokenizers and safetensors; not the command line. Each case of ours is a real
run through the real loop: step time by the median, MFU, peak memory beside what was predicted, places where the loop
waits for the device, losses. `--texts` is a folder with tinyshakespeare.txt and r50k_base.tiktoken, for runs on real
text; `--peer` a checkout of nanoGPT, whose model and training program run beside ours. `--tiny` shrinks every case, so
that the script itself can be tried on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from nanogpt import ITS_LOSS_ON_AN_A100, model_module, trained

from hornbook.base.machine import choose_machine
from hornbook.model.config import classic, modern
from hornbook.model.init import outline
from hornbook.plan.forecast import forecast
from hornbook.recipes import compose, dial
from hornbook.recipes.miniature import miniature
from hornbook.recipes.modern import demo
from hornbook.recipes.published import pile_2b, shakespeare_124m
from hornbook.runs.logs import read_log
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train import learner, loop, probe, start
from hornbook.train.config import OptimConfig, RunConfig, SampleConfig, ScheduleConfig, TrainConfig, override
from hornbook.train.memory import training_memory
from hornbook.train.start import fit, resume

Facts = dict[str, Any]
GPT2_BATCH_TOKENS = 491_520
PROFILED_STEPS = (6, 7)


@dataclass(frozen=True)
class Bench:
    texts: Path | None
    peer: Path | None
    tiny: bool

    def size(self, full: int, small: int) -> int:
        return small if self.tiny else full


def gpt2_124m(bench: Bench, **train: Any) -> RunConfig:
    """GPT-2's smallest shape on Python's sources, at the batch that nanoGPT's page takes."""
    shape = classic(n_layer=12, n_head=12, n_embd=768, context=1024)
    if bench.tiny:
        shape = classic(n_layer=2, n_head=2, n_embd=64, context=64)
    return RunConfig(
        recipe="gpt2-124m",
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=bench.size(50_257, 600)),
        model=shape,
        optim=OptimConfig(kind="adamw", lr=6e-4),
        schedule=ScheduleConfig(kind="constant", warmup_steps=20),
        sample=SampleConfig(tokens=8),
        train=TrainConfig(
            steps=bench.size(12, 9),
            batch_tokens=bench.size(GPT2_BATCH_TOKENS, 512),
            eval_every_steps=10**6,
            snapshots=False,
        ).with_(**train),
    )


def like_gpt2_in_our_shape(bench: Bench, **train: Any) -> RunConfig:
    """The same size as we would build it today: rotary positions, QK-norm, SwiGLU, Muon."""
    plain = gpt2_124m(bench, **train)
    size = plain.model
    shape = modern(n_layer=size.n_layer, n_head=size.n_head, n_embd=size.n_embd, context=size.context)
    return plain.with_(model=shape.model_dump(), optim=OptimConfig().model_dump())


def characters(bench: Bench, **train: Any) -> RunConfig:
    """Tiny Shakespeare by characters, in the shape of nanoGPT's example for a GPU."""
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context": 256}
    if bench.tiny:
        shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32}
    return RunConfig(
        recipe="characters",
        data=str((bench.texts or Path()) / "tinyshakespeare.txt"),
        tokenizer=TokenizerConfig(kind="char"),
        model=modern(dropout=0.2, **shape),
        optim=OptimConfig(lr=4e-3, embedding_lr=1e-2, matrix_lr=0.02, weight_decay=0.1),
        sample=SampleConfig(tokens=64),
        train=TrainConfig(
            steps=bench.size(800, 4),
            batch_tokens=bench.size(16_384, 256),
            eval_every_steps=bench.size(100, 2),
            snapshots=False,
        ).with_(**train),
    )


# ---- what is measured of a run of ours


class Watch:
    """Looks at the loop's steps from outside: how long each takes when nothing is waited for, and who waits."""

    def __init__(self, profile: Path | None) -> None:
        self.waits: Counter[str] = Counter()
        self.micro_batch = 0
        self._profile, self._profiler = profile, None
        self._update = loop.update

    def __enter__(self) -> Watch:
        loop.update = self.update
        return self

    def __exit__(self, *_: object) -> None:
        loop.update = self._update

    def update(self, run: loop.Run, share: float) -> None:
        if self._profile and run.state.step == PROFILED_STEPS[0]:
            self._profiler = torch.profiler.profile()
            self._profiler.__enter__()
        with self._counting_waits() if run.state.step >= 3 else contextlib.nullcontext():
            self._update(run, share)
        self.micro_batch = run.learner.micro_batch
        if self._profiler is not None and run.state.step > PROFILED_STEPS[1]:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._profiler.__exit__(None, None, None)
            by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = self._profiler.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90)
            self._profile.write_text(table)
            self._profiler = self._profile = None

    @contextlib.contextmanager
    def _counting_waits(self) -> Iterator[None]:
        if not torch.cuda.is_available():
            yield
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for each in caught:
            if "synchroniz" in str(each.message):
                self.waits[f"{Path(each.filename).name}:{each.lineno}"] += 1


def measure(
    config: RunConfig,
    profile: Path | None = None,
    then: RunConfig | None = None,
    saving: bool = True,
    recording: bool = True,
) -> Facts:
    """Train it for real, and tell what it took; `then` goes on with the run up to other ends. Without `saving`, for a
    model whose checkpoints no disk at hand holds, nothing is kept."""
    on_gpu = torch.cuda.is_available()
    gc.collect()  # what runs before it held
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as parent, Watch(profile) as watch, contextlib.ExitStack() as stack:
        folder = Path(parent) / "run"
        if not saving:
            stack.enter_context(mock.patch.object(loop, "save", return_value=None))
            stack.enter_context(mock.patch.object(start, "check_room", return_value=None))
        if not recording:
            stack.enter_context(mock.patch.object(learner, "RECORDED_ON", ()))
        outcome = fit(config, folder)
        if then is not None:
            outcome = resume(folder, {"train": {"steps": then.train.steps}})
        log = read_log(folder / "metrics.jsonl")
        samples = read_log(folder / "samples.jsonl")
        record = json.loads((folder / "run.json").read_text())
    steps = [each for each in log if "loss" in each]
    evaluated = [each for each in log if "val_loss" in each]
    config = RunConfig(**record["config"])
    times = [after["seconds"] - before["seconds"] for before, after in pairwise(steps[2:])]
    median = statistics.median(times or [outcome.seconds / outcome.step])
    rate = config.sequences * config.window / median
    dtype = getattr(torch, record["machine"]["dtype"])
    predicted = training_memory(config, outline(config.model), watch.micro_batch, dtype, record["machine"]["device"])
    peak = record["machine"]["peak_flops"]
    return {
        "ended": outcome.reason,
        "steps": outcome.step,
        "dtype": record["machine"]["dtype"],
        "micro_batch": watch.micro_batch,
        "step_ms": round(1000 * median, 2),
        "tokens_per_second": round(rate),
        "mfu": round(rate * config.model.flops_per_token(config.window) / peak, 4) if peak else None,
        "peak_memory_gb": round(outcome.peak_memory_bytes / 1e9, 2),
        "predicted_memory_gb": round(predicted.bytes / 1e9, 2),
        "waits_in_steps": dict(watch.waits),
        "losses": [round(steps[place]["loss"], 4) for place in (0, len(steps) // 4, len(steps) // 2, -1)],
        "last_losses": [each["loss"] for each in steps[-3:]],
        "left_out": [each["step"] for each in steps if each["grad_norm"] is None],
        "loss_scale": steps[-1].get("loss_scale"),
        "val": [
            (each["step"], round(each["val_loss"], 4), each["val_bits_per_byte"], each["seconds"]) for each in evaluated
        ],
        "samples": [each["text"][:200] for each in samples][-1:],
        "seconds_in_all": round(time.monotonic() - began, 1),
    }


def rung(size: dial.Size, compiled: bool) -> Facts:
    """A step of the dial's ladder: how much of the rate of a large product it has."""
    machine, vocabulary = choose_machine(), 4096
    config = dial.a_step_of(size, vocabulary)
    began = time.monotonic()
    seconds = probe.seconds_a_step(config, machine, compiled).seconds
    rate = dial.flops_of_step(size, vocabulary) / seconds
    return {
        "parameters": config.model.n_params(),
        "step_ms": round(1000 * seconds, 3),
        "tokens_per_second": round(size.batch_tokens / seconds),
        "share_of_product": round(rate / probe.flops(machine), 4),
        "seconds_in_all": round(time.monotonic() - began, 1),
    }


def by_the_dial(bench: Bench, minutes: float, **knobs: Any) -> Facts:
    """What a user gets who names a text and a time and nothing else, beside what was foretold."""
    foretold = forecast(None, knobs | {"train": {"minutes": minutes}})
    outcome = measure(compose(None, knobs | {"train": {"minutes": minutes}}, measured=True))
    shape = foretold.config.model
    return outcome | {
        "chosen": f"{shape.n_layer} x {shape.n_embd}, {foretold.config.train.batch_tokens} tokens a step",
        "foretold": {"steps": foretold.steps, "bits_per_byte": foretold.bits_per_byte},
    }


def checkpointing(bench: Bench, train: dict[str, Any]) -> Facts:
    """The same steps with activation checkpointing and without, eager and compiled: memory beside what was predicted,
    speed, losses."""
    found: Facts = {}
    for compiled in (False, True):
        for kept in (True, False):
            name = f"{'compiled' if compiled else 'eager'}, {'all kept' if kept else 'checkpointing'}"
            knobs = {**train, "steps": bench.size(12, 5), "compile": compiled, "activation_checkpointing": not kept}
            found[name] = measure(gpt2_124m(bench, **knobs))
    for way in ("eager", "compiled"):
        kept, again = (found[f"{way}, {which}"]["last_losses"] for which in ("all kept", "checkpointing"))
        found[f"{way}, losses differ by"] = max(abs(one - other) for one, other in zip(kept, again, strict=True))
    return found


# ---- the peer


def nanogpt_step(bench: Bench, micro_batch: int) -> Facts:
    """nanoGPT's model at its best: compiled, bf16, fused AdamW, a vocabulary padded to 50,304, no biases."""
    assert bench.peer is not None
    theirs = model_module(bench.peer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(1337)
    context, vocab = bench.size(1024, 64), bench.size(50_304, 600)
    layers, heads, width = (2, 2, 64) if bench.tiny else (12, 12, 768)
    shape = theirs.GPTConfig(
        block_size=context, vocab_size=vocab, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=False
    )
    model = theirs.GPT(shape).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    model = torch.compile(model) if device == "cuda" else model
    batch = bench.size(GPT2_BATCH_TOKENS, 512)
    rounds = batch // (micro_batch * context)
    ids = torch.randint(0, vocab - 50, (micro_batch, context + 1), device=device)
    times = []
    for _ in range(bench.size(8, 2)):
        began = time.monotonic()
        for _ in range(rounds):
            with torch.autocast(device, torch.bfloat16):
                loss = model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1] / rounds
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(time.monotonic() - began)
    median = statistics.median(times[2:] or times)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {
        "micro_batch": micro_batch,
        "step_ms": round(1000 * median, 2),
        "tokens_per_second": round(rounds * micro_batch * context / median),
        "peak_memory_gb": round(memory, 2),
    }


def nanogpt_on_characters(bench: Bench) -> Facts:
    """Its own training program on tiny Shakespeare by characters, as its page tells; when it first reached its own
    published loss."""
    assert bench.peer is not None
    words = ["config/train_shakespeare_char.py"]
    if bench.tiny:
        words += [
            "--device=cpu",
            "--compile=False",
            *("--eval_iters=1", "--max_iters=2", "--eval_interval=1", "--n_layer=1"),
        ]
    text = (bench.texts or Path()) / "tinyshakespeare.txt"
    with tempfile.TemporaryDirectory() as work:
        found, _ = trained(bench.peer, words, text, Path(work), until=ITS_LOSS_ON_AN_A100)
    return {"val": found, "reached": next((each for each in found if each[1] <= ITS_LOSS_ON_AN_A100), None)}


def ceilings(bench: Bench) -> Facts:
    """The rates of a large bf16 product and of a large copy, on this card in this run."""
    if not torch.cuda.is_available():
        return {"device": "no GPU"}
    n = 8192
    one, other = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = _seconds(lambda: one @ other)
    data = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    place = torch.empty_like(data)
    copy = _seconds(lambda: place.copy_(data))
    return {
        "product_tflops": round(2 * n**3 / product / 1e12, 1),
        "copy_tb_per_second": round(2 * data.numel() * 2 / copy / 1e12, 2),
    }


def _seconds(act: Callable[[], object]) -> float:
    times = []
    for _ in range(13):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        act()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[3:])


# ---- the table


def cases(bench: Bench, out: Path | None) -> dict[str, Callable[[], Facts]]:
    profile = out.with_suffix(".profile.txt") if out else None
    short = {"steps": bench.size(100, 5), "batch_tokens": bench.size(32_768, 512), "micro_batch": bench.size(16, 4)}
    minute = {"train": {"minutes": 1 / 6}} if not bench.tiny else {"train": {"steps": 3}}
    many = {"steps": bench.size(200, 5)}
    found: dict[str, Callable[[], Facts]] = {"ceilings": lambda: ceilings(bench)}
    for size in dial.LADDER[:2] if bench.tiny else dial.LADDER:
        for name in ("eager", "compiled") if size.n_layer in (6, 8) else ("eager",):
            found[f"rung {size.n_layer} x {size.n_embd} {name}"] = lambda size=size, name=name: rung(
                size, name == "compiled"
            )
    found["124m compiled"] = lambda: measure(gpt2_124m(bench, compile=True), profile)
    if bench.peer is not None:
        for rows in (2,) if bench.tiny else (32,):
            found[f"124m nanogpt {rows}"] = lambda rows=rows: nanogpt_step(bench, rows)
    found["124m eager"] = lambda: measure(gpt2_124m(bench, compile=False))
    found["124m-modern compiled"] = lambda: measure(like_gpt2_in_our_shape(bench, compile=True))
    for name in ("compiled", "eager"):
        found[f"demo {name}"] = lambda name=name: measure(
            override(demo(), minute, {"train": {"compile": name == "compiled"}})
        )
    in_half = [(dtype, compiled) for dtype in ("bfloat16", "float16") for compiled in (False, True)]
    for dtype, compiled in (("float32", False), *in_half):
        knobs = {"dtype": dtype, "compile": compiled}
        name = f"{dtype} {'compiled' if compiled else 'eager'}"
        found[f"numbers 124m {name}"] = lambda knobs=knobs: measure(gpt2_124m(bench, **short | many, **knobs))
        found[f"numbers demo {name}"] = lambda knobs=knobs: measure(
            override(miniature(demo()) if bench.tiny else demo(), {"train": many | knobs})
        )
    found["checkpointing"] = lambda: checkpointing(bench, short)
    half = gpt2_124m(bench, **short, compile=False).with_(train=TrainConfig(**short | {"steps": 50}, compile=False))
    found["resume"] = lambda: measure(half, then=gpt2_124m(bench, **short))
    if bench.texts is not None:
        for name in ("compiled", "eager"):
            found[f"characters {name}"] = lambda name=name: measure(characters(bench, compile=name == "compiled"))
        for minutes in (0.02,) if bench.tiny else (0.1, 0.25, 1.0):
            found[f"dial characters {minutes}"] = lambda minutes=minutes: by_the_dial(
                bench,
                minutes,
                data=str((bench.texts or Path()) / "tinyshakespeare.txt"),
                tokenizer={"kind": "char"},
            )
        ranks = {"tokenizer": {"ranks_file": str(bench.texts / "r50k_base.tiktoken")}}
        text = {"data": str(bench.texts / "tinyshakespeare.txt")}
        runs = {
            "shakespeare-124m": override(shakespeare_124m(), ranks, text),
            "pile-2b": override(
                pile_2b(), ranks, {"data": "python-stdlib", "train": {"steps": 50, "eval_every_steps": 50}}
            ),
        }
        for name, config in runs.items():
            found[name] = lambda name=name, config=config: measure(
                miniature(config) if bench.tiny else config, saving=name != "pile-2b"
            )
    if bench.peer is not None and bench.texts is not None and (bench.peer / "train.py").is_file():
        found["characters nanogpt"] = lambda: nanogpt_on_characters(bench)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, after every case")
    parser.add_argument("--texts", type=Path, help="tinyshakespeare.txt and r50k_base.tiktoken, for runs on real text")
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--only", default="", help="cases whose name begins with one of these, between commas")
    parser.add_argument("--tiny", action="store_true", help="try the script itself, on any machine")
    given = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    figures: dict[str, Any] = {"device": device, "torch": torch.__version__, "cases": {}}
    bench = Bench(given.texts and given.texts.resolve(), given.peer and given.peer.resolve(), given.tiny)
    chosen = {
        name: each for name, each in cases(bench, given.out).items() if name.startswith(tuple(given.only.split(",")))
    }
    for name, act in chosen.items():
        print(f"\n== {name}", flush=True)
        try:
            figures["cases"][name] = act()
        except Exception as error:  # one case that fails must not lose the others' figures
            figures["cases"][name] = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        print(json.dumps(figures["cases"][name]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
