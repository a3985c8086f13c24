"""Fewer bits against the model in float32, and one layer against plain arithmetic in float64."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from effort import long
from hornbook import cli
from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.base.machine import cpu_has_fbgemm, cpu_multiplies_int8, cpu_packs_bf16
from hornbook.infer import quantize
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import Growing, grow
from hornbook.infer.evaluate import evaluate
from hornbook.infer.quantize import HalfLinear, Int8Linear, PackedLinear, prepare_to_speak
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.model.gpt import GPT
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

pytestmark = pytest.mark.xdist_group("quantize")  # one training
needs_fbgemm = pytest.mark.skipif(not cpu_has_fbgemm(), reason="this torch has no fbgemm")
needs_bf16 = pytest.mark.skipif(not cpu_packs_bf16(), reason="this processor is slow at bfloat16")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """Trained long enough that it has something to lose."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig.model_validate(
        {
            "data": str(text_file),
            "tokenizer": {"kind": "byte"},
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 64, "context": 64},
            "sample": {"tokens": 4},
            "train": {"steps": 60, "eval_every_steps": 60, "batch_tokens": 1024, "dtype": "float32", "compile": False},
        }
    )
    fit(config, folder, Progress())
    return folder


@pytest.mark.parametrize(
    ("dtype", "at_most"),
    [pytest.param("int8", 0.01, marks=needs_fbgemm), pytest.param("bfloat16", 0.01, marks=long)],
)
def test_perplexity_moves_by_less_than_a_hundredth(run: Path, dtype: str, at_most: float) -> None:
    exact = evaluate(run, None, device="cpu")["perplexity"]
    assert exact < 25, "a model that has learned nothing has nothing to lose"
    coarse = evaluate(run, None, device="cpu", dtype=dtype)["perplexity"]
    assert coarse != exact
    assert abs(coarse / exact - 1) < at_most


@needs_fbgemm
def test_greedy_texts_stay_what_they_were_for_a_while(run: Path) -> None:
    prompts = ["def ", "import ", "    return ", "class ", "# The ", "if ", "self.", "for "]
    exact, coarse = (load_speaker(run, device="cpu", dtype=dtype) for dtype in ("float32", "int8"))
    theirs, ours = (
        [each.text for each in speaker.generate_batch(prompts, temperature=0.0, top_p=None, max_tokens=16)]
        for speaker in (exact, coarse)
    )
    assert sum(a == b for a, b in zip(theirs, ours, strict=True)) >= len(prompts) // 2


@needs_fbgemm
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("has_vnni", [True, False])
def test_a_layer_in_int8_is_the_product_of_what_was_rounded(
    has_vnni: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_vnni and not cpu_multiplies_int8():
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(quantize, "cpu_multiplies_int8", lambda: has_vnni)
    torch.manual_seed(0)
    layers = [nn.Linear(96, width, bias=bias) for width in (40, 7)]
    x = torch.randn(2, 5, 96) * torch.tensor([0.01, 1, 30, 0, 5])[:, None]
    with torch.inference_mode():
        ours = Int8Linear(layers)(x).double().numpy()
    weight = np.concatenate([each.weight.detach().double().numpy() for each in layers])
    offset = np.concatenate([each.bias.detach().double().numpy() for each in layers]) if bias else 0.0

    def rounded(rows: np.ndarray, largest: int = 127) -> np.ndarray:
        steps = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), 1e-30) / largest
        return np.rint(rows / steps) * steps

    expected = rounded(x.double().numpy(), 127 if has_vnni else 63) @ rounded(weight).T + offset
    # A number that lies half way between two steps may be rounded either way.
    assert np.abs(ours - expected).max() <= 0.01 * np.abs(expected).max()
    assert np.median(np.abs(ours - expected)) < 1e-5
    plain = x.double().numpy() @ weight.T + offset
    assert np.abs(ours - plain).max() < (0.03 if has_vnni else 0.05) * np.abs(plain).max()


