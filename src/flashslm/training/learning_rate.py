"""Learning rate: a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from flashslm.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up over `warmup_steps`, then the schedule to `min_learning_rate_ratio` of the peak at the last step.

    `step` counts from 0. The decay of `warmup_stable_decay` (Hu et al. 2024, arXiv 2404.06395) has the form
    1 - sqrt(progress), which Hägele et al. 2024 (arXiv 2405.18392) found better than a linear one.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    ratio = config.min_learning_rate_ratio
    return config.learning_rate * (ratio + (1 - ratio) * _share_above_the_minimum(step, config))


def _share_above_the_minimum(step: int, config: TrainingConfig) -> float:
    if config.schedule == "warmup_stable_decay":
        decayed = step - (config.steps - config.decay_steps) + 1
        return 1 - math.sqrt(max(0, decayed) / config.decay_steps)
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
