from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.folder import load_model, load_weights, weights_in_turn, written_together
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.runs.folder import resolve

SMALL: dict[str, Any] = {"vocab_size": 257, "context": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
SHAPES = {
    "gpt2": classic(**SMALL),
    "gpt2, untied": classic(**SMALL, tied=False, dropout=0.1),
    "qwen3": modern(**SMALL, n_kv_head=1),
    "qwen3, tied": modern(**SMALL, tied=True),
    "gpt2, no biases, relu": classic(**SMALL, biases=(), activation="relu"),
    "llama": modern(**SMALL, qk_norm="none", n_kv_head=1),
    "llama, biases": modern(**SMALL, qk_norm="none", biases=("qkv", "mlp")),
    "qwen3, biases": modern(**SMALL, biases=("qkv",)),
    "nanochat": modern(
        **SMALL, qk_norm="after", norm_weight=False, embedding_norm=True, activation="relu2", logit_cap=15.0
    ),
    "hornbook": modern(**SMALL, activation="gelu_tanh"),
    "hornbook, tied": classic(**SMALL, biases=("norm", "head")),
    "hornbook, all": modern(**SMALL, value_embeddings=True, bigram_embeddings=50, embedding_skip=True),
    "hornbook, scaled": classic(**SMALL, attention_scale="width", out_projection=False, biases=("mlp",)),
}


def change(folder: Path, changes: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    changes(tensors)
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_of_a_model_is_read_alone(
    shape: str, random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    """And what lies in one tensor with it."""
    model = random_model(SHAPES[shape])
    folder, ours = saved(model), dict(model.named_parameters())
    wanted = set(list(ours)[: len(ours) // 4])
    part = untrained(model.config, wanted.__contains__)
    load_weights(part, folder)
    assert all(torch.equal(each, ours[name]) for name, each in part.named_parameters() if name in wanted)
    beside = [name for row in written_together(model.config) if wanted.intersection(row) for name in row]
    read = {name for name, _ in weights_in_turn(model.config, folder, wanted.__contains__)}
    assert read == wanted.union(beside) & ours.keys()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_comes_back_bit_for_bit(
    shape: str, random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    model = random_model(SHAPES[shape])
    folder = saved(model)
    loaded = load_model(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == shape.partition(",")[0]
    assert loaded.config == model.config
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.head.weight is loaded.embedding.weight) == model.config.tied
    ids = torch.arange(16)[None]
    assert torch.equal(loaded.logits(ids), model.logits(ids))
    assert not loaded.training


def test_weights_in_half_precision_are_read_as_well(
    random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    model = random_model("modern", **SMALL)
    folder = saved(model)

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    change(folder, halve)
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], each.bfloat16().float()) for name, each in model.state_dict().items())


def missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.more.weight"] = torch.ones(2)


def misshapen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(17)


def turned(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


def of_integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (missing, "tensor model.norm.weight is missing"),
        (extra, "tensor model.more.weight is not of this model"),
        (misshapen, "tensor model.norm.weight is (17,), the model has (16,)"),
        (turned, "tensor model.layers.1.mlp.up_proj.weight is (16, 64), the model has (64, 16)"),
        (of_integers, "tensor model.norm.weight holds torch.int64"),
    ],
    ids=["missing", "extra", "misshapen", "turned", "of integers"],
)
def test_a_wrong_tensor_is_named_in_one_line(
    changes: Callable[[dict[str, torch.Tensor]], None],
    says: str,
    random_model: Callable[..., GPT],
    saved: Callable[[GPT], Path],
) -> None:
    folder = saved(random_model("modern", **SMALL))
    change(folder, changes)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    (mistake,) = caught.value.mistakes
    assert says in mistake


def test_every_wrong_tensor_is_named(random_model: Callable[..., GPT], saved: Callable[[GPT], Path]) -> None:
    folder = saved(random_model("modern", **SMALL))
    for changes in (missing, extra, turned):
        change(folder, changes)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert len(caught.value.mistakes) == 3


@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
def test_weights_cut_short_are_one_line(
    kept: int, random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    path = saved(random_model("modern", **SMALL)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a whole safetensors file") as caught:
        load_model(path.parent)
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{}", "model_type '': not a shape"),
        ('{"model_type": "gpt2", "n_layer": 12}', "n_positions is missing"),
        ('{"model_type": "bert"}', "it reads gpt2, qwen3, llama, nanochat"),
        ('{"hornbook": {"n_layer": 0}}', "n-layer"),
        ('{"hornbook": {"vocab_size": 9, "n_layers": 2}}', "n_layers is 2, which this version cannot compute"),
        ("[]", "should hold a JSON object"),
        ("{", "not readable as JSON"),
    ],
)
def test_a_config_that_is_not_ours_is_one_line(
    written: str, says: str, random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    folder = saved(random_model("modern", **SMALL))
    (folder / "config.json").write_text(written)
    with pytest.raises(UserError, match=says) as caught:
        load_model(folder)
    assert len(caught.value.mistakes) == 1
    assert "config.json" in caught.value.mistakes[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose checkpoints hold nothing but their names and validation losses; step 20 is the best."""
    run = tmp_path / "run"
    for step, loss in {10: 3.0, 20: 2.0, 30: 2.5, 40: None, 50: float("nan")}.items():
        folder = run / "checkpoints" / f"step-{step:08}"
        with files.staged_folder(folder, {"step": step, "val_loss": loss}) as staging:
            files.write_json(staging / "config.json", {"step": step})
            files.write_json(staging / "state.json", {})
    files.write_json(run / "run.json", {})
    return run


def step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def damage(run: Path, at: int) -> None:
    (run / "checkpoints" / f"step-{at:08}" / "config.json").write_text("{}")


@pytest.mark.parametrize(("at", "meant"), [("best", 20), ("newest", 50), ("10", 10), ("0040", 40)])
def test_a_checkpoint_is_found_by_what_is_asked_for(run: Path, at: str, meant: int) -> None:
    assert step(resolve(run, at)) == meant


def test_a_model_folder_is_itself(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000030"
    assert resolve(folder) == folder


def test_a_step_that_was_not_kept_is_told_with_those_that_were(run: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of step 25; kept are 10, 20, 30, 40, 50"):
        resolve(run, "25")


def snapshot(run: Path, step: int) -> Path:
    folder = run / "snapshots" / f"step-{step:08}"
    with files.staged_folder(folder, {"step": step}) as staging:
        files.write_json(staging / "config.json", {"step": step})
    return folder


def test_a_snapshot_is_found_by_its_step_behind_a_checkpoint_of_the_same(run: Path) -> None:
    snapshots = {step: snapshot(run, step) for step in (8, 32, 50, 64)}
    assert resolve(run, "8") == snapshots[8]
    assert resolve(run, "50").parent.name == "checkpoints"
    damage(run, 50)
    assert resolve(run, "50") == snapshots[50]
    assert resolve(run, "newest") == snapshots[64]
    assert step(resolve(run, "best")) == 20


def test_a_run_with_snapshots_alone_speaks_by_its_newest(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    snapshot(run, 1)
    newest = snapshot(run, 2)
    assert resolve(run) == resolve(run, "newest") == newest


def test_of_many_steps_the_first_and_last_are_named(run: Path) -> None:
    for power in range(17):
        snapshot(run, 1 << power)
    with pytest.raises(UserError, match=r"kept are 1, 2, 4, 8, 10, \.\.\., 4096, 8192, 16384, 32768, 65536, and best"):
        resolve(run, "25")


@pytest.mark.parametrize(
    ("at", "damaged", "taken"), [("newest", [50], 40), ("newest", [50, 40], 30), ("best", [20], 30)]
)
def test_a_damaged_checkpoint_is_passed_over_with_one_line(
    run: Path, at: str, damaged: list[int], taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in damaged:
        damage(run, each)
    assert step(resolve(run, at)) == taken
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(damaged)
    for each, line in zip(damaged, warnings, strict=True):
        assert f"step-{each:08}" in line
        assert "config.json has" in line


def test_a_run_with_every_checkpoint_damaged_is_a_mistake(run: Path) -> None:
    for each in (10, 20, 30, 40, 50):
        damage(run, each)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        resolve(run)


def test_what_is_no_model_is_told_apart(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model or run"):
        resolve(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither a model"):
        resolve(tmp_path)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        resolve(run)


def test_transformers_trains_on_with_the_same_dropout(
    random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(random_model(SHAPES["gpt2, untied"])))
    drops = [each.p for each in theirs.modules() if isinstance(each, torch.nn.Dropout)]
    assert drops == [0.1] * (1 + 3 * SMALL["n_layer"])


def test_a_shape_that_no_other_program_knows_says_so(
    random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    config = ModelConfig(**SMALL, norm="rmsnorm", activation="gelu_tanh")
    described = json.loads((saved(random_model(config)) / "config.json").read_text())
    assert described["model_type"] == "hornbook"
    assert "architectures" not in described


def test_a_context_that_no_weight_bears_out_is_refused(
    random_model: Callable[..., GPT], saved: Callable[..., Path]
) -> None:
    """Its sines alone would fill the memory."""
    folder = saved(random_model("modern", **SMALL))
    described = json.loads((folder / "config.json").read_text())
    described["hornbook"] |= {"context": 10_000_000, "n_head": 1, "head_width": 16}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="a context of 10,000,000"):
        load_model(folder)