@needs_fbgemm
@pytest.mark.parametrize(("kind", "at_most"), [(Int8Linear, 0.04), (HalfLinear, 0.002), (PackedLinear, 1e-6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_nearly_the_product(kind: Any, at_most: float, bias: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(96, width, bias=bias) for width in (40, 7)]
    x = torch.randn(2, 5, 96) * torch.tensor([0.01, 1, 30, 0, 5])[:, None]
    with torch.inference_mode():
        ours = kind(layers)(x).double().numpy()
        alone = np.stack([kind(layers)(x[:, [place]]).double().numpy()[:, 0] for place in range(5)], axis=1)
    weight = np.concatenate([each.weight.detach().double().numpy() for each in layers])
    offset = np.concatenate([each.bias.detach().double().numpy() for each in layers]) if bias else 0.0
    expected = x.double().numpy() @ weight.T + offset
    scale = np.abs(expected).max(axis=-1, keepdims=True) + 1e-9
    assert (np.abs(ours - expected) / scale).max() < at_most, "each row by its own length"
    assert (np.abs(alone - expected) / scale).max() < at_most


@needs_fbgemm
def test_what_a_layer_in_int8_makes_of_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    layer, rows = Int8Linear([nn.Linear(96, 50)]), torch.randn(40, 96) * torch.rand(40, 1) * 20
    with torch.inference_mode():
        together = layer(rows)
        assert all(torch.equal(layer(rows[row : row + 1])[0], together[row]) for row in range(40))
        assert torch.equal(layer(rows[:7]), together[:7])


@needs_fbgemm
def test_int8_is_not_left_to_a_reference_kernel() -> None:
    """As once on a Zen 4, whose tokens took four seconds each."""
    exact, x = nn.Linear(768, 2304), torch.randn(1, 768)
    coarse = Int8Linear([exact])
    with torch.inference_mode():
        quickest = [min(timeit.repeat(partial(each, x), number=1, repeat=9)) for each in (coarse, exact)]
    assert quickest[0] < 30 * quickest[1], "the reference takes a thousand times longer"


@needs_fbgemm
@pytest.mark.parametrize("sizes", [{"n_kv_head": 1}, {"bigram_embeddings": 50}, {"positions": "learned"}], ids=str)
def test_every_shape_speaks_in_int8_in_a_batch(sizes: dict[str, Any], untaught: Callable[..., GPT]) -> None:
    model = prepare_to_speak(untaught("modern", context=12, **sizes), "int8")
    texts = [Growing([7, 31, 2][: 1 + seed % 3], SamplerConfig(), seed, 20) for seed in range(6)]
    for _ in grow(model, texts, rows=4):
        pass
    assert [len(text.tokens) - text.prompt_length for text in texts] == [20] * 6


@needs_bf16
def test_packed_bfloat16_is_the_same_product() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, width, bias=True).bfloat16() for width in (48, 16)]
    x = torch.randn(3, 1, 64).bfloat16()
    with torch.inference_mode():
        ours, plain = PackedLinear(layers)(x), torch.cat([each(x) for each in layers], dim=-1)
    assert torch.allclose(ours.float(), plain.float(), atol=0.02)


def test_one_product_in_place_of_three_changes_nothing(
    untaught: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a layer that any processor computes."""

    class Plain(nn.Module):
        def __init__(self, layers: Sequence[nn.Linear]) -> None:
            super().__init__()
            self.weight = torch.cat([each.weight for each in layers])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    for said, so in (("cpu_packs_bf16", True), ("cpu_has_amx", True), ("cpu_has_fbgemm", True)):
        monkeypatch.setattr(quantize, said, lambda so=so: so)
    monkeypatch.setattr(quantize, "PackedLinear", Plain)
    model, ids = untaught("modern", n_head=4, n_kv_head=2), torch.arange(20)[None]
    with torch.inference_mode():
        expected = model.logits(ids)
        assert torch.allclose(prepare_to_speak(model, "bfloat16").logits(ids), expected, atol=1e-5)
    assert not hasattr(model.blocks[0].attention, "query")
    assert quantize.dtype_of_cache(model, "int8") == torch.bfloat16
    assert quantize.dtype_of_cache(model, "float32") == torch.float32


def test_what_cannot_be_had_is_told(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(speaker.folder), "--prompt", "a", "--device", "cpu", "--dtype", "int4"]) == 2
    assert "no number type is called int4; use float32, bfloat16, int8" in capsys.readouterr().err
    monkeypatch.setattr(quantize, "cpu_has_fbgemm", lambda: False)
    with pytest.raises(UserError, match="no instructions for it"):
        load_speaker(speaker.folder, device="cpu", dtype="int8")
    with pytest.raises(UserError, match="int8: is for CPUs"):
        prepare_to_speak(speaker.model.to("meta"), "int8")


@needs_fbgemm
def test_generate_and_eval_take_the_number_type(
    speaker: Speaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, text = [], tmp_path / "text.txt"
    text.write_text("def take(number: int) -> float: ...\n" * 20)
    for dtype in ("float32", "int8"):
        words = [str(speaker.folder), "--device", "cpu", "--dtype", dtype]
        assert cli.main(["generate", *words, "--prompt", "def", "--max-tokens", "40", "--seed", "3"]) == 0
        assert cli.main(["eval", *words, "--data", str(text), "--json"]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0] != said[1], "scored in other numbers"
