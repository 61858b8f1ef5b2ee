"""What a search found: the best trial, every trial in slot order, and the latency-loss Pareto front."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from flashslm.search.objective import Objective, best_first, of_trial
from flashslm.search.trial import FinishedTrial


class SearchResult(BaseModel):
    """JSON values throughout; `best` and `pareto` are records of `history`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    best: dict[str, Any]
    history: list[dict[str, Any]]
    pareto: list[dict[str, Any]]


def search_result(
    trials: Sequence[FinishedTrial], budget_ms: float, objective: Objective = "proxy_loss"
) -> SearchResult:
    """The best of `ranked`, the whole history and the Pareto front."""
    return SearchResult(
        best=ranked(trials, budget_ms, objective)[0].record(),
        history=[t.record() for t in sorted(trials, key=lambda t: t.slot)],
        pareto=[t.record() for t in pareto_front([t for t in trials if t.succeeded])],
    )


def ranked(
    trials: Sequence[FinishedTrial], budget_ms: float, objective: Objective = "proxy_loss"
) -> list[FinishedTrial]:
    """Trials within the budget, the best one first.

    Every trial ever trained counts, not only the last population. RuntimeError when none qualifies.
    """
    succeeded = [t for t in trials if t.succeeded]
    feasible = [t for t in succeeded if t.latency_ms <= budget_ms]
    if not feasible:
        pruned = sum(t.pruned_at_step is not None for t in trials)
        raise RuntimeError(
            f"none of {len(trials)} trials was trained within {budget_ms:.4g} ms per token "
            f"({len(trials) - len(succeeded) - pruned} failed, {pruned} ended early): "
            "look at the trials' reasons in the study"
        )
    return best_first(feasible, of_trial, objective)


def pruned_by_step(history: Sequence[dict[str, Any]]) -> dict[int, int]:
    """How many trials ended early, by the number of steps after which they did; 0: their recall rejected them."""
    return dict(sorted(Counter(t["pruned_at_step"] for t in history if t["pruned_at_step"] is not None).items()))


def pruning_in_words(pruned: Mapping[int, int]) -> list[str]:
    """What `pruned_by_step` says, in words."""
    return [
        f"{count} " + (f"pruned after {step} steps" if step else "rejected by recall") for step, count in pruned.items()
    ]


def trained_share(history: Sequence[dict[str, Any]], steps: int) -> float:
    """Optimizer steps of all trials over those without pruning."""
    trained = (steps if trial["pruned_at_step"] is None else trial["pruned_at_step"] for trial in history)
    return sum(trained) / (steps * len(history))


def pareto_front(trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Trials that no other beats in both latency and loss, fastest first."""
    front: list[FinishedTrial] = []
    for trial in sorted(trials, key=lambda t: (t.latency_ms, t.loss_nats, t.slot)):
        if not front or trial.loss_nats < front[-1].loss_nats:
            front.append(trial)
    return front
