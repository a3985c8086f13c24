from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hornbook.base.errors import UserError
from hornbook.base.machine import Machine, choose_machine
from hornbook.cli import main
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT
from hornbook.recipes import DEFAULT, RECIPES, compose
from hornbook.recipes.dial import MOST_READINGS, as_fast_as_products, own_text, why_these_sizes
from hornbook.train.config import RunConfig, override
from hornbook.train.probe import Timed
from hornbook.train.start import fit

# A change of a recipe's size is made here too, on purpose.
GOLDEN_PARAMETERS = {
    "demo": 2_114_752,
    "demo-classic": 4_240_896,
    "modern-small": 7_408_384,
    "modern-medium": 42_477_056,
    "modern-large": 135_287_040,
    "letters": 5_311_232,
    "the-verdict": 162_419_712,
    "julius-caesar": 162_419_712,
    "julius-caesar-small": 67_048_704,
    "wikitext-wordpiece": 47_987_712,
    "pile-13m": 13_126_144,
    "pile-2b": 3_161_117_824,
    "shakespeare-124m": 124_439_808,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
BYTES_AND_END = 257


def shape_of(config: RunConfig) -> ModelConfig:
    """The model that a run would build, with the vocabulary that its tokenizer would have."""
    return config.model.with_(vocab_size=config.model.vocab_size or config.tokenizer.vocab_size or BYTES_AND_END)


def test_every_recipe_has_a_golden_size() -> None:
    without = sorted(RECIPES.keys() ^ GOLDEN_PARAMETERS.keys())
    assert without == [], "a recipe is entered in RECIPES, and its number of parameters here"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_builds_with_its_golden_size(name: str) -> None:
    config = compose(name, {})
    assert config.recipe == name
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in GPT(shape_of(config)).parameters())
    assert built == shape_of(config).n_params() == GOLDEN_PARAMETERS[name]


def test_no_recipe_and_no_text_means_the_demo() -> None:
    assert compose(None, {}) == compose(DEFAULT, {})
    assert compose(None, {"data": "python-stdlib", "seed": 3}) == compose(DEFAULT, {"seed": 3})


def test_knobs_are_turned_on_top_of_a_recipe() -> None:
    config = compose("demo-classic", {"model": {"n_layer": 2}, "train": {"steps": 5}})
    assert config.model == compose("demo-classic", {}).model.with_(n_layer=2)
    assert (config.train.steps, config.train.minutes) == (5, None)
    assert compose(config, {"seed": 9}) == override(config, {"seed": 9})


def test_a_recipe_of_characters_is_listed_though_their_number_is_not_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "mine", lambda: override(RECIPES["demo"](), {"tokenizer": {"kind": "char"}}))
    assert main(["recipes"]) == 0
    assert "mine" in capsys.readouterr().out


def test_an_unknown_recipe_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="dmo: no such recipe; did you mean demo"):
        compose("dmo", {})
    with pytest.raises(UserError, match="see: hornbook recipes"):
        compose("qqq", {})


def test_a_recipe_may_be_named_as_a_knob(toml: Path) -> None:
    assert compose(None, {"recipe": "gpt2", "seed": 3}) == compose("gpt2", {"seed": 3})
    assert compose(None, {"recipe": RunConfig.model_fields["recipe"].default}).recipe == "custom", "of none"
    assert compose(str(toml), {"recipe": "demo"}).model == compose("demo", {"model": {"n_layer": 2}}).model
    assert compose("demo", {"recipe": "demo"}) == compose("demo", {})
    with pytest.raises(UserError, match=r"demo is named as well; name one recipe: hornbook train gpt2"):
        compose("demo", {"recipe": "gpt2"})
    with pytest.raises(UserError, match="gtp2: no such recipe; did you mean gpt2"):
        compose(None, {"recipe": "gtp2"})


def test_a_text_or_a_corpus_may_stand_where_a_recipe_does(text_file: Path, tmp_path: Path) -> None:
    assert compose(str(text_file), {}) == compose(None, {"data": str(text_file)})
    assert compose(str(text_file.parent / "*.txt"), {}).recipe == "own-text"
    assert compose("shakespeare", {"seed": 2}) == compose(None, {"data": "shakespeare", "seed": 2})
    assert compose(str(text_file), {"recipe": "gpt2"}) == compose("gpt2", {"data": str(text_file)})
    with pytest.raises(UserError, match="--data names another"):
        compose(str(text_file), {"data": "shakespeare"})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"a run, not a text; go on with it: .*resume"):
        compose(str(tmp_path), {})


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "demo-classic"\nseed = 4\n\n[model]\nn_layer = 2\n\n[train]\nsteps = 7\n')
    return path


