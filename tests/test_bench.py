"""The commands of bench/, in miniature: they run, name what is not there, and leave a record."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
CEILINGS = {"product float32, GFLOP/s": 100.0, "memory read, GB/s": 20.0}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A command's module, by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def given(module: ModuleType, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.options(parser)
    found = parser.parse_args(words)
    found.tiny, found.ceilings = True, CEILINGS
    return found


def claim(module: ModuleType, **facts: Any) -> Any:
    return module.Claim(**{"row": 4, "what": "a step", "ours": 2.0, "unit": "ms"} | facts)


def test_times_better_goes_by_the_unit(bench: Callable[[str], ModuleType]) -> None:
    measuring = bench("measuring")
    assert claim(measuring, peer=3.0).times == 1.5
    assert claim(measuring, peer=3.0, unit="tokens/s").times == 2.0 / 3.0
    assert claim(measuring, peer=3.0, ratio=1.2).times == 1.2
    assert claim(measuring).times is None


def test_turns_alternate_and_the_first_round_is_not_counted(bench: Callable[[str], ModuleType]) -> None:
    measuring, order = bench("measuring"), []
    lasting = iter([9.0, 9.0, 1.0, 4.0, 2.0, 4.0, 3.0, 3.0])

    def turn(name: str) -> Callable[[], float]:
        return lambda: (order.append(name), next(lasting))[1]

    seconds = measuring.turns({"ours": turn("ours"), "peer": turn("peer")}, rounds=3)
    assert order == ["ours", "peer"] * 4
    assert seconds == {"ours": [1.0, 2.0, 3.0], "peer": [4.0, 4.0, 3.0]}
    assert measuring.medians(seconds) == {"ours": 2.0, "peer": 4.0}
    assert measuring.times_faster(seconds, "ours", "peer") == 2.0


def test_a_record_grows_and_keeps_what_was_written_by_hand(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    measuring = bench("measuring")

    def found(ours: float) -> dict[str, Any]:
        each = vars(claim(measuring, ours=ours, peer=3.0, peer_name="nanoGPT")) | {"times": 3.0 / ours}
        return {"claims": [each], "ceilings": {"before": CEILINGS, "after": CEILINGS}, "passed_over": ["a peer"]}

    measuring.add_to_record(tmp_path, "step", "plain", found(1.0))
    page = tmp_path / "README.md"
    page.write_text("By hand.\n" + page.read_text() + "\nAlso by hand.\n")
    measuring.add_to_record(tmp_path, "step", "plain", found(2.0))
    measuring.add_to_record(tmp_path, "start", "as-it-is", found(4.0))
    text = page.read_text()
    assert text.startswith("By hand.\n")
    assert text.endswith("\nAlso by hand.\n")
    assert "| 4 | a step | plain | nanoGPT 3.000 | 2.000 ms | **1.50** |" in text
    assert "| 4 | a step | as-it-is | nanoGPT 3.000 | 4.000 ms | **0.75** |" in text
    assert "1.000 ms" not in text
    assert "a peer" in text
    assert set(json.loads((tmp_path / "figures.json").read_text())) == {"step", "start"}


@pytest.mark.long
def test_a_command_measures_in_a_child_that_sees_a_plain_processor(tmp_path: Path) -> None:
    words = ["bench/rows.py", "--rows", "5", "--tiny", "--views", "plain", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=BENCH.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [views] = json.loads((tmp_path / "figures.json").read_text()).values()
    found = views["plain"]
    assert found["machine"]["instructions"] in ("AVX2", "DEFAULT", "NO AVX")
    assert found["ceilings"]["before"]["product float32, GFLOP/s"] > 0
    assert {each["row"] for each in found["claims"]} == {4, 5}
    assert any("nanoGPT" in each for each in found["passed_over"])


def test_the_share_of_the_product_is_that_of_the_floating_point_operations(bench: Callable[[str], ModuleType]) -> None:
    step = bench("step")
    shape = step.Shape(12, 12, 768, 1024, 50_257, 4, 256, biases=True)
    # Of the forward pass torch counts the products; backwards there are twice as many.
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hornbook.model.init import outline

    ids = torch.zeros(4, 256, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outline(shape.model).logits(ids)
    share = step.share(shape, "float32", 2.0, CEILINGS)
    assert share == pytest.approx(3 * counter.get_total_flops() / 2.0 / 100e9, rel=0.02)


def test_every_row_has_a_command_that_is_there(bench: Callable[[str], ModuleType]) -> None:
    rows = bench("rows")
    assert {name for name in rows.ROWS if name.isdigit()} == {str(number) for number in range(1, 11)}
    assert all((BENCH / row.words[0]).is_file() for row in rows.ROWS.values())
    usual = dict.fromkeys(rows.ROWS[name] for name in rows.IN_A_QUARTER_OF_AN_HOUR)
    assert len(rows.VIEWS) * sum(row.minutes for row in usual) < 15


def test_nanogpt_reads_a_text_as_its_own_program_prepares_it(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    import pickle

    import numpy as np

    (tmp_path / "text.txt").write_text("abcabcabcz")
    bench("nanogpt").write_characters(tmp_path / "text.txt", tmp_path / "ids")
    read = [np.fromfile(tmp_path / "ids" / name, np.uint16).tolist() for name in ("train.bin", "val.bin")]
    assert read == [[0, 1, 2, 0, 1, 2, 0, 1, 2], [3]]
    assert pickle.loads((tmp_path / "ids" / "meta.pkl").read_bytes())["vocab_size"] == 4


def test_text_to_shards(
    bench: Callable[[str], ModuleType], test_data: Path, some_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = bench("prepare")
    documents = [f"{number}\n{some_text[100 * number : 100 * number + 500]}" for number in range(200)]
    monkeypatch.setattr(prepare, "sources", lambda _: iter(documents))
    words = ("--ranks", str(test_data / "r50k_base.tiktoken"), "--megabytes", "0.1", "--rounds", "1")
    found = prepare.measure(given(prepare, *words, "--cases", "small-files"))
    [claim] = found.claims
    assert claim.row == 9
    assert claim.peer > 0
    assert found.figures["small-files"]["documents_only_ours_only_theirs"] == [0, 0]


def test_speaking(bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = bench("generation")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    words = ("--rounds", "1", "--tokens", "3", "--streams", "2", "--ranks", str(tmp_path / "none"))
    found = generation.measure(given(generation, *words))
    assert "CTranslate2, which is not installed" in found.passed_over
    rates = found.figures["median_tokens_per_second"]
    assert {"hornbook float32 greedy", "hornbook float32 drawn x2", "transformers float32 greedy"} <= set(rates)
    beside = {each.peer_name for each in found.claims if each.what == "one stream, float32, greedy"}
    assert beside == {"transformers float32"}


@pytest.mark.long
def test_learning_and_starting(bench: Callable[[str], ModuleType], test_data: Path) -> None:
    learning, start, dial = bench("learning"), bench("start"), bench("dial")
    found = learning.measure(given(learning, "--rows", "1", "2", "3", "6", "--texts", str(test_data)))
    assert {each.row for each in found.claims} == {1, 2, 3, 6}
    assert any("nanoGPT" in each for each in found.passed_over)
    assert {each.row for each in start.measure(given(start, "--rounds", "1", "--eager-only")).claims} == {10}
    words = ("--texts", "the-verdict.txt", "--minutes", "0.01", "--folder", str(test_data))
    assert {each.row for each in dial.measure(given(dial, *words)).claims} == {7}


@pytest.mark.long
def test_a_soak_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A process of its own, since it forks."""
    tests, bench = Path(__file__).parent, [sys.executable, str(BENCH / "soak.py"), "--out", str(tmp_path / "soak")]
    env = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tests}:{tests / 'train'}"}
    env["OMP_NUM_THREADS"] = "1"
    for kills in ("1", "2"):
        words = ["--kills", kills, "--corruptions", "10", "--failures", "1"]
        said = subprocess.run([*bench, *words], env=env, capture_output=True, text=True, check=True).stdout
        assert " wrong" in said
        assert said.count(", 0 wrong") == 3
    tally = [json.loads(line) for line in (tmp_path / "soak" / "tally.jsonl").read_text().splitlines()]
    assert sum(each["count"] for each in tally if each["kind"] == "corrupt") == 10
    assert sum(each["count"] for each in tally if each["kind"] == "kill") >= 2


