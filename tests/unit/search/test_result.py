import json
import math

import pytest

from flashslm.search.result import SearchResult, pareto_front, search_result
from tests.unit.search.synthetic import finish, make_proposer


def trials(*points):
    """Finished trials with the given (latency_ms, loss_nats)."""
    candidates = make_proposer(trials=10, candidates_per_cycle=10).propose([])
    found = [finish(c, loss) for c, (_, loss) in zip(candidates, points, strict=False)]
    return [type(t)(**(vars(t) | {"latency_ms": ms})) for t, (ms, _) in zip(found, points, strict=True)]


def test_best_is_the_lowest_loss_within_the_budget():
    result = search_result(trials((1.0, 3.0), (2.0, 2.5), (3.0, 2.0), (1.5, 2.5)), budget_ms=2.5)
    assert (result.best["latency_ms"], result.best["loss_nats"]) == (1.5, 2.5)
    assert [t["slot"] for t in result.history] == [0, 1, 2, 3]


def test_pareto_front_over_all_trials():
    found = trials((3.0, 2.0), (1.0, 3.0), (2.0, 3.0), (2.0, 2.5), (4.0, 2.0), (5.0, 1.0))
    assert [(t.latency_ms, t.loss_nats) for t in pareto_front(found)] == [
        (1.0, 3.0),
        (2.0, 2.5),
        (3.0, 2.0),
        (5.0, 1.0),
    ]


def test_failed_trials_stay_in_the_history_only():
    result = search_result(trials((1.0, math.inf), (2.0, 2.5)), budget_ms=9.0)
    assert result.history[0]["loss_nats"] is None
    assert result.best["slot"] == 1 and [t["slot"] for t in result.pareto] == [1]
    assert SearchResult.model_validate(json.loads(json.dumps(result.model_dump(mode="json")))) == result


def test_no_feasible_trial_is_an_error():
    with pytest.raises(
        RuntimeError, match=r"none of 2 trials was trained within 0.5 ms per token \(1 failed, 0 ended early\)"
    ):
        search_result(trials((1.0, math.inf), (2.0, 2.5)), budget_ms=0.5)
