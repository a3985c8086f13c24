"""How a model begins.

In: a config.  Out: a model with the numbers from which training begins, or without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import swap_tensors

from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT


def untrained(config: ModelConfig, wanted: Callable[[str], bool] | None = None) -> GPT:
    """A model before its first step; where only some of its parameters are wanted, the others are on the meta device,
    and never was there memory for more than one of them."""
    if wanted is None:
        model = GPT(config)
        INITS[config.init](model)
        return model
    with _HowItBegan() as began:
        model = GPT(config)
        INITS[config.init](model)
    for name, parameter in model.named_parameters():
        if wanted(name) and parameter.is_meta:
            swap_tensors(parameter, nn.Parameter(began.again(parameter)))
        elif not wanted(name) and not parameter.is_meta:
            swap_tensors(parameter, nn.Parameter(torch.empty_like(parameter, device="meta")))
    return model


def init_gpt2(model: GPT) -> None:
    """N(0, 0.02) everywhere; what writes to the stream is divided by the root of how often it is written to."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / math.sqrt(2 * model.config.n_layer) if writes else 0.02
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def init_modern(model: GPT) -> None:
    """Matrices uniform by fan-in, what writes to the stream zero, so that each block begins as the identity."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            nn.init.zeros_(parameter)
        elif name == "head.weight":
            nn.init.normal_(parameter, std=0.001)
        elif parameter.ndim == 2 and name.startswith(("embedding.", "positions.")):
            nn.init.normal_(parameter, std=0.02 if model.config.tied else 1.0)
        elif name == "bigrams.weight":
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            bound = math.sqrt(3 / model.config.n_embd)
            nn.init.uniform_(parameter, -bound, bound)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


# As torch's layers begin by themselves: embeddings N(0, 1), matrices and biases uniform by fan-in.
INITS = {"torch": lambda model: None, "gpt2": init_gpt2, "modern": init_modern}

DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


FILLS = (*DRAWS, torch.Tensor.zero_, torch.Tensor.fill_)


class _HowItBegan(TorchFunctionMode):
    """What is drawn is forgotten at once, but not how to draw it again."""

    def __init__(self) -> None:
        super().__init__()
        self._filled: dict[int, tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], object]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty:
            return func(*args, **named | {"device": "meta"})
        if func not in FILLS:
            return func(*args, **named)
        place = args[0] if args else named.pop("tensor")

        def fill(tensor: torch.Tensor) -> object:
            return func(tensor, *args[1:], **named)

        if not place.is_meta:
            return fill(place)
        self._filled[id(place)] = (place, torch.get_rng_state(), fill)
        if func in DRAWS:  # as many numbers, for the sake of those that come after
            fill(torch.empty(place.shape))
        return place

    @torch.no_grad()
    def again(self, place: torch.Tensor) -> torch.Tensor:
        _, state, fill = self._filled[id(place)]
        tensor = torch.empty(place.shape)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            fill(tensor)
        return tensor


class _NothingDrawn(TorchFunctionMode):
    """On the meta device there is nothing to fill in; torch takes two seconds to learn how not to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        return (args[0] if args else named["tensor"]) if func in DRAWS else func(*args, **named)


def outline(config: ModelConfig) -> GPT:
    """A model without its numbers, on the meta device, where billions of parameters take no memory."""
    with torch.device("meta"), _NothingDrawn():
        return GPT(config)
