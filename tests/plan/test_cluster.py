"""What is told of a run on machines that are not here, beside what was published of runs on them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from effort import examples
from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.model.config import modern
from hornbook.model.init import outline
from hornbook.plan.at_scale import AtScale, fits, grown, least, splits
from hornbook.plan.cluster import Cluster, Keeping, bytes_a_second, cluster_of
from hornbook.plan.counted import Counted, newton_schulz_flops
from hornbook.plan.gpus import gpu_named
from hornbook.plan.sizes import TORCH_TYPES
from hornbook.plan.split import Split
from hornbook.recipes import RECIPES
from hornbook.train.config import OptimConfig, RunConfig, TrainConfig
from hornbook.train.memory import training_memory
from hornbook.train.muon import QUINTICS
from hornbook.train.optim import grouped

THOUSAND = ["--gpus", "1024", "--gpu", "H100", "--network", "400Gb"]
BF16 = TORCH_TYPES["bfloat16"]


def llama_8b(gpus: int, **optim: Any) -> Counted:
    """With two sequences of 8,192 tokens for each GPU, as torchtitan trained it."""
    model = modern(
        vocab_size=128_256,
        context=8192,
        n_layer=32,
        n_head=32,
        n_kv_head=8,
        n_embd=4096,
        mlp_width=14_336,
        qk_norm="none",
    )
    train = TrainConfig(tokens=10**12, batch_tokens=gpus * 2 * 8192)
    return Counted(RunConfig(model=model, optim=OptimConfig(**{"kind": "adamw"} | optim), train=train), BF16)


def h100(gpus: int, **words: Any) -> Cluster:
    return cluster_of(gpus, "H100", network="400Gb" if gpus > 8 else None, **words)


@pytest.fixture(scope="module")
def eight_billion() -> AtScale:
    return AtScale(llama_8b(1024), h100(1024), 2048)


# What was published


@pytest.mark.parametrize(("on_8", "on_128"), [(5762, 5605), (6667, 6514)], ids=["eager", "compiled"])
def test_torchtitan_on_128_gpus_is_foretold_from_its_run_on_8(on_8: float, on_128: float) -> None:
    """Its record of December 2024: FSDP of Llama 3.1 8B, two sequences a GPU, in tokens a second and GPU."""
    alone = Split(llama_8b(8), h100(8), 8, 2)
    share = alone.flops / (alone.peak * (2 * 8192 / on_8 - alone.exposed))
    told = [Split(llama_8b(gpus), h100(gpus, share_of_peak=share), gpus, 2).tokens_a_second / gpus for gpus in (8, 128)]
    assert told[0] == pytest.approx(on_8)
    assert told[1] == pytest.approx(on_128, rel=0.015)


def test_torchtitan_on_128_gpus_holds_as_much_less_as_it_measured() -> None:
    """77.0 and 62.0 GiB compiled, 82.4 and 67.0 eager: state that is cut in 128 rather than in 8."""
    few, many = (Split(llama_8b(gpus), h100(gpus), gpus, 2).memory.bytes for gpus in (8, 128))
    assert (few - many) / 2**30 == pytest.approx(15.2, rel=0.1)


def test_llama_405b_gets_on_as_much_of_the_time_as_was_published() -> None:
    """419 failures in 54 days on 16,384 GPUs, with a store of 2 TB/s: "more than 90%"."""
    cluster = h100(16_384)
    assert cluster.failures_a_day == pytest.approx(419 / 54)
    assert cluster.store == pytest.approx(2e12, rel=0.03)
    assert Keeping(cluster, 12 * 405_853_388_800).goodput == pytest.approx(0.917, abs=5e-4)


# By hand


@pytest.mark.parametrize(("shards", "seconds"), [(1024, 2.39), (64, 1.65)])
def test_latency_is_why_not_to_shard_over_all(shards: int, seconds: float) -> None:
    """8 bytes of 8.03e9 parameters at 40 GB/s are 1.6 s; 3 x 32 rings of 1,023 hops of 8 us 0.79 s, of 63 hops 0.05."""
    split = Split(llama_8b(1024), h100(1024), shards, 2)
    assert split.communication == pytest.approx(seconds, rel=0.005)
    sent = 8 * 8_030_261_248 * (shards - 1) / shards
    assert split.wire[0] == pytest.approx(sent)
    assert split.wire[1] == pytest.approx(8 * 8_030_261_248 / shards * (1 - shards / 1024))
    assert split.wire[2] == 0
    assert split.compute == pytest.approx(16_384 * (6 * 7.505e9 + 12 * 32 * 4096 * 8192) / (0.4 * 989e12), rel=1e-3)


def test_muon_is_quick_where_its_matrices_are_shared_out() -> None:
    counted = llama_8b(1024, kind="muon")
    by_hand = (
        32 * 5 * (2 * 6 * 4096**3 + 2 * (4 * 1024**2 * 4096 + 2 * 1024**3) + 3 * (4 * 4096**2 * 14_336 + 2 * 4096**3))
    )
    assert counted.muon_flops[0] == pytest.approx(by_hand * len(QUINTICS) / 5)
    assert by_hand == pytest.approx(666e12, rel=0.001)
    assert newton_schulz_flops(4096, 4096) == 6 * len(QUINTICS) * 4096**3
    exchanged = Split(counted, h100(1024), 64, 2).wire[2]
    assert exchanged == pytest.approx(8 * 32 * (4096**2 * 2.5 + 3 * 4096 * 14_336) / 64)
    assert Split(counted, h100(1024), 64, 2).muon == pytest.approx(0.0158 + exchanged / 40e9, rel=0.01)


@pytest.mark.parametrize("numbers", ["bfloat16", "float32"])
def test_one_of_one_holds_what_a_gpu_alone_does(numbers: str) -> None:
    run = RunConfig(
        model=modern(vocab_size=50_304, n_layer=12, n_embd=768, n_head=12, context=1024),
        train=TrainConfig(steps=1, batch_tokens=16 * 1024),
    )
    dtype = TORCH_TYPES[numbers]
    alone = training_memory(run, outline(run.model), 4, dtype, "cuda").bytes
    assert Split(Counted(run, dtype), h100(1), 1, 4, False).memory.bytes == pytest.approx(alone, rel=0.05)
    shared = Split(Counted(run, dtype), h100(2), 1, 4, False).memory
    assert [part.arithmetic[-3:] for part in shared.held][1:] == ["/ 2"] * (len(shared.held) - 1), "the optimizer's"


ODD = {"n_layer": 5, "value_embeddings": True, "embedding_skip": True, "embedding_norm": True, "bigram_embeddings": 9}


@pytest.mark.parametrize("name", [*RECIPES, "odd"])
def test_two_layers_stand_for_all(name: str) -> None:
    run = RunConfig(model=modern(**ODD), train=TrainConfig(steps=1)) if name == "odd" else RECIPES[name]()
    run = run.with_(model={"vocab_size": run.model.vocab_size or 1000})
    counted, whole = Counted(run, BF16), outline(run.model)
    by_rule: dict[str, Counter[Any]] = {}
    for group, named in grouped(whole, run.optim).items():
        by_rule.setdefault(group.rule, Counter()).update(parameter.shape for parameter in named.values())
    assert counted.shapes == by_rule
    assert counted.parameters == sum(parameter.numel() for parameter in whole.parameters())
    assert counted.block == pytest.approx(sum(each.numel() for each in whole.blocks[0].parameters()), abs=1)


# Words


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        *(
            (words, 5e10)
            for words in ("400Gb", "400 Gb/s", "400Gbps", "400gbit", "400 Gbits/s", "0.4Tb", "50GB", "50GB/s")
        ),
        *((words, 2e12) for words in ("2TB", "2 TBps", "2 Tbytes/s", "16Tb/s")),
        ("8b", 1),
        ("100MB/s", 1e8),
    ],
)
def test_a_rate_is_in_bits_or_in_bytes(words: str, rate: float) -> None:
    assert bytes_a_second(words, "--network") == pytest.approx(rate)


@pytest.mark.parametrize("words", ["400", "400G", "Gb", "-1Gb", "0Gb", "4e2Gb", "400Gb/m", "400GiB", ""])
def test_what_is_no_rate_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="should be a rate, in bits or in bytes a second: 400Gb, or 50GB"):
        bytes_a_second(words, "--network")


def test_gpus_are_found_as_they_are_called() -> None:
    assert [gpu_named(name).name for name in ("h100", "A100-80GB", "a100 40", "rtx4090", "V100")] == [
        *("H100", "A100 80 GB", "A100 40 GB", "RTX 4090", "V100"),
    ]


@pytest.mark.parametrize(
    ("gpus", "hosts", "a_host"), [(8, 1, 8), (6, 1, 6), (1024, 128, 8), (12, 2, 6), (17, 17, 1), (20, 4, 5)]
)
def test_hosts_are_alike(gpus: int, hosts: int, a_host: int) -> None:
    cluster = cluster_of(gpus, "H100", network="400Gb")
    assert (cluster.hosts, cluster.gpus_a_host, cluster.network is None) == (hosts, a_host, hosts == 1)
    assert cluster_of(gpus, "H100", hosts=gpus, network="10Gb").gpus_a_host == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--gpu H100", "a cluster needs --gpus as well"),
        ("--gpus 8", "a cluster needs --gpu as well"),
        ("--network 10Gb", "a cluster needs --gpus as well"),
        ("--gpus 0 --gpu H100", "should be 1 or more"),
        ("--gpus many --gpu H100", "invalid int value"),
        ("--gpus 16 --gpu H100", "say how fast each GPU reaches the other hosts: --network 400Gb"),
        ("--gpus 16 --gpu H100 --hosts 3 --network 1Gb", "not the same number in each"),
        ("--gpus 8 --gpu A100", "which of them? A100 40 GB, A100 80 GB"),
        ("--gpus 8 --gpu abacus", "not in the table"),
        ("--gpus 8 --gpu H100 --share-of-peak 40", "at most 1"),
        ("--gpus 8 --gpu H100 --restart-minutes -1", "0 or more"),
        ("--gpus 8 --gpu H100 --model.depth 3", "--model.depth"),
        ("--gpus 8 --gpu H100 --model.vocab-size auto --tokenizer.kind bpe", "--tokenizer.vocab-size"),
        ("--gpus 1 --gpu T4 --model.n-layer 400 --model.n-embd 4096 --model.n-head 32", "hold it"),
        ("--gpus 1 --gpu T4 --model.n-embd 900000 --model.n-head 2", "a smaller model"),
    ],
)
def test_a_mistake_is_one_line(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "gpt2", *words.split()]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert len(error) <= len("error: ") + 201


# What is printed


EXPONENT = {"T": 12, "G": 9, "M": 6, "k": 3}


def value_of(formula: str) -> float | None:
    """Of arithmetic as it is printed, where it is all numbers."""
    for words, number in (
        ("GB/s", "*1e9"),
        ("TB/s", "*1e12"),
        ("GB", "*1e9"),
        ("MB", "*1e6"),
        ("kB", "*1e3"),
        ("us", "*1e-6"),
    ):
        formula = re.sub(rf"(?<=[\d.]) {words}(?![\w/])", number, formula)
    formula = re.sub(r"(?<=\d)([TGMk])\b", lambda found: f"*1e{EXPONENT[found[1]]}", formula)
    formula = re.sub(r"log2 ([\d,]+)", lambda found: str(log2(int(found[1].replace(",", "")))), formula)
    formula = re.sub(r"\b(tokens|FLOPs|days)\b", "", formula.replace(",", "")).replace("x", "*")
    # a quantity is one number
    formula = re.sub(r"([\d.]+\*1e-?\d+)", r"(\1)", formula)
    return float(eval(formula)) if re.fullmatch(r"[\d.e()*/+ -]+", formula) else None


def test_the_formulas_give_the_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = llama_8b(1024, kind="muon").run
    path = tmp_path / "8b.json"
    tree = run.model_dump(mode="json", exclude_unset=True) | {"recipe": "demo"}
    path.write_text(json.dumps(tree | {"tokenizer": {"kind": "bpe", "vocab_size": 128_256}}))
    words = ["plan", str(path), *THOUSAND]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    numbers = {name: value_of(quantity["formula"]) for name, quantity in facts["quantities"].items()}
    reckoned = [name for name, number in numbers.items() if number is not None]
    assert {"compute", "among shards", "save C", "stall", "failures a day", "Muon", "weights, fp32"} <= set(reckoned)
    for name in reckoned:
        assert facts["quantities"][name]["value"] == pytest.approx(numbers[name], rel=0.006), name
    for part in facts["memory"]["held"]:
        assert value_of(part["arithmetic"]) == pytest.approx(part["bytes"], abs=1)
    assert facts["quantities"]["goodput"]["value"] > 0.99
    cheapest = [split for split in facts["splits"] if split["cheapest"]]
    assert [cheapest[0]["step_seconds"], cheapest[0]["mfu"]] == [
        facts["quantities"][name]["value"] for name in ("step", "MFU")
    ]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100
    for name, quantity in facts["quantities"].items():
        assert re.search(rf"^ *{re.escape(name)} +{re.escape(quantity['formula'])} ", told, re.MULTILINE), name
    assert f"{cheapest[0]['shards']} x {cheapest[0]['replicas']} *" in told


def test_a_batch_is_not_smaller_than_the_cluster_and_one_host_needs_no_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["plan", "demo", "--gpus", "8", *THOUSAND[2:], "--hosts", "1", "--train.batch-tokens", "512"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "2 sequences are fewer than the GPUs, so planned with --train.batch-tokens 2048" in told.out
    assert "all 8 GPUs are in one host" in told.err


# Laws


@pytest.mark.parametrize("sequences", [1, 2, 3, 5, 6, 8])
def test_any_number_of_sequences_may_be_computed_one_at_a_time(sequences: int) -> None:
    model = llama_8b(8)
    train = model.run.train.with_(batch_tokens=8 * sequences * 8192)
    model = replace(model, run=model.run.with_(train=train.model_dump()))
    at_once = {split.at_once for split in splits(model, h100(8))}
    assert {1, sequences} <= at_once <= set(range(1, sequences + 1))


def test_what_is_cheapest_is_quick_and_fits(eight_billion: AtScale) -> None:
    found = [split for split in splits(eight_billion.model, eight_billion.cluster) if fits(split)]
    assert {split.shards for split in eight_billion.fitting} == {split.shards for split in found}
    assert eight_billion.split.seconds <= 1.01 * min(split.seconds for split in found)
    quicker = [split for split in found if split.seconds <= eight_billion.split.seconds]
    assert eight_billion.split.communication == min(split.communication for split in quicker)
    assert 2 not in {split.shards for split in found}, "16 bytes of 8e9 parameters, halved, are 64 GB"


def test_the_largest_model_fits_and_a_larger_does_not(eight_billion: AtScale) -> None:
    largest = eight_billion.largest
    assert largest is not None
    assert (largest.n_embd / largest.n_layer, largest.n_head / largest.kv_heads) == (128, 4)
    larger = grown(largest, largest.kv_heads + 1)
    assert larger is not None
    held = [
        fits(
            least(
                replace(eight_billion.model, run=eight_billion.model.run.with_(model=each.model_dump())),
                eight_billion.cluster,
            )
        )
        for each in (largest, larger)
    ]
    assert held == [True, False]


models = some.builds(
    lambda layers, heads, vocabulary, kind: Counted(
        RunConfig(
            model=modern(n_layer=layers, n_head=heads, n_embd=64 * heads, vocab_size=vocabulary, context=256),
            optim=OptimConfig(kind=kind),
            train=TrainConfig(steps=1, batch_tokens=2**20),
        ),
        BF16,
    ),
    some.integers(1, 40),
    some.integers(1, 64),
    some.integers(100, 200_000),
    some.sampled_from(["muon", "adamw", "lion", "sgd"]),
)
rates = some.floats(1, 1000).map(lambda gigabits: f"{gigabits:.3f}Gb")


@examples(1000)
@given(models, some.sampled_from([2**power for power in range(10)]), rates)
def test_more_gpus_never_hold_more_each_and_together_hold_everything(model: Counted, gpus: int, network: str) -> None:
    few, more = (cluster_of(each, "A100-40GB", hosts=1, network=network) for each in (gpus, 2 * gpus))
    one, half = least(model, few).memory, least(model, more).memory
    assert half.bytes <= one.bytes
    assert half.held_bytes <= one.held_bytes
    assert 2 * gpus * half.held_bytes >= 4 * model.parameters + sum(part.bytes for part in model.remembered)


@examples(1000)
@given(models, some.sampled_from([1, 2, 4, 8, 16, 64]), some.sampled_from([1, 2, 8]), rates, some.floats(1, 4))
def test_a_better_cluster_is_never_slower(
    model: Counted, shards: int, replicas: int, network: str, times: float
) -> None:
    cluster = cluster_of(shards * replicas, "H100", hosts=shards * replicas, network=network)
    better = [
        replace(cluster, network=(cluster.network or 0) * times),
        replace(cluster, share_of_peak=cluster.share_of_peak * times / 4 + 0.3),
    ]
    before = Split(model, cluster, shards, 1)
    for each in better:
        assert Split(model, each, shards, 1).seconds <= before.seconds * (1 + 1e-9)
    assert before.seconds >= max(before.compute, before.communication)
    assert before.mfu <= cluster.share_of_peak * (1 + 1e-9)


@examples(1000)
@given(some.integers(1, 2**17), some.floats(1e9, 1e14), some.floats(1e8, 1e13), some.floats(0, 600))
def test_more_gpus_and_longer_restarts_lose_more(gpus: int, size: float, store: float, minutes: float) -> None:
    def goodput(gpus: int, minutes: float) -> float:
        cluster = cluster_of(gpus, "H100", hosts=1, restart_minutes=minutes)
        return Keeping(replace(cluster, store=store), int(size)).goodput

    assert 0 <= goodput(2 * gpus, minutes) <= goodput(gpus, minutes) + 1e-12 <= 1 + 1e-12
    assert goodput(gpus, 2 * minutes) <= goodput(gpus, minutes)


@examples(1000)
@given(some.floats(1e9, 1e13), some.integers(1, 2**14), some.floats(0.2, 5))
def test_no_other_interval_is_better(size: float, gpus: int, times: float) -> None:
    """Young's, of which the losses are stall / t + t / 2M; but not before the last checkpoint is written."""
    keeping = Keeping(cluster_of(gpus, "H100", hosts=1, store="1PB"), int(size))
    between, t = keeping.cluster.seconds_between_failures, keeping.interval
    lost = [keeping.stall / each + each / 2 / between for each in (t, t * times)]
    if t > keeping.seconds:
        assert lost[0] <= lost[1] + 1e-12
