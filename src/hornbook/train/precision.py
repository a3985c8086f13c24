"""Compute in bf16, learn in fp32.

In: the model whose weights are learned, in fp32.  Out: a working copy in the machine's fast numbers, cast once a step
rather than at every layer, and its gradients, added up in fp32.
"""

from __future__ import annotations

import copy

import torch

from hornbook.model.compile import Trunk
from hornbook.model.gpt import GPT


class WorkingCopy:
    def __init__(self, master: GPT, dtype: torch.dtype) -> None:
        self._masters: list[torch.Tensor] = list(master.parameters())
        self.shares_weights = dtype == torch.float32
        self.model = master if self.shares_weights else copy.deepcopy(master).to(dtype)
        self.trunk: Trunk = self.model  # compiled, where that pays
        self._workers: list[torch.Tensor] = list(self.model.parameters())

    def __call__(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of a micro-batch."""
        return self.model.loss(self.trunk(ids), targets)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the newest weights, and forget all gradients."""
        if not self.shares_weights:
            torch._foreach_copy_(self._workers, self._masters)
        for parameter in self._masters + self._workers:
            parameter.grad = None

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the gradients of a micro-batch to the masters'."""
        if self.shares_weights:
            return
        for master, worker in zip(self._masters, self._workers, strict=True):
            assert worker.grad is not None
            master.grad = worker.grad.float() if master.grad is None else master.grad.add_(worker.grad)
            worker.grad = None
