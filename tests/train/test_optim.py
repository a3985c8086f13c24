"""Which parameter is changed how, and that its state comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.model.loss import cross_entropy_sum
from hornbook.train.config import OptimConfig
from hornbook.train.optim import Optimizer, clip_grad_norm, grouped
from hornbook.train.optim_config import OPTIMIZERS

GO, STAY = torch.zeros(()), torch.ones(())
SIZES: dict[str, Any] = {"vocab_size": 19, "context": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}


def model_of(config: ModelConfig) -> GPT:
    torch.manual_seed(0)
    return untrained(config).train()


def take_gradients(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 19, (4, 9), generator=generator)
    model.zero_grad()
    (cross_entropy_sum(model.hidden(ids[:, :-1]), model.head.weight, ids[:, 1:]) / 32).backward()


def weights(model: GPT) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


CONFIG = OptimConfig(lr=0.003, embedding_lr=0.3, matrix_lr=0.02, weight_decay=0.1)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        # Muon: the matrices of the blocks; AdamW without decay for all else.
        ("muon", "blocks.0.attention.query.weight", ("muon", 0.02, 0.1)),
        ("muon", "blocks.1.mlp.down.weight", ("muon", 0.02, 0.1)),
        ("muon", "blocks.0.attention_norm.weight", ("adamw", 0.003, 0.0)),
        ("muon", "embedding.weight", ("adamw", 0.3, 0.0)),
        ("muon", "head.weight", ("adamw", 0.003, 0.0)),
        ("muon", "norm.weight", ("adamw", 0.003, 0.0)),
        # AdamW for all: matrices and embeddings decay, what sets scales and shifts does not.
        ("adamw", "blocks.0.attention.query.weight", ("adamw", 0.003, 0.1)),
        ("adamw", "embedding.weight", ("adamw", 0.3, 0.1)),
        ("adamw", "head.weight", ("adamw", 0.003, 0.1)),
        ("adamw", "blocks.0.attention_norm.weight", ("adamw", 0.003, 0.0)),
        ("adamw", "norm.weight", ("adamw", 0.003, 0.0)),
    ],
)
def test_each_role_has_its_part_rate_and_decay(kind: str, name: str, expected: tuple[str, float, float]) -> None:
    parameter = dict(model_of(modern(**SIZES)).named_parameters())[name]
    group = OPTIMIZERS[kind](name, parameter.ndim, CONFIG)
    assert (group.rule, group.lr, group.weight_decay) == expected


def test_one_knob_scales_every_rate() -> None:
    model, config = model_of(modern(**SIZES)), CONFIG.with_(lr_scale=2.0)
    doubled = CONFIG.with_(lr=0.006, embedding_lr=0.6, matrix_lr=0.04)
    assert list(grouped(model, config)) == list(grouped(model, doubled)) != list(grouped(model, CONFIG))


@pytest.mark.parametrize("config", [classic(**SIZES), modern(**SIZES)], ids=["classic", "modern"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_parameter_moves(kind: str, config: ModelConfig) -> None:
    model = model_of(config.with_(init="gpt2"))
    optimizer = Optimizer(model, CONFIG.with_(kind=kind))
    before = weights(model)
    take_gradients(model, 1)
    optimizer.step(1.0, GO)
    still = {name for name, now in model.named_parameters() if torch.equal(before[name], now)}
    # A key's bias moves all scores of a query alike, which softmax does not see: its gradient is about nothing.
    assert {name for name in still if not name.endswith("key.bias")} == set()


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_adamw_is_torchs_own_with_the_described_groups(factor: float) -> None:
    """torch's plain implementation in float64; ours is the fused one in float32."""
    ours, theirs = model_of(classic(**SIZES)), model_of(classic(**SIZES)).double()
    config = CONFIG.with_(kind="adamw", beta1=0.8, beta2=0.9, eps=1e-6)
    decay = {True: 0.1, False: 0.0}
    reference = torch.optim.AdamW(
        [
            {
                "params": [p],
                "lr": (0.3 if n == "embedding.weight" else 0.003) * factor,
                "weight_decay": decay[p.ndim == 2],
            }
            for n, p in theirs.named_parameters()
        ],
        betas=(0.8, 0.9),
        eps=1e-6,
        foreach=False,
        fused=False,
    )
    optimizer = Optimizer(ours, config)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.double()
        optimizer.step(factor, GO)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.detach().double(), other.detach(), atol=1e-5, rtol=1e-5)


