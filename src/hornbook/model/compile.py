"""torch.compile where it works, eager where it does not.

In: a model, and the shape of its training batches.  Out: a callable that gives the hidden states. Compilation must
never stop a training run, nor change what it computes: any failure is one warning, and eager goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hornbook.base.console import say, warn
from hornbook.base.files import home
from hornbook.base.machine import processor_name
from hornbook.model.attention import Cache
from hornbook.model.gpt import GPT

Trunk = Callable[..., torch.Tensor]
# Far more than what bf16 and another order of sums come to, far less than what a wrong kernel does.
TOLERANCE = 0.05


def compiled_or_eager(model: GPT, shape: tuple[int, int], quiet: bool = False) -> Trunk:
    """The model's way to its hidden states, compiled for batches of one shape and tried out forwards and backwards;
    other shapes run eager."""
    began = time.monotonic()
    vars(model).pop("hidden", None)  # which was compiled for another shape
    eager: Trunk = model.hidden
    try:
        logging.getLogger("torch").setLevel(logging.ERROR)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_folder_of_this_processor()))
        compiled = torch.compile(eager, dynamic=False)
        ids = torch.arange(shape[0] * shape[1], device=next(model.parameters()).device) % (model.config.vocab_size or 1)
        _check(compiled, model, ids.view(shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warn(f"torch.compile does not work here, going on without ({type(error).__name__}: {str(error)[:80]})")
        return eager
    finally:
        model.zero_grad(set_to_none=True)
    if not quiet:
        say(f"compiled in {time.monotonic() - began:.0f} s")

    def trunk(ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        fits = cache is None and tuple(ids.shape) == shape and model.training
        return compiled(ids) if fits else eager(ids, cache)

    return trunk


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
