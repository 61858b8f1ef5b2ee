"""Successive halving: which candidates go on, and a search in which the others are pruned."""

import random

import optuna
import pytest
from optuna.trial import TrialState

from flashslm.config import SearchConfig
from flashslm.search.halving import CandidatePruned, Halving
from flashslm.search.result import pruned_by_step, search_result, trained_share
from flashslm.search.study import SearchStudy
from flashslm.search.worker import run_worker
from tests.unit.search.synthetic import finish, loss_nats, make_proposer
from tests.unit.training.tiny import outcome

STEPS = {"steps": 160, "halving_from_steps": 10, "halving_factor": 4}


def halving(**search):
    return Halving(SearchConfig.model_validate(STEPS | search))


def at(step, operators):
    """Falls with the steps, and ranks designs as the last one does."""
    return loss_nats(operators) + 3.0 / step


@pytest.mark.parametrize(
    ("search", "budgets"),
    [
        ({}, (10, 40)),  # 160 is the end itself
        ({"steps": 161}, (10, 40, 160)),
        ({"halving_factor": 2}, (10, 20, 40, 80)),
        ({"halving_from_steps": 0}, ()),
    ],
)
def test_budgets_lie_before_the_end(search, budgets):
    assert halving(**search).budgets == budgets


def test_halving_must_begin_before_the_end():
    with pytest.raises(ValueError, match=r"halving_from_steps is 160: less than steps \(160\)"):
        halving(halving_from_steps=160)


def trials(losses):
    """Finished trials with these losses at the first budget."""
    candidates = make_proposer(trials=len(losses), candidates_per_cycle=len(losses)).propose([])
    made = [finish(candidate, loss) for candidate, loss in zip(candidates, losses, strict=True)]
    return [type(t)(**vars(t) | {"losses_by_step": ((10, t.loss_nats),)}) for t in made]


@pytest.mark.parametrize(("rank", "goes_on"), [(0, True), (1, True), (2, False), (7, False)])
def test_the_best_quarter_goes_on(rank, goes_on):
    """Of eight at a budget, two: the candidate and seven earlier ones."""
    losses = [float(number) for number in range(8)]
    mine = losses.pop(rank)
    random.Random(rank).shuffle(losses)
    assert halving().ends(trials(losses), {10: mine}) is not goes_on


def test_the_first_candidate_has_nothing_to_lose_to():
    assert not halving().ends([], {10: 9.0})


def test_a_later_budget_compares_those_that_came_so_far():
    earlier = trials([1.0, 2.0, 3.0, 4.0])
    reached = [type(t)(**vars(t) | {"losses_by_step": ((10, t.loss_nats), (40, 0.5))}) for t in earlier[:1]]
    assert not halving().ends(reached + earlier[1:], {10: 0.9, 40: 0.4})
    assert halving().ends(reached + earlier[1:], {10: 0.9, 40: 0.6})


class Training:
    """A candidate's training that looks at each budget, as the step's does."""

    def __init__(self, study, proposer):
        self.study, self.proposer, self.steps = study, proposer, 0
        self.halving = Halving(proposer.config)

    def __call__(self, candidate):
        earlier = self.proposer.known(candidate.slot, self.study.finished())
        losses = {}
        for step in self.halving.budgets:
            losses[step] = at(step, candidate.operators)
            if self.halving.ends(earlier, losses):
                raise CandidatePruned(losses)
        rows = [{"step": s, "validation/loss_nats": x, "step_time_ms": 1.0} for s, x in losses.items()]
        return outcome(at(160, candidate.operators), history=rows)


@pytest.mark.parametrize("proposals", ["cycles", "window"])
def test_a_search_with_halving_prunes_most_and_depends_on_seed_alone(tmp_path, proposals):
    def search(name):
        study = SearchStudy.open(f"sqlite:///{tmp_path}/study.db", name)
        proposer = make_proposer(trials=24, proposals=proposals, **STEPS)
        return run_worker(study, proposer, Training(study, proposer)), study

    (summary, study), (_, again) = search("first"), search("again")
    history = [trial.record() for trial in study.finished()]
    assert study.finished() == again.finished() and len(history) == 24
    assert summary.pruned == sum(pruned_by_step(history).values()) > 8 and summary.trained == 24 - summary.pruned
    assert set(pruned_by_step(history)) <= {10, 40}
    assert trained_share(history, 160) < 0.7
    best = search_result(study.finished(), budget_ms=60.0).best
    assert best["loss_nats"] == min(t["loss_nats"] for t in history if t["loss_nats"] is not None)
    pruned = [t for t in study.finished() if t.pruned_at_step]
    assert all(t.losses_by_step[-1] == (t.pruned_at_step, at(t.pruned_at_step, t.operators)) for t in pruned)
    assert not {t.parent for t in study.finished()} & {t.slot for t in pruned}, "a pruned trial has no children"
    in_optuna = optuna.load_study(study_name="first", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(in_optuna.get_trials(states=(TrialState.PRUNED,))) == summary.pruned
