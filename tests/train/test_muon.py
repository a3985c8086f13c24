"""Muon, compared with numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hornbook.train.config import OptimConfig
from hornbook.train.muon import Muon, orthogonalised
from hornbook.train.optim_config import Group

Matrix = NDArray[np.float64]
GO, STAY = torch.zeros(()), torch.ones(())


def a_matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 96), (1, 16), (16, 1)], ids=str)
def test_every_direction_is_made_about_equally_long(shape: tuple[int, int]) -> None:
    """The quintics' own band is 0.73 to 1.27 for what is not tiny; the directions are those of U V^T."""
    matrix = a_matrix(*shape)
    U, lengths, Vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    result = orthogonalised(matrix[None])[0].double().numpy()
    along = U.T @ result @ Vt.T
    clear = lengths > 0.02 * np.linalg.norm(lengths)
    assert np.all(np.abs(np.diag(along)[clear] - 1) < 0.28)
    assert np.all(np.diag(along) > -1e-3)
    np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-4)


def test_stacked_matrices_are_treated_one_by_one() -> None:
    stack = torch.stack([a_matrix(24, 16, seed) * 10**seed for seed in range(3)])
    for matrix, together in zip(stack, orthogonalised(stack), strict=True):
        torch.testing.assert_close(orthogonalised(matrix[None])[0], together, atol=1e-5, rtol=1e-4)


def test_the_length_of_the_gradient_does_not_matter() -> None:
    matrix = a_matrix(24, 16)
    torch.testing.assert_close(orthogonalised(matrix[None]), orthogonalised(1000 * matrix[None]), atol=1e-4, rtol=1e-3)


def test_a_gradient_of_nothing_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(2, 8, 8)).any()


def described(weight: Matrix, gradients: list[Matrix], momentum: float, lr: float, decay: float) -> Matrix:
    """The update as Keller Jordan wrote it down, in float64: an exponential average with Nesterov's look ahead,
    quintic steps (here the best three from 0.01 on), the length set by the shape, weights decayed by themselves."""
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        x = momentum * average + (1 - momentum) * gradient
        x = x / np.linalg.norm(x)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        for a, b, c in ((8.0934, -23.6205, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526)):
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
        x = x.T if tall else x
        weight = weight * (1 - lr * decay) - lr * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5 * x
    return weight


def muon_of(named: dict[str, torch.nn.Parameter]) -> Muon:
    return Muon(named, Group("muon", 1.0, 0.2), OptimConfig(momentum=0.9), torch.float32)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)], ids=str)
def test_steps_equal_the_described_update(shape: tuple[int, int]) -> None:
    parameter = torch.nn.Parameter(a_matrix(*shape))
    gradients = [a_matrix(*shape, seed=seed) for seed in (1, 2, 3)]
    expected = described(
        parameter.detach().double().numpy(), [g.double().numpy() for g in gradients], momentum=0.9, lr=0.05, decay=0.2
    )
    muon = muon_of({"w": parameter})
    for gradient in gradients:
        parameter.grad = gradient.clone()
        muon.step(0.05, GO)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=2e-5)


def test_a_step_that_is_to_be_left_out_changes_nothing() -> None:
    named = {name: torch.nn.Parameter(a_matrix(8, 8, seed)) for seed, name in enumerate("ab")}
    muon = muon_of(named)
    for parameter in named.values():
        parameter.grad = torch.ones(8, 8)
    muon.step(0.1, GO)
    before = [each.detach().clone() for each in (*named.values(), *muon.state().values())]
    for parameter in named.values():
        parameter.grad = torch.full((8, 8), float("nan"))
    muon.step(0.1, STAY)
    for was, now in zip(before, (*named.values(), *muon.state().values()), strict=True):
        assert torch.equal(was, now)


def test_gradients_too_small_for_fp16_are_made_orthogonal_in_it() -> None:
    matrix = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))[None] * 1e-8
    exact, rough = orthogonalised(matrix), orthogonalised(matrix, torch.float16)
    assert (exact - rough).norm() < 0.01 * exact.norm()


def test_bfloat16_products_come_close() -> None:
    matrix = a_matrix(64, 32)[None]
    exact, rough = orthogonalised(matrix), orthogonalised(matrix, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert (exact - rough).norm() < 0.05 * exact.norm()
