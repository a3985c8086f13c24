"""Every recipe's miniature goes all the way in seconds, and is the same run in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hornbook
from hornbook import cli
from hornbook.base import files
from hornbook.infer.speaker import load_speaker
from hornbook.model.folder import load_model, save_model
from hornbook.recipes import RECIPES, compose
from hornbook.runs.folder import resolve
from hornbook.runs.logs import read_log
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

ON_CPU = {"train": {"device": "cpu", "threads": 1}}
AS_IT_WAS = [
    *("activation", "norm", "norm_weight", "positions", "qk_norm", "attention_scale", "out_projection", "biases"),
    *("tied", "dropout", "dropout_at", "init"),
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_miniature_trains_generates_is_saved_and_loads_back(name: str, tmp_path: Path) -> None:
    (tmp_path / "some.mbox").write_text("".join(f"From a\nSubject: {n}\n\nThe letter {n}.\n\n" for n in range(200)))
    mail = {"data": str(tmp_path / "some.mbox")} if name == "letters" else {}  # which nobody can bring but its owner
    config = compose(name, ON_CPU | mail, tiny=True)
    run = tmp_path / "run"
    outcome = fit(config, run)
    assert (outcome.reason, outcome.step) == ("done", 8)
    assert all(each["loss"] > 0 for each in read_log(run / "metrics.jsonl") if "loss" in each)
    speaker = load_speaker(run, device="cpu")
    said = [speaker.generate("The ", max_tokens=6, seed=seed) for seed in (1, 1, 2, 3)]
    assert said[0] == said[1]
    assert len(set(said)) > 1

    trained = load_model(resolve(run))
    with files.staged_folder(tmp_path / "out", {}) as staging:
        save_model(trained, Tokenizer.load(resolve(run)), staging)
    again = load_model(tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    with torch.inference_mode():
        assert torch.equal(again.logits(ids), trained.logits(ids))
    assert again.config == trained.config


@pytest.mark.parametrize("name", RECIPES)
def test_a_miniature_is_the_run_in_small(name: str) -> None:
    whole, small = compose(name, {}), compose(name, {}, tiny=True)
    assert [getattr(small.model, each) for each in AS_IT_WAS] == [getattr(whole.model, each) for each in AS_IT_WAS]
    assert small.optim == whole.optim
    assert small.order == whole.order
    assert (small.schedule.kind, small.schedule.final_share) == (whole.schedule.kind, whole.schedule.final_share)
    assert small.sample.rules == whole.sample.rules
    assert small.model.n_layer <= 2
    assert small.model.n_embd <= 64
    assert small.model.context <= 32
    assert (small.train.context is None) == (whole.train.context is None)
    assert small.recipe == f"{name}-tiny"
    byte_level = {"gpt2": "bpe"}
    assert small.tokenizer.kind == byte_level.get(whole.tokenizer.kind, whole.tokenizer.kind)
    assert RunConfig.model_validate_json(small.model_dump_json()) == small


def test_knobs_are_turned_on_top_of_a_miniature() -> None:
    config = compose("pile-13m", {"model": {"n_layer": 3}, "train": {"steps": 5}}, tiny=True)
    assert (config.model.n_layer, config.train.steps, config.model.n_embd) == (3, 5, 64)


def test_a_miniature_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    compose("the-verdict", {}, tiny=True)
    said = capsys.readouterr().out
    assert said.startswith("a miniature that keeps the shape of the-verdict: 2 layers of width 64, context 32, 8 steps")
    assert ", trained on python-stdlib instead of " in said
    assert len(said.splitlines()) == 1


def test_a_text_that_is_here_stays(text_file: Path) -> None:
    assert compose("the-verdict", {"data": str(text_file)}, tiny=True).data == str(text_file)


def test_a_run_that_is_small_already_is_not_made_larger(tiny: Callable[..., RunConfig]) -> None:
    whole = tiny(model={"n_layer": 1, "n_embd": 16}, train={"steps": 3, "batch_tokens": 64})
    small = compose(whole, {}, tiny=True)
    assert small.model == whole.model
    assert (small.train.steps, small.train.batch_tokens) == (3, 64)


def test_heads_that_share_keys_still_do(tiny: Callable[..., RunConfig]) -> None:
    whole = tiny(model={"n_head": 16, "n_kv_head": 8, "n_embd": 1024, "mlp_width": 2048})
    small = compose(whole, {}, tiny=True).model
    assert (small.n_head, small.n_kv_head, small.n_embd, small.mlp_width) == (4, 2, 64, 128)


def test_both_doors_lead_there_and_on_from_there(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train.device", "cpu", "--json"]
    assert cli.main(["train", "pile-13m", "--tiny", "--out", str(tmp_path / "small"), *words]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["step"] == 8
    assert told.err.startswith("a miniature that keeps the shape of pile-13m: ")
    begin = ["train", "--from", str(tmp_path / "small"), "--data", str(text_file), "--train.steps", "2"]
    assert cli.main([*begin, "--out", str(tmp_path / "on"), *words]) == 0
    assert f"weights   those of {resolve(tmp_path / 'small')}" in capsys.readouterr().err
    run = hornbook.fit("demo", tiny=True, out=tmp_path / "python", train={"steps": 2, "device": "cpu"})
    assert run.metrics()[-1]["step"] == 2
