"""A metric item by item: what its standard error and a paired comparison of two models need."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from flashslm.statistics import (
    Difference,
    mcnemar,
    paired_bootstrap,
    ratio_standard_error,
    standard_error,
)

MAX_NATS = 709.0  # a model that diverged may lose more; its perplexity stays a number that can be compared
ITEMS_FILE = "items.json"


class MetricItems(BaseModel):
    """The metric is sum(totals) / sum(weights) over its items (documents, questions, needles), or e to that power.

    `items_sha256` says which items they are, and how they were read or asked: models compare only on the same ones.
    """

    model_config = ConfigDict(frozen=True)

    totals: tuple[float, ...]
    weights: tuple[float, ...] = ()  # () = every item weighs 1
    scale: Literal["linear", "exponential"] = "linear"
    higher_is_better: bool = True
    items_sha256: str

    @property
    def mean(self) -> float:
        return math.fsum(self.totals) / math.fsum(self.item_weights)

    @property
    def item_weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.totals)

    @property
    def value(self) -> float:
        return math.exp(min(self.mean, MAX_NATS)) if self.scale == "exponential" else self.mean

    @property
    def standard_error(self) -> float | None:
        """Of `value`; None for a single item. That of a power of e follows from its derivative."""
        error = ratio_standard_error(self.totals, self.weights) if self.weights else standard_error(self.totals)
        error *= self.value if self.scale == "exponential" else 1.0
        return error if math.isfinite(error) else None

    def difference_from(self, other: "MetricItems") -> Difference:
        """This less the other, on `mean`'s scale. Raises ValueError for other items."""
        if self.items_sha256 != other.items_sha256:
            raise ValueError("the two were measured on different items")
        if not self.weights and {*self.totals, *other.totals} <= {0.0, 1.0}:
            return mcnemar(other.totals, self.totals)
        return paired_bootstrap(other.totals, self.totals, self.item_weights)

    def interval_beside(self, other: "MetricItems") -> tuple[float, float, Difference]:
        """Where `value` may lie, given the other's (the paired interval's ends), and the difference."""
        found = self.difference_from(other)
        ends = (found.low, found.high)
        if self.scale == "exponential":
            low, high = (other.value * math.exp(min(end, MAX_NATS)) for end in ends)
        else:
            low, high = (other.value + end for end in ends)
        return low, high, found


def accuracy_items(right: Iterable[bool], items_sha256: str) -> MetricItems:
    """Of questions that are answered or not."""
    return MetricItems(totals=tuple(map(float, right)), items_sha256=items_sha256)


def identity(*parts: bytes) -> str:
    """The digest of what items are."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def numbers(items: Mapping[str, MetricItems]) -> dict[str, float]:
    """Every metric's value and, where there is one, its standard error under the name with `_stderr`."""
    found = {}
    for name, of in items.items():
        found[name] = of.value
        if (error := of.standard_error) is not None and np.isfinite(error):
            found[f"{name}_stderr"] = error
    return found


def dump(items: Mapping[str, MetricItems]) -> dict[str, object]:
    """As JSON values, which `load` reads."""
    return {name: of.model_dump(mode="json") for name, of in items.items()}


def load(values: Mapping[str, object]) -> dict[str, MetricItems]:
    return {name: MetricItems.model_validate(of) for name, of in values.items()}
