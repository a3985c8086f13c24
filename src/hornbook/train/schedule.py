"""The learning rate over a run.

In: the step, and the progress from 0 to 1.  Out: a factor for every learning rate.
"""

from __future__ import annotations

import math

from hornbook.train.config import ScheduleConfig


def lr_factor(config: ScheduleConfig, step: int, progress: float) -> float:
    """Step 0 is the first; progress is the share of the run that is done before it."""
    progress = min(max(progress, 0.0), 1.0)
    rise = min((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    if config.kind == "trapezoid":
        fall = min((1 - progress) / config.decay_share, 1.0)
    elif config.kind == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.kind == "drop":
        assert config.drop_step is not None
        fall = float(step < config.drop_step)
    else:
        return rise
    return rise * (config.final_share + (1 - config.final_share) * fall)