def test_a_file_changes_the_recipe_that_it_names(toml: Path) -> None:
    base, config = compose("demo-classic", {}), compose(str(toml), {"seed": 5})
    assert config.model == base.model.with_(n_layer=2)
    assert config.optim == base.optim
    assert (config.recipe, config.seed, config.train.steps, config.train.minutes) == ("mine", 5, 7, None)


def test_a_file_that_names_no_recipe_changes_the_demo(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"model": {"n_layer": 2}}')
    assert compose(str(tmp_path / "mine.json"), {}) == override(
        compose("demo", {}), {"recipe": "mine", "model": {"n_layer": 2}}
    )


def test_a_mistake_is_told_where_it_was_written(toml: Path) -> None:
    toml.write_text(toml.read_text() + 'n_layer = "two"\n')
    with pytest.raises(UserError) as caught:
        compose(str(toml), {"model": {"n_layer": 0}})
    in_file, in_words = sorted(caught.value.mistakes, key=lambda line: line.startswith("--"))
    assert in_file.startswith("mine.toml line 9: train.n_layer: no such knob")
    assert in_words.startswith("--model.n-layer: ")


def test_a_file_naming_an_unknown_recipe_is_a_mistake(toml: Path) -> None:
    toml.write_text('recipe = "dmo"')
    with pytest.raises(UserError, match="did you mean demo"):
        compose(str(toml), {})


texts, minutes, speeds = st.integers(1_000, 10**9), st.floats(0.1, 10_000), st.floats(1e9, 1e15)


@given(text_bytes=st.integers(0, 10**10), minutes=minutes, flops=speeds, kind=st.sampled_from(["bpe", "char", "gpt2"]))
def test_sizes_chosen_for_a_text_always_work(text_bytes: int, minutes: float, flops: float, kind: str) -> None:
    config = own_text("my.txt", text_bytes, minutes, as_fast_as_products(flops), kind)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert config.sequences >= 1
    assert config.train.batch_tokens >= config.model.context
    assert config.train.minutes == pytest.approx(minutes)
    assert config.train.epochs == MOST_READINGS
    assert config.tokenizer.kind == kind
    assert kind in why_these_sizes(config)


@pytest.mark.parametrize(("minutes", "said"), [(1, " or 1 minute;"), (1.5, " or 1.5 minutes;"), (2, " or 2 minutes;")])
def test_one_minute_is_not_minutes(minutes: float, said: str) -> None:
    assert said in why_these_sizes(own_text("book.txt", 10_000, minutes))


@given(text_bytes=texts, minutes=minutes, flops=speeds)
def test_the_text_is_long_enough_for_what_is_chosen(text_bytes: int, minutes: float, flops: float) -> None:
    """With at least three bytes in a token, a tenth of the text held back, several windows and steps remain."""
    config = own_text("my.txt", text_bytes, minutes, as_fast_as_products(flops))
    tokens = 0.9 * text_bytes / 3
    assert tokens > 4 * config.model.context
    assert MOST_READINGS * tokens / config.train.batch_tokens >= 20


@given(texts, texts, minutes, minutes, speeds, speeds)
def test_more_text_time_and_speed_never_mean_a_smaller_model(
    one: int, other: int, short: float, long: float, slow: float, fast: float
) -> None:
    def layers(text_bytes: int, minutes: float, flops: float) -> int:
        model = own_text("my.txt", text_bytes, minutes, as_fast_as_products(flops), "char").model
        return model.n_layer * model.n_embd**2

    least, most = sorted((short, long)), sorted((slow, fast))
    assert layers(min(one, other), least[0], most[0]) <= layers(max(one, other), least[1], most[1])


