"""A plan for a cluster, in words and as a dictionary.

In: an `AtScale`.  Out: the splits that its GPUs hold, beside one another; of the cheapest, each quantity with the
formula and the numbers that it comes from; the largest model; and what was taken for granted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hornbook.base.console import count, duration, paragraphs, say, table
from hornbook.plan import cluster as granted
from hornbook.plan.at_scale import AtScale, room
from hornbook.plan.gpus import GB, SECONDS_OF_A_DAY
from hornbook.plan.sizes import memory_as_dict, size_in_words
from hornbook.plan.split import Split
from hornbook.train.memory import FP32, NAMES, Share

CHEAPEST, GATHERED_AGAIN, FRUGAL = "*", "+", "c"


@dataclass(frozen=True)
class Line:
    """A quantity, how it is reckoned, and what it is, in bytes, seconds or as it is."""

    name: str
    formula: str
    number: float
    words: str

    @classmethod
    def of_seconds(cls, name: str, formula: str, seconds: float) -> Line:
        return cls(name, formula, seconds, seconds_in_words(seconds))


def as_dict(plan: AtScale) -> dict[str, Any]:
    cluster, model, split, largest = plan.cluster, plan.model, plan.split, plan.largest
    return {
        "recipe": model.run.recipe,
        "parameters": model.parameters,
        "numbers": NAMES[model.dtype],
        "batch_sequences": model.run.sequences,
        "batch_sequences_asked": plan.sequences_asked,
        "window": model.run.window,
        "cluster": {
            "gpus": cluster.gpus,
            "gpu": cluster.gpu.name,
            "hosts": cluster.hosts,
            "network_bytes_per_second": cluster.network,
            "link_bytes_per_second": cluster.gpu.link * GB,
            "store_bytes_per_second": cluster.store,
            "restart_minutes": cluster.restart_minutes,
            "share_of_peak": cluster.share_of_peak,
        },
        "splits": [_split_as_dict(each) | {"cheapest": each == split} for each in plan.fitting],
        "memory": memory_as_dict(split.memory),
        "quantities": {line.name.strip(): {"value": line.number, "formula": line.formula} for line in lines(plan)},
        "largest": largest and {"parameters": largest.n_params(), "config": largest.model_dump()},
        "assumptions": list(assumptions(plan)),
    }


def _split_as_dict(split: Split) -> dict[str, Any]:
    return {
        "shards": split.shards,
        "replicas": split.replicas,
        "micro_batch": split.at_once,
        "rounds": split.rounds,
        "blocks_gathered_again": split.gathers_again,
        "activation_checkpointing": split.checkpoints_activations,
        "memory_bytes": split.memory.bytes,
        "wire_bytes": round(sum(split.wire)),
        "step_seconds": split.seconds,
        "tokens_per_second": split.tokens_a_second,
        "mfu": split.mfu,
    }


def show(plan: AtScale) -> None:
    cluster, model, run, cheapest = plan.cluster, plan.model, plan.model.run, plan.split
    config = run.model
    hosts = "one host" if cluster.hosts == 1 else f"{cluster.hosts:,} hosts of {cluster.gpus_a_host}"
    say(
        f"{run.recipe}: {model.parameters:,} parameters ({config.n_layer} layers of width {config.n_embd:,}), in "
        f"{NAMES[model.dtype]} with {run.optim.kind}\non {cluster.gpus:,} {cluster.gpu.name} in {hosts}, "
        f"{run.sequences:,} x {run.window:,} = {run.sequences * run.window:,} tokens a step"
    )
    if plan.sequences_asked < run.sequences:
        say(
            f"its own {plan.sequences_asked:,} sequences are fewer than the GPUs, so planned with "
            f"--train.batch-tokens {run.sequences * run.window}"
        )
    say()
    headings = ("shards x replicas", "at once", "each holds", "sends a step", "step", "tokens/s", "MFU")
    table(headings, [_row(split, split == cheapest) for split in plan.fitting], right=(1, 2, 3, 4, 5, 6))
    say(f"{CHEAPEST} the cheapest: the quickest, and among those within 1% of it what communicates least")
    if any(split.gathers_again for split in plan.fitting):
        say(f"{GATHERED_AGAIN} blocks are given back after forwards and gathered again backwards")
    if any(split.checkpoints_activations for split in plan.fitting):
        say(f"{FRUGAL} with activation checkpointing")
    say()
    table(
        ("of the cheapest", "formula", ""), [(line.name, line.formula, line.words) for line in lines(plan)], right=(2,)
    )
    say("\nTaken for granted")
    for assumption in assumptions(plan):
        paragraphs(f"- {assumption}")


def _row(split: Split, is_cheapest: bool) -> tuple[str, ...]:
    signs = CHEAPEST * is_cheapest + GATHERED_AGAIN * split.gathers_again + FRUGAL * split.checkpoints_activations
    return (
        f"{split.shards:,} x {split.replicas:,} {signs}".rstrip(),
        f"{split.rounds} x {split.at_once}" if split.rounds > 1 else str(split.at_once),
        size_in_words(split.memory.bytes),
        size_in_words(round(sum(split.wire))),
        seconds_in_words(split.seconds),
        count(split.tokens_a_second),
        f"{split.mfu:.1%}",
    )


def lines(plan: AtScale) -> Iterator[Line]:
    yield from _of_memory(plan.split)
    yield from _of_wire(plan.split)
    yield from _of_step(plan.split)
    yield from _of_keeping(plan)
    if (seconds := plan.seconds) is not None and plan.tokens is not None:
        formula = f"{count(plan.tokens)} tokens / tokens a second / goodput"
        yield Line.of_seconds("the run", formula, seconds)
    if (largest := plan.largest) is not None:
        shape = f"{largest.n_layer} layers of width {largest.n_embd:,}"
        shape += f", in {plan.cluster.gpus:,} shards" if plan.cluster.gpus > 1 else ""
        size = largest.n_params()
        yield Line("largest model of this shape", shape, size, count(size))


def _of_memory(split: Split) -> Iterator[Line]:
    memory = split.memory
    yield Line(
        "memory of a GPU",
        f"of {room(split.cluster) / GB:g} GB that are filled",
        memory.bytes,
        size_in_words(memory.bytes),
    )
    for part in (*memory.held, *memory.fullest.parts):
        yield Line(f"  {part.what}", _in_short(part), part.bytes, size_in_words(part.bytes))


def _in_short(part: Share) -> str:
    """Its arithmetic; of what grows with the tokens, how many bytes that is for each."""
    tokens, of_each, _ = part.arithmetic.partition(" tokens x ")
    if of_each:
        return f"{tokens} tokens x {size_in_words(round(part.bytes / int(tokens.replace(',', ''))))}"
    return re.sub(r"\d[\d,]{8,}", lambda found: count(int(found[0].replace(",", ""))), part.arithmetic)


def _of_wire(split: Split) -> Iterator[Line]:
    shards, replicas, model = split.shards, split.replicas, split.model
    p, gathered = count(model.parameters), f"{split.times_gathered} x {model.dtype.itemsize}"
    formulas = {
        "  among shards": f"{split.rounds} x ({gathered} + {FP32}) x {p} x {shards - 1:,} / {shards:,}",
        "  among replicas": f"2 x {FP32} x {p} / {shards:,} x {replicas - 1:,} / {replicas:,}",
        "  matrices to owners and back": f"2 x {FP32} x {count(model.in_matrices)} / {shards:,}",
    }
    sent = sum(split.wire)
    if not sent:
        return
    yield Line("bytes on the wire, a GPU", "sent in a step", sent, size_in_words(round(sent)))
    for (name, formula), each in zip(formulas.items(), split.wire, strict=True):
        if each:
            yield Line(name, formula, each, size_in_words(round(each)))


def _of_step(split: Split) -> Iterator[Line]:
    model, cluster, run = split.model, split.cluster, split.model.run
    layers, latency = model.layers, f"{1e6 * granted.LATENCY:g} us"
    late = " + late" if split.late else ""
    whole = f"max(compute{late}, communication) + exposed" if cluster.gpus > 1 else "compute"
    yield Line.of_seconds("step", whole + (" + Muon" if model.in_matrices else ""), split.seconds)
    again = "4/3 x " if split.checkpoints_activations else ""
    each = count(run.model.flops_per_token(run.window))
    tokens = f"{split.sequences * run.window:,} tokens"
    reached = f"({cluster.share_of_peak:.3g} x {count(split.peak)})"
    yield Line.of_seconds("  compute", f"{again}{tokens} x {each} FLOPs / {reached}", split.compute)
    if split.shards > 1:
        collectives = split.rounds * (split.times_gathered + 1) * layers
        sent = f"{size_in_words(round(split.wire[0]))} / {rate(split.bandwidth)}"
        hops = f"{collectives:,} x {split.shards - 1:,} x {latency}"
        yield Line.of_seconds("  communication, shards", f"{sent} + {hops}", split.among_shards)
    if split.replicas > 1:
        sent = f"{size_in_words(round(split.wire[1]))} / {rate(cluster.throughout)}"
        hops = f"{2 * layers:,} x log2 {split.replicas:,} x {latency}"
        yield Line.of_seconds("  communication, replicas", f"{sent} + {hops}", split.among_replicas)
    if split.late:
        yield Line.of_seconds("  late", f"sums of replicas - 2/3 x compute / {split.rounds}", split.late)
    if cluster.gpus > 1:
        shards = "shards" + (f" / {split.rounds}" if split.rounds > 1 else "")
        waited = " + ".join([shards] * (split.shards > 1) + ["replicas"] * (split.replicas > 1))
        waited = f"({waited})" if " + " in waited else waited
        yield Line.of_seconds("  exposed", f"{waited} / {layers} layers", split.exposed)
    if model.in_matrices:
        exchange = f"{size_in_words(round(split.wire[2]))} / {rate(split.bandwidth)} + " if split.shards > 1 else ""
        products = f"{count(model.muon_flops[0])} FLOPs / {split.owners:,} / {reached}"
        yield Line.of_seconds("  Muon", exchange + products, split.muon)
    yield Line("tokens a second", f"{split.tokens:,} / step", split.tokens_a_second, count(split.tokens_a_second))
    formula = f"tokens a second x {each} / ({cluster.gpus:,} x {count(split.peak)})"
    yield Line("MFU", formula, split.mfu, f"{split.mfu:.1%}")


def _of_keeping(plan: AtScale) -> Iterator[Line]:
    keeping, cluster, model = plan.keeping, plan.cluster, plan.model
    state = f"{keeping.bytes / model.parameters:.3g} x {count(model.parameters)}"
    between = cluster.seconds_between_failures
    yield Line.of_seconds("save C", f"{state} / {rate(cluster.store)}", keeping.seconds)
    yield Line.of_seconds("  stall", f"{state} / {cluster.gpus:,} / {rate(granted.COPY)}", keeping.stall)
    yield Line.of_seconds("  interval t", "max(sqrt(2 x stall x M), C)", keeping.interval)
    formula = f"{cluster.gpus:,} x {granted.FAILED} / {granted.FAILED_OF:,} / {granted.FAILED_IN_DAYS} days"
    yield Line("failures a day", formula, cluster.failures_a_day, f"{cluster.failures_a_day:.2g}")
    yield Line.of_seconds("  between two, M", "a day / failures", between)
    formula = f"1 - stall / t - (t / 2 + C + {cluster.restart_minutes:g} min) / M"
    yield Line("goodput", formula, keeping.goodput, f"{keeping.goodput:.4f}")


def assumptions(plan: AtScale) -> Iterator[str]:
    cluster = plan.cluster
    if cluster.gpus > 1:
        yield (
            f"training takes the line 1 x {cluster.gpus:,} where the model fits, else as many shards as a host has "
            "GPUs, or all; another line is asked for by its shards: --train.parallel 16"
        )
    yield (
        f"a GPU reaches {cluster.share_of_peak:.3g} of its {count(plan.split.peak)} FLOPs a second, with all that is "
        "beside products in a step; the MFU of a run on one host tells it better (--share-of-peak)"
    )
    inside = f"{cluster.gpu.link:g} GB/s to another of its host"
    if cluster.network is not None:
        inside += f" and {rate(cluster.network)} to another host (all of a host's links / its GPUs)"
    hop = f"{1e6 * granted.LATENCY:g} us a hop"
    yield f"it sends {inside}, of which collectives reach {granted.SHARE_OF_LINK}, and {hop}"
    yield f"a run fills {granted.FILLED} of its {cluster.gpu.gigabytes} GB; activations are those of the eager model"
    store = f"{rate(cluster.store)} into the store of checkpoints, all hosts together (--store)"
    yield f"{store}; {rate(granted.COPY)} from a GPU to main memory; all GPUs write, beside training"
    years = granted.FAILED_OF * granted.FAILED_IN_DAYS / granted.FAILED / 365
    yield (
        f"a GPU fails every {years:.1f} years, with all that hangs on it: {granted.FAILED} failures of "
        f"{granted.FAILED_OF:,} H100 in {granted.FAILED_IN_DAYS} days (Llama 3)"
    )
    yield f"from a failure to the next step {cluster.restart_minutes:g} minutes (--restart-minutes)"


def rate(bytes_a_second: float) -> str:
    """As bytes, whichever way it was said."""
    return (
        f"{bytes_a_second / (1000 * GB):.3g} TB/s" if bytes_a_second >= 1000 * GB else f"{bytes_a_second / GB:.3g} GB/s"
    )


def seconds_in_words(seconds: float) -> str:
    """0.026 as 26 ms, and days where hours are too many."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} us"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return (
        duration(seconds) if seconds < 2 * SECONDS_OF_A_DAY else f"{float(f'{seconds / SECONDS_OF_A_DAY:.3g}'):,g} days"
    )
