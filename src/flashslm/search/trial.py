"""What the search passes around: a candidate to train and a finished trial."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

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

    @property
    def operators(self) -> str:
        return self.architecture.operators

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
            "digest": self.architecture.digest,
            "parent": self.parent,
            "mutation": self.mutation,
        }


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

    @property
    def succeeded(self) -> bool:
        return math.isfinite(self.loss_nats)

    def record(self) -> dict[str, Any]:
        """JSON values; the loss of a failed or pruned trial is null."""
        losses = {"losses_by_step": [list(pair) for pair in self.losses_by_step]}
        return asdict(self) | losses | {"loss_nats": self.loss_nats if self.succeeded else None}


# What a finished trial has of its candidate.
_OUTCOME = {"loss_nats", "losses_by_step", "pruned_at_step", "test_loss_nats", "recall_accuracy"}
CANDIDATE_FIELDS = tuple(field.name for field in fields(FinishedTrial) if field.name not in _OUTCOME)
