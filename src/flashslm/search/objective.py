"""Which of several trained designs is the better one: by the proxy loss alone, or with recall and latency besides."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from flashslm.search.hypervolume import by_hypervolume
from flashslm.search.trial import FinishedTrial

Objective = Literal["proxy_loss", "hypervolume"]
T = TypeVar("T")
LARGEST_LOSS_NATS = 700.0  # whose perplexity is a float; a diverged training may end beyond it


class Standing(NamedTuple):
    """What a design is judged by; `slot` decides where all else is equal."""

    loss_nats: float
    latency_ms: float
    slot: int
    recall_accuracy: float | None


def best_first(items: Sequence[T], standing: Callable[[T], Standing], objective: Objective) -> list[T]:
    """By loss, then latency; or by the hypervolume of perplexity, recall and latency (`by_hypervolume`)."""
    by_loss = sorted(items, key=lambda item: standing(item)[:3])
    if objective == "proxy_loss":
        return by_loss
    return [by_loss[i] for i in by_hypervolume([_point(standing(item)) for item in by_loss])]


def of_trial(trial: FinishedTrial) -> Standing:
    """Of a trial that was trained to the end."""
    return Standing(trial.loss_nats, trial.latency_ms, trial.slot, trial.recall_accuracy)


def _point(found: Standing) -> tuple[float, float, float]:
    """Perplexity, the share of wrong answers, latency: all minimised. Recall that was not measured counts as none."""
    return math.exp(min(found.loss_nats, LARGEST_LOSS_NATS)), 1.0 - (found.recall_accuracy or 0.0), found.latency_ms
