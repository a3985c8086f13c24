"""Several processes at one run: the same weights as of one, and what happens to one of them happens to all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from effort import long
from hornbook.base.files import damage
from hornbook.base.machine import choose_machine
from hornbook.model.folder import load_model
from hornbook.train.sums import PairwiseSum, in_pairs, shares

pytestmark = pytest.mark.xdist_group("worlds")
Told = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory, some_text: str) -> Told:
    """What happened in worlds of 1, 2 and 4 ranks; see worlds.py."""
    return what_happened(tmp_path_factory.mktemp("worlds"), some_text)


def what_happened(folder: Path, text: str, *more: str) -> Told:
    (folder / "text.txt").write_text(text[:20_000])
    program = [sys.executable, str(Path(worlds.__file__)), str(folder / "text.txt"), str(folder), *more]
    ended = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-3000:]
    result: Told = json.loads((folder / "told.json").read_text())
    return result


@given(terms=st.integers(1, 70), ranks=st.sampled_from([1, 2, 3, 4, 5, 8]))
def test_each_term_has_one_rank_and_ranks_without_any_come_last(terms: int, ranks: int) -> None:
    given_out = shares(terms, ranks)
    assert len(given_out) == ranks
    assert [term for share in given_out for term in share] == list(range(terms))
    if ranks in (1, 2, 4, 8):
        assert sorted(given_out, key=len, reverse=True) == given_out


@given(
    numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    ranks=st.sampled_from([1, 2, 4, 8]),
)
def test_a_sum_is_the_same_to_the_last_bit_on_any_number_of_ranks(numbers: list[float], ranks: int) -> None:
    def summed(share: range) -> torch.Tensor:
        tree = PairwiseSum()
        for place in share[::2]:  # a pair at a time, as the learner adds them
            pair = torch.tensor(numbers[place])
            if place + 1 in share:
                pair = pair + torch.tensor(numbers[place + 1])
            tree.add([pair])
        return tree.total()[0]

    alone = summed(range(len(numbers)))
    together = in_pairs([summed(share) for share in shares(len(numbers), ranks) if share])
    assert torch.equal(alone, together)
    exact = sum(map(Fraction, numbers))
    assert abs(Fraction(alone.item()) - exact) <= Fraction(2**-23) * 7 * sum(abs(Fraction(each)) for each in numbers)


@pytest.mark.parametrize(("ranks", "how"), [("2", "same"), ("4", "same"), ("4", "sharded"), ("1", "sharded_alone")])
@pytest.mark.parametrize("name", worlds.SAME)
def test_the_weights_are_those_of_one_process(told: Told, name: str, ranks: str, how: str) -> None:
    digest, losses = told["1"]["same"][0][name]
    learned = [each["loss"] for each in losses if each["loss"] is not None]
    assert learned[-1] < learned[0]
    if how == "sharded_alone" and name != "muon":
        return
    for each in told[ranks][how]:
        assert each[name] == [digest, losses]


def test_a_run_goes_on_with_another_number_of_processes_as_if_nothing_had_happened(told: Told) -> None:
    moved_on, in_one = told["1"]["moved on"]
    assert moved_on == in_one


def test_the_best_model_is_scored_in_the_end_however_it_is_held(told: Told) -> None:
    """And not half of it, half of the newest."""
    of_one, (step, loss) = told["1"]["best_before"][0], told["1"]["best_before"][0][0]
    assert step == 1
    assert of_one[1] == [step, pytest.approx(loss, rel=1e-6)]
    for ranks in ("2", "4"):
        for replicas, slices in told[ranks]["best_before"]:
            assert [replicas, slices] == [[step, pytest.approx(loss, rel=1e-6)]] * 2


def test_a_head_start_is_the_first_ones_where_others_compute_otherwise(told: Told) -> None:
    assert [each[0] for each in told["2"]["other_processors"]] == [told["1"]["same"][0]["muon"][0]] * 2


def test_gradients_that_overflow_on_one_rank_are_left_out_on_all(told: Told) -> None:
    taken, left_out = [True, 2.0**16], [False, 2.0**15]
    assert told["2"]["overflow"] == [[taken, taken, left_out, [True, 2.0**15]]] * 2


@pytest.mark.parametrize(
    ("ranks", "how", "at_once"),
    [("2", "out_of_memory", [2, 2, 1, 1]), ("4", "sharded_out_of_memory", [2, 2, 2, 1])],
)
def test_memory_that_runs_out_on_one_rank_halves_the_micro_batch_on_all(
    told: Told, ranks: str, how: str, at_once: list[int]
) -> None:
    assert told[ranks][how] == [at_once] * int(ranks)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(told: Told) -> None:
    assert told["2"]["asked_to_stop"] == [["interrupted", 3]] * 2


def test_a_full_disk_of_the_first_ends_all_and_hurts_nothing(told: Told) -> None:
    first, *others = told["2"]["full_disk"]
    for (kind, mistake), whole, afterwards in [first, *others]:
        assert kind == ("MachineError" if [[kind, mistake], whole, afterwards] == first else "ToldElsewhereError")
        assert "full" in mistake
        assert whole == ["step-00000002"]
        assert afterwards == ["done", worlds.STEPS]


def test_a_full_disk_of_another_ends_all_too(told: Told) -> None:
    for (kind, mistake), whole, afterwards, taken in told["2"]["full_disk_of_another"]:
        assert taken == told["2"]["full_disk_of_another"][0][3]
        assert kind in ("MachineError", "ToldElsewhereError")
        assert "rank 1" in mistake
        assert "full" in mistake
        assert whole == ["step-00000002"]
        assert afterwards == ["done", worlds.STEPS]


def test_a_checkpoint_that_all_write_is_what_transformers_opens(told: Told) -> None:
    folder = Path(told["2"]["in_parts"][0])
    assert len(list(folder.glob("model-0000?-of-00002.safetensors"))) == 2
    assert damage(folder) is None
    ids = torch.arange(32)[None] * 7 % 257
    ours, theirs = load_model(folder), AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.allclose(ours.logits(ids), theirs(ids).logits, atol=2e-5)


def test_who_is_left_alone_is_told_who_is_missing(told: Told) -> None:
    (left, _) = told["2"]["lost"]
    assert "rank 1 on" in left[0]
    assert "hornbook resume" in left[0]


@long
def test_whatever_befalls_a_random_rank_all_do_the_same_at_the_same_step(tmp_path: Path, some_text: str) -> None:
    for name, times in what_happened(tmp_path, some_text, "20").items():
        assert len(times) == 20
        for each in times:
            before, after = each["step"] - 1, worlds.STEPS - each["step"]
            expected: dict[str, Any] = {
                "SIGTERM": ["interrupted" if after else "done", each["step"]],
                "NaN": [[True, 1.0]] * before + [[False, 1.0]] + [[True, 1.0]] * after,
                "overflow": [[True, 2.0**16]] * before + [[False, 2.0**15]] + [[True, 2.0**15]] * after,
                "out of memory": [2] * before + [1] * (after + 1),
            }
            if name != "ENOSPC":
                assert each["did"] == [expected[name]] * each["ranks"], each
                continue
            for (kind, mistake), whole, afterwards, taken in each["did"]:
                assert kind in ("MachineError", "ToldElsewhereError")
                assert f"rank {each['rank']}" in mistake
                assert (whole, afterwards) == (["step-00000002"], ["done", worlds.STEPS])
                assert taken == each["did"][0][3], each


@long
def test_slices_compiled_block_by_block_are_the_same_on_any_number_of_ranks(tmp_path: Path, some_text: str) -> None:
    if not choose_machine("cpu").can_compile:
        pytest.skip("no C++ compiler on this machine")
    told = what_happened(tmp_path, some_text, "compiled")
    ((digest, losses),) = told["1"]["compiled"]
    assert told["2"]["compiled"] == [[digest, losses]] * 2
    ((eager, as_eager),) = told["1"]["eager"]
    assert digest != eager, "it was not compiled"
    for one, other in zip(losses, as_eager, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
