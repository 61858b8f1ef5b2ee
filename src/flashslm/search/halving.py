"""Successive halving (Li et al. 2018) by Optuna's pruner: most candidates are trained for a fraction of the steps.

A candidate is compared after `halving_from_steps` steps, then after `halving_factor` times as many, and so on, with the
earlier trials that came as far; it goes on if it is among the best 1/halving_factor of them. Earlier trials are those
that its proposal depends on (`Proposer.known`), so the decision is as reproducible as the search.
"""

from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import SuccessiveHalvingPruner

from flashslm.config import SearchConfig
from flashslm.search.trial import FinishedTrial


class CandidatePruned(Exception):
    """A candidate's training ended at a budget: `losses_nats` by step, the last of them the one that decided.

    Without any, the candidate was rejected by its recall, before the first step. `attributes` is what else the study
    keeps of it.
    """

    def __init__(self, losses_nats: Mapping[int, float], attributes: Mapping[str, float] | None = None) -> None:
        self.losses_nats, self.attributes = dict(losses_nats), dict(attributes or {})
        self.step = max(losses_nats, default=0)
        super().__init__(f"pruned after {self.step} steps" if self.step else "rejected by its recall")


class Halving:
    """The budgets of a recipe, in steps, and the decision at each of them."""

    def __init__(self, config: SearchConfig) -> None:
        self.first, self.factor = config.halving_from_steps, config.halving_factor
        self.budgets: tuple[int, ...] = ()
        budget = self.first
        while 0 < budget < config.steps:
            self.budgets += (budget,)
            budget *= self.factor

    def ends(self, earlier: Sequence[FinishedTrial], losses_nats: Mapping[int, float]) -> bool:
        """Whether a candidate with these losses by budget is trained no further."""
        pruner = SuccessiveHalvingPruner(min_resource=self.first, reduction_factor=self.factor)
        study = optuna.create_study(pruner=pruner)
        for trial in earlier:
            _replay(study, {step: loss for step, loss in trial.losses_by_step if step in self.budgets})
        return _replay(study, losses_nats)


def _replay(study: optuna.Study, losses_nats: Mapping[int, float]) -> bool:
    """Report losses as a trial of the study; what the pruner says after the last of them."""
    trial, is_last = study.ask(), False
    for step in sorted(losses_nats):
        trial.report(losses_nats[step], step)
        is_last = trial.should_prune()
    return is_last