def test_minutes_alone_do_not_mean_to_learn_by_heart(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("to be or not " * 400)
    knobs: dict[str, Any] = {"data": str(tmp_path / "short.txt")}
    assert compose(None, knobs | {"train": {"minutes": 500}}).train.epochs == MOST_READINGS
    assert compose(None, knobs | {"train": {"minutes": 500, "epochs": 900}}).train.epochs == 900
    assert compose(None, knobs | {"train": {"steps": 7}}).train.epochs is None


def test_a_faster_machine_is_given_a_larger_model_where_time_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same where steps decide, which must mean the same everywhere."""
    sizes = {}
    for speed in (1e10, 1e14):
        monkeypatch.setattr("hornbook.train.probe.flops", lambda machine, speed=speed: speed)
        for end in ({}, {"minutes": 2}, {"steps": 50}):
            config = compose("demo", {"train": end | {"device": "cpu"}}, measured=True)
            sizes[speed, *end] = config.model.n_params(embeddings=False)
    assert sizes[1e10,] < sizes[1e14,]
    assert sizes[1e10, "minutes"] < sizes[1e14, "minutes"]
    assert sizes[1e10, "steps"] == sizes[1e14, "steps"]


@pytest.mark.parametrize(
    ("knobs", "threads"),
    [({"minutes": 2}, 3), ({"minutes": 0.5}, None), ({"minutes": 2, "threads": 1}, 1), ({"steps": 9}, None)],
    ids=str,
)
def test_threads_are_tried_where_there_is_time_for_it(
    knobs: dict[str, Any], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = dataclasses.replace(choose_machine("cpu"), threads=8)
    monkeypatch.setattr("hornbook.base.machine.choose_machine", lambda *_: machine)
    monkeypatch.setattr("hornbook.train.probe.flops", lambda machine: 1e11)
    monkeypatch.setattr("hornbook.train.probe.threads_that_pay", lambda config, machine: 3)
    assert compose("demo", {"train": knobs}, measured=True).train.threads == threads


def test_on_an_accelerator_the_largest_size_is_chosen_of_which_enough_steps_were_seen_to_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its products say nothing of small steps; what even at their speed is too large is not tried."""
    machine = dataclasses.replace(choose_machine("cpu"), device="cuda")
    monkeypatch.setattr("hornbook.base.machine.choose_machine", lambda *_: machine)
    monkeypatch.setattr("hornbook.train.probe.flops", lambda machine: 2e14)
    tried: list[int] = []

    def seconds(config: RunConfig, machine: Machine) -> Timed:
        tried.append(config.model.n_embd)
        return Timed(0.1 if config.model.n_embd > 384 else 0.01, 0.0)

    monkeypatch.setattr("hornbook.train.probe.seconds_a_step", seconds)
    config = compose("demo", {"train": {"minutes": 0.5}}, measured=True)
    assert (config.model.n_layer, config.model.n_embd) == (6, 384)
    assert tried == [512, 384]


def test_a_text_of_ones_own_decides_the_sizes(tmp_path: Path) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("to be or not " * 400)
    long.write_text("to be or not " * 60_000)
    small, large = (compose(None, {"data": str(path), "train": {"device": "cpu"}}) for path in (short, long))
    assert small.recipe == large.recipe == "own-text"
    assert small.model.n_params(embeddings=False) < large.model.n_params(embeddings=False)
    assert compose(None, {"data": str(short), "model": {"n_layer": 7}}).model.n_layer == 7


@pytest.mark.parametrize(("minutes", "heads", "mlp"), [(3, 4, 1024), (600, 8, None)])
def test_heads_and_mlp_follow_another_width(minutes: float, heads: int, mlp: int | None) -> None:
    """As they would had the width been chosen; unless they are given, too."""
    stops = {"train": {"minutes": minutes}}
    wider = compose("demo", {"model": {"n_embd": 512}} | stops).model
    assert (wider.n_embd, wider.n_head, wider.mlp_width) == (512, heads, mlp)
    assert compose("demo", {"model": {"n_embd": 512, "n_head": 2, "mlp_width": 99}} | stops).model.mlp_width == 99
    assert compose("demo", {"model": {"n_embd": 100}} | stops).model.n_embd == 100
    with pytest.raises(UserError, match=r"n.embd: should be"):
        compose("demo", {"model": {"n_embd": 10**12}} | stops)


def test_a_stop_on_the_command_line_replaces_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "demo"\n[train]\nminutes = 10\n')
    assert compose(str(path), {}).train.minutes == 10
    config = compose(str(path), {"train": {"steps": 5}})
    assert (config.train.steps, config.train.minutes) == (5, None)


def test_a_file_that_names_only_a_text_gets_sizes_for_that_text(tmp_path: Path, text_file: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'data = "{text_file.as_posix()}"\n[train]\nsteps = 5\n')
    config, by_hand = compose(str(path), {}), compose(None, {"data": str(text_file)})
    assert config.model == by_hand.model
    assert config.recipe == "mine"
    assert config.train.steps == 5


def test_every_recipe_is_in_the_documents_with_its_size() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "recipes.md").read_text()
    for name, size in GOLDEN_PARAMETERS.items():
        assert f"`{name}`" in text
        assert f"{size:,}" in text


def test_a_run_warns_of_what_a_person_would_hardly_mean(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_cpu = {"data": str(text_file), "train": {"device": "cpu"}}
    warnings = {}
    for name in ("julius-caesar-small", "pile-13m", "demo"):
        fit(compose(name, on_cpu, tiny=True), tmp_path / name)
        warnings[name] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings["demo"] == []
    assert "the learning rate rises to 5 times what it warms up to" in warnings["julius-caesar-small"][0]
    assert "places past 4 are never trained" in warnings["pile-13m"][0]
    assert [len(each) for each in warnings.values()] == [1, 1, 0]
