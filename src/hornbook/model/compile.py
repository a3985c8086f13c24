"""torch.compile where it works, eager where it does not.

In: a model, and the shape of its training batches.  Out: a callable that gives the hidden states; or, where blocks are
put together one by one to compute, one that does what a block does. Compilation must never stop a training run, nor
change what it computes: any failure is one warning, and eager goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hornbook.base.console import say, warn
from hornbook.base.files import home
from hornbook.base.machine import processor_name
from hornbook.model.attention import Cache
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT, Block
from hornbook.model.init import outline
from hornbook.model.positions import POSITIONS

Trunk = Callable[..., torch.Tensor]
# Far more than what bf16 and another order of sums come to, far less than what a wrong kernel does.
TOLERANCE = 0.05


def compiled_or_eager(model: GPT, shape: tuple[int, int]) -> Trunk:
    """The model's way to its hidden states, compiled for batches of one shape and tried out forwards and backwards;
    other shapes run eager."""
    vars(model).pop("hidden", None)  # which was compiled for another shape
    eager: Trunk = model.hidden
    try:
        with _compiling() as works:
            compiled = torch.compile(eager, dynamic=False)
            ids = torch.arange(shape[0] * shape[1], device=next(model.parameters()).device)
            _check(compiled, model, (ids % (model.config.vocab_size or 1)).view(shape))
    finally:
        model.zero_grad(set_to_none=True)
    if not works:
        return eager

    def trunk(ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        fits = cache is None and tuple(ids.shape) == shape and model.training
        return compiled(ids) if fits else eager(ids, cache)

    return trunk


def compiled_block(
    config: ModelConfig, shape: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Trunk | None:
    """What a block does with batches of one shape, compiled, to be called with the block first; tried out on blocks
    that belong to nobody. None where it does not work."""
    with _compiling() as works:
        compiled = torch.compile(Block.forward, dynamic=False)
        for block in {each.attention.value_share is None: each for each in _blocks_of(outline(config))}.values():
            block.to_empty(device=device).to(dtype).train()
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.normal_(std=0.02)
            _check_block(compiled, block, _what_it_reads(config, block, shape, device, dtype))
    return compiled if works else None


def use_in_blocks(model: GPT, compiled: Trunk, shape: tuple[int, int]) -> None:
    """Training batches of that shape go through what is compiled, all else through the blocks as they are. Whatever is
    hooked to a block is called around it."""
    for block in _blocks_of(model):
        block.forward = partial(_forward, block, compiled, shape)  # type: ignore[method-assign]


def _blocks_of(model: GPT) -> list[Block]:
    return [each for each in model.blocks if isinstance(each, Block)]


def _forward(
    block: Block, compiled: Trunk, shape: tuple[int, int], x: torch.Tensor, *more: Any, **named: Any
) -> torch.Tensor:
    fits = tuple(x.shape[:2]) == shape and block.training
    return compiled(block, x, *more, **named) if fits else Block.forward(block, x, *more, **named)


def _what_it_reads(
    config: ModelConfig, block: Block, shape: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Any, ...]:
    x, first = torch.randn(2, *shape, config.n_embd, device=device, dtype=dtype).unbind()
    values = None
    if block.attention.value_share is not None:
        values = torch.randn(*shape, config.kv_heads * config.width_of_head, device=device, dtype=dtype)
    rotation = POSITIONS[config.positions].rotation
    turn = rotation(config).to(device, dtype)(torch.arange(shape[1], device=device), x) if rotation else None
    return x, first, values, turn, None


def _check_block(compiled: Trunk, block: Block, given: tuple[Any, ...]) -> None:
    there = compiled(block, *given)
    there.float().mean().backward()
    if not all(each.grad.isfinite().all() for each in block.parameters() if each.grad is not None):
        raise ArithmeticError("its gradients are not finite")
    with torch.no_grad():
        added = block(*given) - given[0]
        if not block.dropout.p and not (there - given[0] - added).norm() < TOLERANCE * added.norm():
            raise ArithmeticError("it computes something else than the model")


@contextlib.contextmanager
def _compiling() -> Iterator[list[bool]]:
    """What fails here is told, and nothing is in the list then."""
    works, began = list[bool](), time.monotonic()
    logging.getLogger("torch").setLevel(logging.ERROR)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_folder_of_this_processor()))
    try:
        yield works
        works.append(True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warn(f"torch.compile does not work here, going on without ({type(error).__name__}: {str(error)[:80]})")
    else:
        say(f"compiled in {time.monotonic() - began:.0f} s")


def _check(compiled: Trunk, model: GPT, ids: torch.Tensor) -> None:
    """Forwards it must give what eager gives, where no dropout makes each its own; backwards, numbers."""
    hidden = compiled(ids)
    (hidden.float().sum() / ids.numel()).backward()  # a mere sum over so many tokens may be more than fp16 holds
    if not all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None):
        raise ArithmeticError("its gradients are not finite")
    if model.config.dropout == 0:
        with torch.no_grad():
            expected = model.hidden(ids)
        if not (hidden - expected).norm() < TOLERANCE * expected.norm():
            raise ArithmeticError("it computes something else than the model")


def _folder_of_this_processor() -> Path:
    """Kept, so that a second start compiles nothing; apart from other processors', because torch (2.13) takes what one
    with wider registers left there, and computes nonsense with it."""
    facts = f"{torch.__version__} {processor_name()} {torch.backends.cpu.get_cpu_capability()}"
    return home() / "compiled" / hashlib.sha256(facts.encode()).hexdigest()[:16]
