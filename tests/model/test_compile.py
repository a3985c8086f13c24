from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from effort import long
from hornbook.base.machine import choose_machine
from hornbook.model import compile as compiling
from hornbook.model.compile import compiled_block, compiled_or_eager, use_in_blocks
from hornbook.model.config import classic, modern
from hornbook.model.gpt import GPT

SMALL: dict[str, Any] = {"vocab_size": 32, "context": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}


@long
def test_a_compiled_model_computes_what_the_eager_one_does(
    random_model: Callable[..., GPT], capsys: pytest.CaptureFixture[str]
) -> None:
    if not choose_machine("cpu").can_compile:
        pytest.skip("no C++ compiler on this machine")
    model = random_model("modern", **SMALL).train()
    ids = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(1))
    trunk = compiled_or_eager(model, (3, 16))
    assert all(parameter.grad is None for parameter in model.parameters()), "trying it out must leave no gradients"
    assert capsys.readouterr().err == ""

    results = []
    for forward in (trunk, model.hidden):
        hidden = forward(ids)
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(p.grad.clone() for p in model.blocks.parameters() if p.grad is not None)])
        model.zero_grad()
    for compiled, eager in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-4)
    assert torch.equal(trunk(ids[:2]), model.hidden(ids[:2])), "a batch of another shape runs eager"


def test_a_failing_compiler_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], random_model: Callable[..., GPT]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the compiler\nfell over")

    monkeypatch.setattr(torch, "compile", broken)
    model = random_model("modern", **SMALL).train()
    trunk = compiled_or_eager(model, (3, 16))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "torch.compile does not work here, going on without" in warning
    assert "the compiler fell over" in warning
    ids = torch.zeros(3, 16, dtype=torch.long)
    assert torch.equal(trunk(ids), model.hidden(ids))


def test_blocks_that_do_not_compile_are_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiles_to_nothing(*_: Any, **__: Any) -> Callable[..., Any]:
        return lambda block, x, *_: x + 1

    monkeypatch.setattr(torch, "compile", compiles_to_nothing)
    assert compiled_block(modern(**SMALL), (3, 16), torch.device("cpu"), torch.float32) is None
    (warning,) = capsys.readouterr().err.splitlines()
    assert "torch.compile does not work here, going on without" in warning


