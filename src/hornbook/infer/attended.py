"""What tokens looked at: the weights of attention, by layer and head.

In: a model, and the ids of one window of its context.  Out: weights (L, H, T, S) of the last T of its S tokens: how
much of each token's value came into each of them, which is 1 in sum.
The fused kernels never form them, so they are computed anew where somebody asks, at the cost of reading the window
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.model.gpt import GPT
from hornbook.model.layers import id_before


@dataclass(frozen=True)
class Attended:
    ids: list[int]
    weights: NDArray[np.float32]  # (L, H, T, S)


class Witness:
    """A Cache that holds nothing, and sees every layer's queries and keys pass by."""

    positions: torch.Tensor
    mask: torch.Tensor | None = None  # all up to themselves

    def __init__(self, rows: int, scale: float) -> None:
        self.rows, self.scale = rows, scale
        self.weights: list[torch.Tensor] = []  # of each layer, (H, T, S)

    def begin(self, ids: torch.Tensor) -> None:
        self.positions = torch.arange(ids.shape[1], device=ids.device)

    def previous(self, ids: torch.Tensor) -> torch.Tensor:
        return id_before(ids)

    def extend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        newest = queries[:, :, -self.rows :].float()
        of_head = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1).float()
        later = self.positions[-self.rows :, None] < self.positions
        scores = (newest @ of_head.mT * self.scale).masked_fill(later, -torch.inf)
        self.weights.append(scores.softmax(dim=-1)[0])
        return queries, keys, values

    def advance(self, ids: torch.Tensor) -> None:
        """There is nothing to keep."""


@torch.inference_mode()
def attended_by(model: GPT, ids: Sequence[int], last: int | None = None) -> Attended:
    """Of the `last` tokens, or of all."""
    witness = Witness(last or len(ids), model.config.scale_of_attention)
    model.hidden(torch.tensor([list(ids)], device=model.embedding.weight.device), witness)
    return Attended(list(ids), torch.stack(witness.weights).cpu().numpy())
