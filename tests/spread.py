"""Weights that hide nothing."""

from __future__ import annotations

from typing import TypeVar

import torch

M = TypeVar("M", bound=torch.nn.Module)


def spread(model: M, std: float = 0.15, seed: int = 0) -> M:
    """Every weight drawn at random: no zeros, no norm at one. The model is ready to speak."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model.eval()
