from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, Qwen3Config

from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.base.machine import PEAK_TFLOPS
from hornbook.cli import main
from hornbook.plan.gpus import GPUS
from hornbook.plan.sizes import Sizes, find
from hornbook.recipes import RECIPES, compose
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

# The largest of the five systems, whose page says that it fits a card of 24 GB.
TWO_BILLION = """
recipe = "demo-classic"
[model]
vocab_size = 50304
context = 512
n_layer = 64
n_head = 16
n_embd = 2048
activation = "relu"
attention_scale = "width"
out_projection = false
biases = ["norm", "mlp", "head"]
tied = false
[train]
batch_tokens = 512
context = 16
dtype = "DTYPE"
"""


@pytest.fixture
def two_billion(tmp_path: Path) -> Callable[[str], Sizes]:
    def read(dtype: str = "float32") -> Sizes:
        path = tmp_path / "2b.toml"
        path.write_text(TWO_BILLION.replace("DTYPE", dtype))
        return find(str(path), {})

    return read


def trainers(truth: Sizes) -> set[str]:
    return {held.gpu.name for held in truth.gpus if held.as_dict()["trains_one_sequence_at_once"]}


def test_two_billion_parameters_do_not_fit_the_card_that_their_page_names(
    two_billion: Callable[[str], Sizes],
) -> None:
    truth = two_billion("float32")
    assert truth.tree.parameters == 3_161_117_824
    # Weights, gradients and two moments: 16 bytes each are 50.6 GB, and its page says "about 51".
    assert 50.57e9 < truth.memory(1, truth.numbers).bytes < 53e9
    assert not trainers(truth) & {"RTX 3090", "A100 40 GB", "Quadro RTX 8000", "V100", "T4", "RTX 3080"}
    assert trainers(truth) == {"A100 80 GB", "H100", "H200", "B200", "MI300X"}
    speakers = {held.gpu.name for held in truth.gpus if held.as_dict()["generates_in_bf16"]}
    assert speakers == {gpu.name for gpu in GPUS}, "6.3 GB of weights, and keys and values of a quarter"
    # In bf16 there is a copy more, and its gradients beside those in fp32.
    assert two_billion("bfloat16").memory(1, two_billion("bfloat16").numbers).bytes > 20 * 3_161_117_824


def test_the_text_that_suits_a_card_is_what_it_learns_from_in_a_day(two_billion: Callable[[str], Sizes]) -> None:
    """The page's 2B: 6 FLOPs for each of its 3.06e9 parameters that multiply, and little for 16 tokens of attention."""
    by_name = {held.gpu.name: held for held in two_billion("float32").gpus}
    assert by_name["T4"].as_dict()["tokens_in_a_day"] is None, "where nothing trains, no text suits"
    flops = by_name["H100"].flops_per_token
    assert flops == pytest.approx(6 * 3.06e9, rel=0.01)
    assert by_name["H100"].as_dict()["tokens_in_a_day"] == pytest.approx(0.4 * 494.5e12 * 24 * 3600 / flops)
    in_bf16 = next(held for held in two_billion("bfloat16").gpus if held.gpu.name == "H100")
    assert in_bf16.as_dict()["tokens_in_a_day"] == pytest.approx(0.4 * 989e12 * 24 * 3600 / flops)
    told = {gpu.name: gpu.tflops for gpu in GPUS if gpu.name in PEAK_TFLOPS}
    assert len(told) > 5
    assert told == {name: PEAK_TFLOPS[name] for name in told}, "as runs tell their share of the peak"


def test_the_pages_table_of_the_two_sizes_stands_beside_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    find("pile-13m", {}).show()
    table = capsys.readouterr().out.partition("What their page says")[2]
    rows = {
        line[:15].strip(): re.findall(r"\b(yes|no)\b", line)
        for line in table.splitlines()
        if re.search(" (yes|no) ", line)
    }
    assert len(rows) == 10
    assert rows["RTX 3090"] == ["yes", "yes", "yes", "no"], "the page has it train there, which it cannot"
    assert rows["V100"] == ["yes", "yes", "no", "no"]