def test_a_text_that_is_not_there_is_named(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    learning = bench("learning")
    found = learning.measure(given(learning, "--rows", "1", "--texts", str(tmp_path)))
    assert found.claims == []
    assert "tinyshakespeare.txt" in found.passed_over[0]


def test_a_choice_of_the_recipe_is_told_beside_the_same_seed_as_it_is(bench: Callable[[str], ModuleType]) -> None:
    recipe = bench("recipe")
    bits = {("a", recipe.AS_IT_IS): [2.0, 2.2], ("a", "a cosine"): [2.1, 2.32], ("b", recipe.AS_IT_IS): [1.0, 1.0]}
    runs = [
        {"text": text, "choice": choice, "seed": seed, "bits_per_byte": each}
        for (text, choice), found in bits.items()
        for seed, each in enumerate(found)
    ]
    lines = list(recipe.table(runs, {("a", "a cosine"): 1.5}))
    assert lines[0] == "| | a | b |"
    assert lines[2] == "| as it is | 2.100 ± 0.141 | 1.000 ± 0.000 |"
    assert lines[3] == "| a cosine | +0.110 ± 0.014, 1.50 x |  |"


def test_the_recipe_is_tried_at_the_sizes_of_the_dial_and_trained(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    recipe = bench("recipe")
    (tmp_path / "tinyshakespeare.txt").write_text("To be, or not to be: that is the question.\n" * 400)
    config = recipe.config_for("tiny Shakespeare, characters", tmp_path, 30)
    assert config.tokenizer.kind == "char"
    assert config.train.steps > 100
    assert recipe.config_for("tiny Shakespeare, characters", tmp_path, 15).train.steps < config.train.steps
    told = recipe.trained(recipe.override(config, recipe.CHOICES["a table for values"], {"train": {"steps": 2}}))
    assert told["steps"] == 2
    assert 0 < told["bits_per_byte"] < 8
