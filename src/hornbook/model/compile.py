"""torch.compile where it works, eager where it does not.

In: a model, and the shape of its training batches.  Out: a callable that gives the hidden states. Compilation must
never stop a training run: any failure is one warning, and eager goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from hornbook.base.console import say, warn
from hornbook.model.gpt import GPT

Trunk = Callable[[torch.Tensor], torch.Tensor]


def compiled_or_eager(model: GPT, shape: tuple[int, int], quiet: bool = False) -> Trunk:
    """The model's forward, compiled for batches of one shape and tried out forwards and backwards; other shapes run
    eager."""
    began = time.monotonic()
    try:
        logging.getLogger("torch").setLevel(logging.ERROR)
        compiled = torch.compile(model.forward, dynamic=False)
        ids = torch.zeros(shape, dtype=torch.long, device=next(model.parameters()).device)
        compiled(ids).float().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warn(f"torch.compile does not work here, going on without ({type(error).__name__}: {str(error)[:80]})")
        return model.forward
    finally:
        model.zero_grad(set_to_none=True)
    if not quiet:
        say(f"compiled in {time.monotonic() - began:.0f} s")

    def trunk(ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = compiled(ids) if tuple(ids.shape) == shape and model.training else model(ids)
        return hidden

    return trunk
