"""What the search passes around: a candidate to train and a finished trial."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from flashslm.config import OWN_SIZES, SizeChoice, sizes_in_words
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture

FINALIST = "finalist"  # the `mutation` of a trial that is trained again


class TrialFailed(RuntimeError):
    """One candidate's training failed for a reason that lies in the candidate, such as divergence or lack of memory."""


@dataclass(frozen=True)
class Candidate:
    """One numbered slot of the search, filled with an architecture."""

    slot: int
    cycle: int
    notation: str  # stages and repeats, e.g. (DFMF AFMF)x2 | (DFMF)x2
    architecture: Architecture
    latency_ms: float  # predicted by the table, per decoded token
    parent: int | None  # slot
    mutation: str  # seed, random, the kind of mutation, or finalist
    sizes: SizeChoice = OWN_SIZES

    @property
    def operators(self) -> str:
        return self.architecture.operators

    @cached_property
    def digest(self) -> str:
        return self.architecture.digest

    @property
    def label(self) -> str:
        """`DFMF w64`, and the sizes where they are searched: `DFMF w64, ffn_ratio 2`."""
        sizes = sizes_in_words(self.sizes.given())
        return f"{self.operators} w{self.architecture.hidden_size}" + (f", {sizes}" if sizes else "")

    def attributes(self) -> dict[str, Any]:
        """As the study keeps it; `FinishedTrial` reads it back."""
        return {
            "slot": self.slot,
            "cycle": self.cycle,
            "notation": self.notation,
            "operators": self.operators,
            "width": self.architecture.hidden_size,
            "latency_ms": self.latency_ms,
            "parameters": parameters(self.architecture)["total"],
            "digest": self.digest,
            "parent": self.parent,
            "mutation": self.mutation,
        } | _unless_empty(self.sizes.given())


@dataclass(frozen=True)
class FinishedTrial:
    """A trained candidate; a loss of infinity says that its training failed for good, or ended early (pruned)."""

    slot: int
    cycle: int
    notation: str
    operators: str
    width: int
    latency_ms: float
    parameters: int
    digest: str
    parent: int | None
    mutation: str
    loss_nats: float
    losses_by_step: tuple[tuple[int, float], ...] = ()  # validation losses in mid-training, in nats
    pruned_at_step: int | None = None  # 0: rejected by its recall
    test_loss_nats: float | None = None  # of a finalist
    recall_accuracy: float | None = None  # on synthetic tasks, where the recipe measures it
    sizes: Mapping[str, Any] = field(default_factory=dict)  # those that are searched, as SizeChoice.given has them

    @property
    def succeeded(self) -> bool:
        return math.isfinite(self.loss_nats)

    def record(self) -> dict[str, Any]:
        """JSON values; the loss of a failed or pruned trial is null, and sizes are there where they are searched."""
        values = asdict(self) | {"losses_by_step": [list(pair) for pair in self.losses_by_step]}
        del values["sizes"]
        return values | {"loss_nats": self.loss_nats if self.succeeded else None} | _unless_empty(self.sizes)


def _unless_empty(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A search without sizes has the records that it had before there were any."""
    return {"sizes": dict(sizes)} if sizes else {}


# What a finished trial has of its candidate, and sizes where they are searched.
_OUTCOME = {"loss_nats", "losses_by_step", "pruned_at_step", "test_loss_nats", "recall_accuracy"}
CANDIDATE_FIELDS = tuple(f.name for f in fields(FinishedTrial) if f.name not in _OUTCOME | {"sizes"})
