"""A search's study opens in Optuna's own views: Pareto front, importance of what describes a design."""

import math
from pathlib import Path

import matplotlib as mpl
import optuna
import pytest
from optuna.visualization import matplotlib as plots

from flashslm.search.evolution import Proposer
from flashslm.search.study import ATTEMPTS, SearchStudy
from flashslm.search.trial_parameters import DISTRIBUTIONS, OBJECTIVES, trial_parameters
from flashslm.search.worker import run_worker
from tests.unit.search.synthetic import loss_nats, make_proposer
from tests.unit.training.tiny import outcome


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    url = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    searched = SearchStudy.open(url, "search: 20 trials")
    run_worker(searched, make_proposer(trials=20), lambda candidate: outcome(loss_nats(candidate.operators)))
    return optuna.load_study(study_name="search: 20 trials", storage=url)


def test_trials_have_both_objectives_and_their_design(study: optuna.Study) -> None:
    assert study.metric_names == list(OBJECTIVES) and len(study.directions) == 2
    for trial in study.trials:
        loss_nats, latency_ms = trial.values
        assert math.isfinite(loss_nats) and latency_ms == trial.user_attrs["latency_ms"]
        operators = trial.user_attrs["operators"]
        assert trial.params["num_operators"] == len(operators) and trial.params["first_operator"] == operators[0]
        assert trial.params["width"] == trial.user_attrs["width"]
        counts = [trial.params[name] for name in ("num_attention", "num_deltanet", "num_mamba2", "num_ffn")]
        assert counts == [operators.count(letter) for letter in "ADMF"]


def test_its_pareto_front_is_the_searchs(study: optuna.Study) -> None:
    front = {trial.user_attrs["slot"] for trial in study.best_trials}
    points = {t.user_attrs["slot"]: t.values for t in study.trials}
    every = points.values()
    beaten = {s for s, (x, y) in points.items() if any((a <= x and b < y) or (a < x and b <= y) for a, b in every)}
    assert front == points.keys() - beaten and front


def test_optunas_plots_and_importances_take_it(study: optuna.Study) -> None:
    mpl.use("agg")
    assert plots.plot_pareto_front(study).get_xlabel() == OBJECTIVES[0]
    found = optuna.importance.get_param_importances(study, target=lambda trial: trial.values[0])
    assert found.keys() <= DISTRIBUTIONS.keys() and sum(found.values()) == pytest.approx(1.0)
    plots.plot_param_importances(study, target=lambda trial: trial.values[1], target_name="latency_ms")


def test_a_candidate_that_failed_for_good_keeps_its_latency(tmp_path: Path) -> None:
    searched = SearchStudy.open(f"sqlite:///{tmp_path}/s.db", "search")
    proposer: Proposer = make_proposer(trials=1)
    (candidate,) = proposer.propose([])
    for _ in range(ATTEMPTS):
        claim = searched.claim([candidate])
        assert claim is not None
        searched.fail(claim, "diverged")
    (finished,) = searched.finished()
    assert not finished.succeeded and finished.latency_ms == candidate.latency_ms
    assert trial_parameters(candidate)["origin"] in ("seed", "random", "mutation")