def random_steps(ours: GPT, theirs: list[torch.Tensor], steps: int = 5) -> Iterator[None]:
    """The same gradients for a model and for copies of its parameters, at half of the rate."""
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        for mine, other in zip(ours.parameters(), theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.double()
        yield


def assert_alike(ours: GPT, theirs: Iterable[torch.Tensor]) -> None:
    for mine, other in zip(ours.parameters(), theirs, strict=True):
        torch.testing.assert_close(mine.detach().double(), other.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs_own(momentum: float, nesterov: bool) -> None:
    """torch's plain implementation in float64; ours is the fused one in float32."""
    ours, theirs = model_of(classic(**SIZES)), model_of(classic(**SIZES)).double()
    config = CONFIG.with_(kind="sgd", embedding_lr=None, lr=0.1, momentum=momentum, nesterov=nesterov)
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim == 2 else 0.0} for p in theirs.parameters()]
    reference = torch.optim.SGD(groups, lr=0.05, momentum=momentum, nesterov=nesterov, foreach=False, fused=False)
    optimizer = Optimizer(ours, config)
    for _ in random_steps(ours, list(theirs.parameters())):
        optimizer.step(0.5, GO)
        reference.step()
    assert_alike(ours, theirs.parameters())


def test_a_look_ahead_needs_a_momentum() -> None:
    with pytest.raises(UserError, match=r"--nesterov: looks ahead along a momentum"):
        CONFIG.with_(kind="sgd", momentum=0.0, nesterov=True)


def test_lion_is_its_published_formula() -> None:
    """Algorithm 2 of "Symbolic Discovery of Optimization Algorithms", in numpy's float64."""
    ours, beta1, beta2, lr = model_of(classic(**SIZES)), 0.9, 0.99, 0.05
    theirs = [p.detach().double().clone() for p in ours.parameters()]
    momenta = [np.zeros(p.shape) for p in theirs]
    optimizer = Optimizer(ours, CONFIG.with_(kind="lion", embedding_lr=None, lr=0.1, beta1=beta1, beta2=beta2))
    for _ in random_steps(ours, theirs):
        optimizer.step(0.5, GO)
        for place, weight in enumerate(theirs):
            assert weight.grad is not None
            gradient, values, decay = weight.grad.numpy(), weight.numpy(), 0.1 if weight.ndim == 2 else 0.0
            update = np.sign(beta1 * momenta[place] + (1 - beta1) * gradient)
            values -= lr * (update + decay * values)
            momenta[place] = beta2 * momenta[place] + (1 - beta2) * gradient
    assert_alike(ours, theirs)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(kind: str) -> None:
    config = CONFIG.with_(kind=kind)
    left_alone, stopped = model_of(modern(**SIZES)), model_of(modern(**SIZES))
    first, second = Optimizer(left_alone, config), Optimizer(stopped, config)
    for seed in range(3):
        for model, optimizer in ((left_alone, first), (stopped, second)):
            take_gradients(model, seed)
            optimizer.step(0.5, GO)
    saved = {name: tensor.clone() for name, tensor in second.tensors().items()}
    resumed = Optimizer(stopped, config)
    resumed.restore(dict(saved))
    assert {name: tensor.tolist() for name, tensor in resumed.tensors().items()} == {
        name: tensor.tolist() for name, tensor in saved.items()
    }
    for seed in range(3, 6):
        for model, optimizer in ((left_alone, first), (stopped, resumed)):
            take_gradients(model, seed)
            optimizer.step(0.5, GO)
    for name, weight in weights(left_alone).items():
        assert torch.equal(weight, weights(stopped)[name]), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("harm", ["unknown", "missing", "misshapen"])
def test_the_state_of_another_model_is_refused(kind: str, harm: str) -> None:
    model = model_of(modern(**SIZES))
    optimizer = Optimizer(model, CONFIG.with_(kind=kind))
    take_gradients(model, 0)
    optimizer.step(1.0, GO)
    for name in list(optimizer.tensors()) if harm != "unknown" else ["nobody"]:
        state = dict(optimizer.tensors())
        if harm == "unknown":
            state[name] = torch.zeros(1)
        elif harm == "missing":
            del state[name]
        elif state[name].ndim == 0:
            continue
        else:
            state[name] = state[name][:1, :1] if state[name].ndim == 2 else state[name][:1]
        with pytest.raises((KeyError, ValueError)):
            Optimizer(model, CONFIG.with_(kind=kind)).restore(state)


@pytest.mark.parametrize("longest", [0.01, 1.0, 1e6, None])
def test_clipping_is_torchs_own(longest: float | None) -> None:
    ours, theirs = model_of(modern(**SIZES)), model_of(modern(**SIZES))
    for model in (ours, theirs):
        take_gradients(model, 7)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), longest or float("inf"))
    length = clip_grad_norm(list(ours.parameters()), longest)
    torch.testing.assert_close(length, expected)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert longest is None or torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()]) <= longest * 1.0001


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_first_step_that_is_left_out_leaves_a_state_that_can_be_saved(kind: str) -> None:
    model = model_of(modern(**SIZES))
    optimizer = Optimizer(model, CONFIG.with_(kind=kind))
    take_gradients(model, 0)
    next(model.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
    before = weights(model)
    optimizer.step(1.0, STAY)
    assert all(torch.equal(before[name], now) for name, now in model.named_parameters())
    assert not any(tensor.any() for tensor in optimizer.tensors().values())
    Optimizer(model, CONFIG.with_(kind=kind)).restore(optimizer.tensors())