def test_the_numbers_of_gpt2_as_everybody_counts_them(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    facts = find(str(tmp_path), {}).as_dict()
    assert facts["transformers_type"] == "gpt2"
    assert facts["parameters"] == {"all": 124_439_808, "without_embeddings": 85_056_000}
    assert facts["tree"]["parameters"] == 124_439_808
    assert facts["weights_bytes"] == {"fp32": 497_759_232, "bf16": 248_879_616, "int8": 124_439_808}
    assert facts["cache_bytes"]["per_token"] == 2 * 12 * 768 * 2
    assert facts["cache_bytes"]["full"] == 1024 * 2 * 12 * 768 * 2
    flops = facts["flops_per_token"]
    assert flops["training"] == 6 * (85_056_000 + 50_257 * 768) + 12 * 12 * 768 * 1024
    assert flops["forward"] * 3 == flops["training"]
    assert "6 x 123,653,376 parameters that multiply + 12 x 12 layers x 768 wide" in flops["arithmetic"]["training"]


def test_other_peoples_folders_need_no_weights(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
    }
    Qwen3Config(**sizes).save_pretrained(tmp_path)
    facts = find(str(tmp_path), {}).as_dict()
    assert facts["transformers_type"] == "qwen3"
    assert [part["name"] for part in facts["tree"]["inside"]][2] == "blocks.0-2"
    assert facts["cache_bytes"]["per_token"] == 2 * 3 * 2 * 16 * 2


@pytest.fixture
def trained(tiny: Callable[..., RunConfig], tmp_path: Path) -> Path:
    fit(tiny(optim={"kind": "adamw"}, train={"steps": 2}), tmp_path / "run", Progress())
    return tmp_path / "run"


def test_a_run_and_its_checkpoint_are_as_they_were_trained_and_a_copy_as_it_would_go_on(
    trained: Path, tmp_path: Path
) -> None:
    checkpoint = next((trained / "checkpoints").iterdir())
    shutil.copytree(checkpoint, tmp_path / "alone")
    told = [find(str(path), {}).as_dict() for path in (trained, checkpoint, tmp_path / "alone")]
    assert len({json.dumps(each["tree"]) for each in told}) == 1
    held = [[part["what"] for part in each["training"]["one_at_once"]["held"]] for each in told]
    assert held[0] == held[1] == ["weights, fp32", "moments of AdamW, fp32"]
    assert "momentum of Muon, fp32" in held[2]
    longer = find(str(trained), {"train": {"batch_tokens": 4096}}).as_dict()
    assert longer["training"]["batch_sequences"] == 16 * told[0]["training"]["batch_sequences"]


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().model.n_layer < 60])
def test_every_recipe_is_told_in_json_and_in_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["all"] == facts["tree"]["parameters"]
    assert {gpu["name"] for gpu in facts["gpus"]} == {gpu.name for gpu in GPUS}
    assert main(["model", name]) == 0
    words = capsys.readouterr().out
    for number in (facts["parameters"]["all"], facts["flops_per_token"]["training"]):
        assert f"{number:,}" in words
    for part in facts["training"]["one_at_once"]["held"]:
        assert part["arithmetic"] in words


def test_a_knob_of_a_recipe_is_turned(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for words in ([], ["--model.n-layer", "32"], ["--model.n-layer=32", "--train.batch-tokens", "65536"]):
        assert main(["model", "demo", "--json", *words]) == 0
        facts = json.loads(capsys.readouterr().out)
        sizes.append((facts["parameters"]["without_embeddings"], facts["training"]["batch_sequences"]))
    (few, sequences), (thirty_two, _), (_, more) = sizes
    chosen = compose("demo", {}).model
    assert (thirty_two - chosen.n_embd) / (few - chosen.n_embd) == 32 / chosen.n_layer
    assert more > sequences


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demmo"], "did you mean demo?"),
        (["no/such/folder"], "neither a recipe nor the folder of a run or a model"),
        ([], "name a recipe, a run or a model folder"),
        (["."], "neither a model"),
        (["demo", "--model.depth", "3"], "--model.depth"),
        (["demo", "--tokenizer.vocab-size", "auto"], "--model.vocab-size 100"),
        (["run", "--model.n-layer", "3"], "--model.n-layer: run has its shape already"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert main(["model", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert len(error) <= len("error: ") + 201


@pytest.mark.parametrize(
    "record",
    [
        "{}",
        '{"config": {"train": {"steps": 1}}}',
        '{"config": 5}',
        '{"config": {"train": {"steps": "many"}}}',
        "nonsense",
    ],
)
def test_a_damaged_run_is_one_line(record: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(UserError) as error:
        find(str(tmp_path), {})
    assert len(error.value.mistakes) == 1
