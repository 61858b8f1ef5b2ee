"""The best trials trained again with several seeds: the lowest of many noisy losses is partly luck.

New seeds, so that the loss by which a trial got here counts no more. The mean validation loss chooses, and the test
split, which has chosen nothing, judges. It judges the same trainings, so the winner's loss keeps a part of their luck.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from flashslm.config import SearchConfig, SizeChoice
from flashslm.models.architecture import Architecture
from flashslm.search.objective import Objective, Standing, best_first
from flashslm.search.result import ranked
from flashslm.search.trial import FINALIST, Candidate, FinishedTrial
from flashslm.statistics import t_difference
from flashslm.training.spec import TrainOutcome

Build = Callable[[FinishedTrial], Architecture]


class JudgedOutcome(TrainOutcome):
    """A training and its model's mean loss on the test split."""

    test_loss_nats: float


class Finalists:
    """Fills a slot with each finalist and seed, all of them at once: what `worker.run_worker` works off."""

    def __init__(
        self, config: SearchConfig, seed: int, trials: Sequence[FinishedTrial], budget_ms: float, build: Build
    ) -> None:
        self.seeds = tuple(seed + 1 + number for number in range(config.finalist_seeds))
        best = ranked(trials, budget_ms, config.objective)[: config.finalists]
        self._candidates = [
            Candidate(
                slot=rank * len(self.seeds) + number,
                cycle=0,
                notation=trial.notation,
                architecture=build(trial),
                latency_ms=trial.latency_ms,
                parent=trial.slot,
                mutation=FINALIST,
                sizes=SizeChoice(**trial.sizes),
            )
            for rank, trial in enumerate(best)
            for number in range(len(self.seeds))
        ]

    def propose(self, history: Iterable[FinishedTrial]) -> list[Candidate]:
        """Every run: none depends on another."""
        return list(self._candidates)

    def seed_of(self, candidate: Candidate) -> int:
        """The seed of weights and data order that a slot is trained with."""
        return self.seeds[candidate.slot % len(self.seeds)]


class Finalist(BaseModel):
    """Means over the seeds; `difference_nats` is the test loss less the winner's, paired by seed.

    The interval is Student's t at 95 %; there is none for the winner, with one seed, or where a run failed.
    """

    slot: int  # of the search's trial
    operators: str
    width: int
    latency_ms: float
    validation_losses_nats: list[float | None]  # by seed; null: that training failed
    test_losses_nats: list[float | None]
    validation_loss_nats: float | None
    test_loss_nats: float | None
    recall_accuracy: float | None = None  # of the search's trial
    sizes: dict[str, Any] = Field(default={}, exclude_if=lambda sizes: not sizes)  # those that are searched
    difference_nats: float | None = None
    difference_interval_nats: tuple[float, float] | None = None


def judge_finalists(
    runs: Sequence[FinishedTrial],
    objective: Objective = "proxy_loss",
    recall_of: Mapping[int, float | None] | None = None,
) -> list[Finalist]:
    """The finalists with their mean validation losses, the winner first; those of which a run failed come last.

    `recall_of` is the recall of the search's trials by slot.
    """
    by_trial: dict[int, list[FinishedTrial]] = {}
    for run in sorted(runs, key=lambda run: run.slot):
        assert run.parent is not None
        by_trial.setdefault(run.parent, []).append(run)
    made = [_summary(its_runs, (recall_of or {}).get(slot)) for slot, its_runs in by_trial.items()]
    whole = [finalist for finalist in made if finalist.validation_loss_nats is not None]
    failed = sorted((f for f in made if f.validation_loss_nats is None), key=lambda f: f.slot)
    found = best_first(whole, _standing, objective) + failed
    return [found[0], *(_beside(found[0], other) for other in found[1:])] if found else []


def _standing(finalist: Finalist) -> Standing:
    assert finalist.validation_loss_nats is not None
    return Standing(finalist.validation_loss_nats, finalist.latency_ms, finalist.slot, finalist.recall_accuracy)


def _summary(runs: Sequence[FinishedTrial], recall_accuracy: float | None) -> Finalist:
    succeeded = all(run.succeeded for run in runs)
    validation = [run.loss_nats if run.succeeded else None for run in runs]
    test = [run.test_loss_nats if run.succeeded else None for run in runs]
    means: dict[str, Any] = {"validation_loss_nats": None, "test_loss_nats": None}
    if succeeded:
        means = {
            "validation_loss_nats": statistics.fmean(run.loss_nats for run in runs),
            "test_loss_nats": statistics.fmean(run.test_loss_nats or 0.0 for run in runs),
        }
    first = runs[0]
    assert first.parent is not None
    return Finalist(
        slot=first.parent,
        operators=first.operators,
        width=first.width,
        latency_ms=first.latency_ms,
        validation_losses_nats=validation,
        test_losses_nats=test,
        recall_accuracy=recall_accuracy,
        sizes=dict(first.sizes),
        **means,
    )


def _beside(winner: Finalist, other: Finalist) -> Finalist:
    pairs = zip(other.test_losses_nats, winner.test_losses_nats, strict=True)
    differences = [mine - its for mine, its in pairs if mine is not None and its is not None]
    if other.test_loss_nats is None or winner.test_loss_nats is None:
        return other
    found = t_difference(differences)
    interval = (found.low, found.high) if len(differences) > 1 else None
    return other.model_copy(update={"difference_nats": found.value, "difference_interval_nats": interval})
