"""The best trials again: which they are, with which seeds, and what the runs say of them."""

import math

import pytest

from flashslm.config import ModelConfig, SearchConfig
from flashslm.models.architecture import build_architecture
from flashslm.search.finalists import Finalists, judge_finalists
from flashslm.search.result import search_result
from flashslm.search.trial import FinishedTrial
from flashslm.steps.select_architecture import chosen_trial
from tests.unit.search.synthetic import BUDGET_MS, finish, make_proposer, run_serially

TRIALS = run_serially(make_proposer(trials=12))


def finalists(trials=TRIALS, budget_ms=BUDGET_MS, **search):
    config = SearchConfig.model_validate({"finalists": 3, "finalist_seeds": 2} | search)

    def build(trial):
        return build_architecture(trial.operators, trial.width, ModelConfig(), 512)

    return Finalists(config, 5, trials, budget_ms, build)


def judged(losses, test=None):
    """The finalists of runs with these validation losses, by finalist and seed; test losses are 0.1 higher."""
    made = []
    for candidate in finalists().propose([]):
        loss = losses[candidate.slot // 2][candidate.slot % 2]
        other = test[candidate.slot // 2][candidate.slot % 2] if test else loss + 0.1
        made.append(FinishedTrial(**vars(finish(candidate, loss)) | {"test_loss_nats": other}))
    return judge_finalists(made)


def test_the_best_trials_are_trained_with_new_seeds():
    ranking = sorted(TRIALS, key=lambda t: (t.loss_nats, t.latency_ms))
    candidates = finalists().propose([])
    assert [c.parent for c in candidates] == [t.slot for t in ranking[:3] for _ in range(2)]
    assert [c.slot for c in candidates] == list(range(6))
    assert [finalists().seed_of(c) for c in candidates] == [6, 7] * 3, "not the search's own, which is 5"
    assert all(c.architecture.operators == TRIALS[c.parent].operators for c in candidates)
    assert {c.mutation for c in candidates} == {"finalist"}


def test_fewer_trials_than_finalists_and_slow_ones_are_left_out():
    assert len(finalists(trials=TRIALS[:2]).propose([])) == 4
    fast = min(t.latency_ms for t in TRIALS)
    assert {c.latency_ms for c in finalists(budget_ms=fast).propose([])} == {fast}


def test_the_validation_loss_chooses_and_the_test_loss_only_judges():
    """The second finalist has the lowest validation loss, the first the lowest test loss."""
    first, second, third = judged([[2.0, 2.2], [1.0, 1.2], [3.0, 3.2]], test=[[0.5, 0.7], [1.5, 1.6], [4.0, 4.4]])
    slots = [c.parent for c in finalists().propose([])][::2]
    assert [first.slot, second.slot, third.slot] == [slots[1], slots[0], slots[2]]
    assert first.validation_loss_nats == pytest.approx(1.1) and first.test_loss_nats == pytest.approx(1.55)
    assert first.difference_nats is None
    assert second.difference_nats == pytest.approx(((0.5 - 1.5) + (0.7 - 1.6)) / 2)
    low, high = third.difference_interval_nats
    assert third.difference_nats == pytest.approx(2.65)
    assert low < 2.65 < high and high - low > 1.0, "two seeds say little"


def test_a_finalist_whose_training_failed_comes_last():
    last = judged([[1.0, math.inf], [2.0, 2.0], [3.0, 3.0]])[-1]
    assert last.validation_loss_nats is None and last.validation_losses_nats == [1.0, None]
    assert last.difference_nats is None


def test_the_winner_is_a_record_of_the_history():
    found = search_result(TRIALS, BUDGET_MS)
    assert chosen_trial(found, []) == found.best
    chosen = judged([[2.0, 2.2], [1.0, 1.2], [3.0, 3.2]])
    assert chosen_trial(found, chosen) == found.history[chosen[0].slot] != found.best
    assert chosen_trial(found, judged([[math.inf, 1.0]] * 3)) == found.best


def test_nothing_to_judge():
    assert judge_finalists([]) == []