@pytest.mark.parametrize("preset", [classic, modern])
def test_blocks_take_what_is_compiled_for_batches_of_its_shape_in_training(
    preset: Callable[..., Any], random_model: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here compiled by nobody."""
    seen = list[torch.Size]()

    def watching(forward: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(block: Any, x: torch.Tensor, *more: Any) -> Any:
            seen.append(x.shape)
            return forward(block, x, *more)

        return run

    monkeypatch.setattr(torch, "compile", watching)
    config = preset(**SMALL | {"n_layer": 2}).with_(value_embeddings=True)
    block = compiled_block(config, (3, 16), torch.device("cpu"), torch.float32)
    assert block is not None
    assert len(seen) == 2, "blocks with and without a table of values"
    seen.clear()
    model = random_model(config).train()
    eager = model.hidden(torch.zeros(3, 16, dtype=torch.long))
    use_in_blocks(model, block, (3, 16))
    assert torch.equal(model.hidden(torch.zeros(3, 16, dtype=torch.long)), eager)
    assert len(seen) == 2
    model.hidden(torch.zeros(2, 16, dtype=torch.long))
    model.eval().hidden(torch.zeros(3, 16, dtype=torch.long))
    assert len(seen) == 2


def test_what_only_fails_when_it_runs_is_one_warning_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], random_model: Callable[..., GPT]
) -> None:
    def compiles_to_nothing(*_: Any, **__: Any) -> Callable[..., Any]:
        def run(_: torch.Tensor) -> torch.Tensor:
            raise OSError("g++: cannot allocate")

        return run

    monkeypatch.setattr(torch, "compile", compiles_to_nothing)
    model = random_model("modern", **SMALL).train()
    trunk = compiled_or_eager(model, (3, 16))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert trunk(torch.zeros(3, 16, dtype=torch.long)).shape == (3, 16, 16)


@pytest.mark.parametrize("wrong", [lambda hidden: hidden * 1.2, lambda hidden: hidden * float("nan")])
def test_a_compiler_that_computes_something_else_is_one_warning(
    wrong: Callable[[torch.Tensor], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    random_model: Callable[..., GPT],
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **_: lambda ids: wrong(forward(ids)))
    model = random_model("modern", **SMALL).train()
    trunk = compiled_or_eager(model, (3, 16))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "going on without" in warning
    ids = torch.zeros(3, 16, dtype=torch.long)
    assert torch.equal(trunk(ids), model.hidden(ids))


def test_gradients_that_are_no_numbers_are_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], random_model: Callable[..., GPT]
) -> None:
    def compiled(forward: Callable[..., torch.Tensor], **_: Any) -> Callable[..., torch.Tensor]:
        def run(ids: torch.Tensor) -> torch.Tensor:
            hidden = forward(ids)
            hidden.register_hook(lambda gradient: gradient * float("inf"))
            return hidden

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    compiled_or_eager(random_model("modern", **SMALL).train(), (3, 16))
    assert "its gradients are not finite" in capsys.readouterr().err


def test_what_is_compiled_is_kept_apart_by_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_model: Callable[..., GPT]
) -> None:
    """Inductor's own key knows nothing of the processor: in a home that two machines share, the one with AVX2 took what
    the one with AVX512 had left, and its hidden states were NaN."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))
    folders = set()
    for capability, name in (("AVX2", "a"), ("AVX512", "a"), ("AVX2", "b"), ("AVX2", "a")):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setattr(compiling, "processor_name", lambda name=name: name)
        compiled_or_eager(random_model("modern", **SMALL).train(), (3, 16))
        folders.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(folders) == 3
    assert all(Path(each).is_relative_to(tmp_path) for each in folders)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the user's own")
    compiled_or_eager(random_model("modern", **SMALL).train(), (3, 16))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "the user's own"


def test_only_training_batches_of_the_one_shape_are_compiled(
    monkeypatch: pytest.MonkeyPatch, random_model: Callable[..., GPT]
) -> None:
    seen: list[tuple[int, ...]] = []

    def compiled(forward: Callable[..., torch.Tensor], **_: Any) -> Callable[..., torch.Tensor]:
        def run(ids: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(ids.shape))
            return forward(ids)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    model = random_model("modern", **SMALL).train()
    trunk = compiled_or_eager(model, (3, 16))
    ids = torch.zeros(3, 16, dtype=torch.long)
    trunk(ids), trunk(ids[:2]), trunk(ids[:, :4])
    model.eval()
    trunk(ids)
    assert seen == [(3, 16), (3, 16)], "tried out once, then used once"


def test_memory_that_runs_out_is_left_to_the_loop(
    monkeypatch: pytest.MonkeyPatch, random_model: Callable[..., GPT]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        compiled_or_eager(random_model("modern", **SMALL), (3, 16))


WITHOUT_COMPILER = """
import torch
from hornbook.base.machine import choose_machine
from hornbook.model import compile as compiling
from hornbook.model.compile import compiled_block, compiled_or_eager, use_in_blocks
from hornbook.model.config import modern
from hornbook.model.init import untrained

print(choose_machine("cpu").can_compile)
model = untrained(modern(vocab_size=32, context=16, n_layer=1, n_head=2, n_embd=16)).train()
ids = torch.arange(16)[None]
print(torch.equal(compiled_or_eager(model, (1, 16))(ids), model.hidden(ids)))
"""


@long
def test_a_machine_without_a_compiler_goes_on_eager(tmp_path: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC", "PATH")}
    bare |= {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=bare, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["False", "True"]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: torch.compile does not work")]
    assert len(warnings) == 1
