"""Keys and values of what was read, so that a new token costs no more than itself.

In: a model's sizes, and how many texts at once.  Out: a cache to give the model with their newest tokens.
"""

from __future__ import annotations

import torch

from hornbook.model.config import ModelConfig
from hornbook.model.layers import id_before


class KVCache:
    """Keys and values of the tokens seen so far, for every layer: (B, K, context, D) each. A row is one sequence, and
    each has a length of its own; every row of a part gets the same number of new tokens at a time."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.kv_heads, config.context, config.width_of_head)
        # Zeros: what a longer neighbour makes visible of a row gets no weight, but no weight times a NaN is a NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long, device="cpu")
        self.last_ids = torch.full((batch, 1), -1, device=device)  # where pairs of neighbours matter
        self.end = 0  # how many tokens the longest row holds with its newest
        self.mask: torch.Tensor | None = None  # (B, 1, T, S), where rows differ in length
        self.places: torch.Tensor  # of the newest: (T,), or (B, T) where rows differ
        self.rows: torch.Tensor  # (B, 1)

    def part(self, first: int, last: int) -> KVCache:
        """The rows from `first` up to `last`: the same memory, so that what is done to them is done to the whole."""
        part = KVCache.__new__(KVCache)
        part.keys, part.values = self.keys[:, first:last], self.values[:, first:last]
        part.lengths, part.last_ids = self.lengths[first:last], self.last_ids[first:last]
        part.end, part.mask = 0, None
        return part

    def begin(self, ids: torch.Tensor) -> None:
        """Before the first layer: where the newest (B, T) will stand, and what they may look at."""
        shortest, longest, device = int(self.lengths.min()), int(self.lengths.max()), self.keys.device
        self.mask, self.end = None, longest + ids.shape[1]
        self.places = torch.arange(shortest, shortest + ids.shape[1], device=device)
        if shortest != longest:
            self.places = self.places + (self.lengths - shortest).to(device)[:, None]
            self.rows = torch.arange(len(self.places), device=device)[:, None]
            later = torch.arange(self.end, device=device) > self.places[:, None, :, None]
            # Added to scores: torch would make this of a mask of booleans in every layer anew.
            self.mask = torch.zeros(later.shape, device=device, dtype=self.keys.dtype).masked_fill_(later, -torch.inf)

    def previous(self, ids: torch.Tensor) -> torch.Tensor:
        """The id before each of the newest, (B, T)."""
        return id_before(ids, self.last_ids)

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the newest in place, and hand back all, in the cache's number type."""
        keys, values = keys.to(self.keys.dtype), values.to(self.values.dtype)
        if self.mask is None:
            start = self.end - keys.shape[2]
            self.keys[layer, :, :, start : self.end], self.values[layer, :, :, start : self.end] = keys, values
        else:
            self.keys[layer].transpose(1, 2)[self.rows, self.places] = keys.transpose(1, 2)
            self.values[layer].transpose(1, 2)[self.rows, self.places] = values.transpose(1, 2)
        return self.keys[layer, :, :, : self.end], self.values[layer, :, :, : self.end]

    def advance(self, ids: torch.Tensor) -> None:
        """After the last layer: ids (B, T) were seen."""
        self.lengths += ids.shape[1]
        self.last_ids[:] = ids[:, -1:]

    def shorten(self, row: int, by: int, last_id: int) -> None:
        """Take back the newest tokens of a row; `last_id` is the newest that stays."""
        self.lengths[row] -= by
        self.last_ids[row] = last_id

    def forget(self, row: int) -> None:
        self.lengths[row] = 0
        self.last_ids[row] = -1

    def copy_rows(self, sources: list[int], first: int = 0) -> None:
        """Rows from `first` on become copies of `sources`."""
        last, length = first + len(sources), int(self.lengths[sources].max())
        self.keys[:, first:last, :, :length] = self.keys[:, sources, :, :length]
        self.values[:, first:last, :, :length] = self.values[:, sources, :, :length]
        self.lengths[first:last] = self.lengths[sources]
        self.last_ids[first:last] = self.last_ids[sources]
