"""Compute in bf16 or fp16, learn in fp32.

In: the model whose weights are learned, in fp32.  Out: a working copy in the machine's fast numbers, cast once a step
rather than at every layer, and its gradients, added up in fp32. Fp16 is more precise than bf16, but its range is small,
about 6e-8 to 65,504: so there the loss is scaled before its gradients are computed, and they are scaled back in fp32.
"""

from __future__ import annotations

import copy

import torch

from hornbook.model.gpt import GPT

# As torch's GradScaler has it: where to begin, and after how many steps without an overflow to try twice as much.
FIRST_SCALE, STEPS_TO_GROW = 2.0**16, 2000
# A loss that is not scaled has no gradients to overflow by; those that still do are the model's, not the numbers'.
LEAST_SCALE = 1.0


class WorkingCopy:
    def __init__(self, master: GPT, dtype: torch.dtype) -> None:
        self._masters: list[torch.Tensor] = list(master.parameters())
        self.shares_weights = dtype == torch.float32
        self.model = master if self.shares_weights else copy.deepcopy(master).to(dtype)
        self._workers: list[torch.Tensor] = list(self.model.parameters())

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

    def take_gradients(self) -> list[torch.Tensor]:
        """Those of the masters, who have none from then on."""
        gradients = [each.grad for each in self._masters if each.grad is not None]
        for each in self._masters:
            each.grad = None
        return gradients

    def give_gradients(self, gradients: list[torch.Tensor]) -> None:
        for each, gradient in zip(self._masters, gradients, strict=True):
            each.grad = gradient


class LossScaler:
    """As large a scale as the gradients allow: one that overflows halves it, many steps without double it. All on the
    device and in place, so that nobody waits to know and a step can be recorded. Powers of two, so that scaling rounds
    nothing."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.scales = dtype == torch.float16
        self.scale = torch.full((), FIRST_SCALE if self.scales else 1.0, device=device)
        self._good_steps = torch.zeros((), device=device)

    @torch.no_grad()
    def unscale(self, model: GPT) -> None:
        """The model's gradients, added up in fp32, as they are without a scale."""
        if self.scales:
            gradients = [each.grad for each in model.parameters() if each.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.scale)

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """After a step whose gradients were not finite (`skipped` is 1), or were (0)."""
        if self.scales:
            self._good_steps.add_(1).mul_(1 - skipped)
            grows = (self._good_steps == STEPS_TO_GROW).float()
            self.scale.mul_((1 - skipped / 2) * (1 + grows)).clamp_(min=LEAST_SCALE)
            self._good_steps.mul_(1 - grows)

    def state(self) -> dict[str, float] | None:
        """What must be saved for training to go on."""
        return {"scale": self.scale.item(), "good_steps": self._good_steps.item()} if self.scales else None

    def restore(self, saved: dict[str, float] | None) -> None:
        if self.scales and saved is not None:
            self.scale.fill_(saved["scale"])
            self._good_steps.fill_(saved["good_steps"])
