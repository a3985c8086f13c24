"""What each layer of a model does to what passes through it.

In: a model, and ids.  Out: for each place between blocks how large the stream is there, and for each attention and MLP
how large what it adds is beside what it reads: roots of mean squares. One that adds nothing is dead; a stream that
grows without end explodes.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch

from hornbook.model.gpt import GPT, Block


@torch.inference_mode()
def layer_sizes(model: GPT, ids: torch.Tensor) -> dict[str, list[float | None]]:
    """By the names under which metrics.jsonl has them."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)

    def enters(block: torch.nn.Module, given: tuple[Any, ...]) -> None:
        found["layer_rms"].append(_rms(given[0]))

    def adds(name: str, part: torch.nn.Module, given: tuple[Any, ...], added: torch.Tensor) -> None:
        found[name].append(_rms(added) / found["layer_rms"][-1])

    hooks = [model.norm.register_forward_pre_hook(enters)]
    for block in model.blocks:
        assert isinstance(block, Block)
        hooks.append(block.register_forward_pre_hook(enters))
        hooks.append(block.attention.register_forward_hook(partial(adds, "attention_added")))
        hooks.append(block.mlp.register_forward_hook(partial(adds, "mlp_added")))
    try:
        GPT.hidden(model, ids)  # not what was compiled in its place, which may pass over hooks
    finally:
        for hook in hooks:
            hook.remove()
    return {name: [_short(each) for each in torch.stack(sizes).tolist()] for name, sizes in found.items()}


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.float().square().mean().sqrt()


def _short(number: float) -> float | None:
    """None where it is not finite, for which JSON has no word."""
    return float(f"{number:.4g}") if abs(number) < float("inf") else None
