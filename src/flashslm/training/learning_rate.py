"""Learning rate: a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from flashslm.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up over `warmup_steps`, then cosine to `min_learning_rate_ratio` of the peak at the last step.

    `step` counts from 0. A ratio of 1 gives the warm-up-stable schedule.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    ratio = config.min_learning_rate_ratio
    return config.learning_rate * (ratio + (1 - ratio) * cosine)
