"""A text as numbers: what a model holds of it before it reads off the next token.

In: a model, and ids.  Out: an `Embedding`: for each token the state after the last norm, which the head would read, and
their mean. A text longer than the context is cut into windows of it, each of which is read by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.model.gpt import GPT

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embedding:
    ids: list[int]
    per_token: Floats  # (T, C)
    """Of each id, which knows those before it alone."""
    pooled: Floats  # (C,)


def embedding_of(model: GPT, ids: list[int]) -> Embedding:
    device, context = model.embedding.weight.device, model.config.context
    with torch.inference_mode():
        windows = [ids[first : first + context] for first in range(0, len(ids), context)]
        states = torch.cat([model.hidden(torch.tensor([window], device=device))[0].float() for window in windows]).cpu()
    return Embedding(ids, states.numpy(), states.mean(dim=0).numpy())
