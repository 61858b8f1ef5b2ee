"""A search for perplexity, recall and latency: its parents, its winner, its finalists, and Optuna's view of it."""

import math
from dataclasses import replace
from typing import Any

import optuna
import pytest

from flashslm.config import SearchConfig
from flashslm.search.finalists import judge_finalists
from flashslm.search.halving import CandidatePruned
from flashslm.search.objective import best_first, of_trial
from flashslm.search.recall_score import RecalledOutcome
from flashslm.search.result import search_result
from flashslm.search.study import SearchStudy
from flashslm.search.trial import FINALIST, Candidate, FinishedTrial
from flashslm.search.trial_parameters import OBJECTIVES, RECALL
from flashslm.search.worker import run_worker
from tests.unit.search.synthetic import BUDGET_MS, finish, loss_nats, make_proposer
from tests.unit.training.tiny import outcome

HYPERVOLUME: dict[str, Any] = {"objective": "hypervolume", "recall_steps": 10}


def recall(candidate: Candidate) -> float:
    """Grows with the share of attention, which the synthetic loss does not ask for."""
    return 0.1 + 0.9 * candidate.operators.count("A") / len(candidate.operators)


def train(candidate: Candidate) -> RecalledOutcome:
    kept = {"recall_accuracy": recall(candidate), "recall_time_s": 1.0}
    if recall(candidate) <= 0.1:
        raise CandidatePruned({}, kept)
    return RecalledOutcome(**(dict(outcome(loss_nats(candidate.operators))) | kept))


def trial(slot: int, loss: float, recall_accuracy: float | None, latency_ms: float = 1.0) -> FinishedTrial:
    (candidate,) = make_proposer(trials=1, seeding="none").propose([])
    made = finish(candidate, loss)
    return replace(made, slot=slot, recall_accuracy=recall_accuracy, latency_ms=latency_ms)


def test_hypervolume_needs_recall() -> None:
    with pytest.raises(ValueError, match="recall_steps is 0: give the steps in which recall is learned"):
        SearchConfig.model_validate({"objective": "hypervolume"})


def test_the_lowest_loss_wins_by_loss_and_a_compromise_by_hypervolume() -> None:
    trials = [trial(0, 3.0, 0.2), trial(1, 3.02, 0.9), trial(2, 3.5, 0.95), trial(3, 3.6, 0.1)]
    assert [t.slot for t in best_first(trials, of_trial, "proxy_loss")] == [0, 1, 2, 3]
    by_volume = [t.slot for t in best_first(trials, of_trial, "hypervolume")]
    assert by_volume[0] == 1 and by_volume[-1] == 3
    assert search_result(trials, 2.0).best["slot"] == 0
    assert search_result(trials, 2.0, "hypervolume").best["slot"] == 1


def test_latency_counts_and_recall_that_is_missing_is_none() -> None:
    trials = [trial(0, 3.0, None), trial(1, 3.1, 0.9, latency_ms=5.0), trial(2, 3.1, 0.88), trial(3, 3.5, 0.95)]
    assert best_first(trials, of_trial, "hypervolume")[0].slot == 2


def test_a_diverged_training_comes_last_and_ends_no_search() -> None:
    trials = [trial(0, 900.0, 0.9), trial(1, 3.0, 0.9), trial(2, 800.0, 0.95)]
    assert best_first(trials, of_trial, "hypervolume")[0].slot == 1


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchStudy, optuna.Study]:
    url = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    searched = SearchStudy.open(url, "search", with_recall=True)
    run_worker(searched, make_proposer(trials=40, **HYPERVOLUME), train)
    return SearchStudy.open(url, "search"), optuna.load_study(study_name="search", storage=url)


def test_optuna_has_recall_as_a_third_objective(study: tuple[SearchStudy, optuna.Study]) -> None:
    searched, in_optuna = study
    assert in_optuna.metric_names == [*OBJECTIVES, RECALL]
    assert [direction.name for direction in in_optuna.directions] == ["MINIMIZE", "MINIMIZE", "MAXIMIZE"]
    recalls = {t.user_attrs["slot"]: t.values[2] for t in in_optuna.trials}
    assert recalls == {t.slot: t.recall_accuracy for t in searched.finished()}
    rejected = [t for t in searched.finished() if t.pruned_at_step == 0]
    assert rejected and all(not t.succeeded and t.recall_accuracy == 0.1 for t in rejected)


@pytest.mark.parametrize("with_recall", [True, False])
def test_a_study_whose_maker_was_killed_before_it_named_the_objectives_is_opened(
    tmp_path: Any, with_recall: bool
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    directions = ["minimize", "minimize", "maximize"][: 3 if with_recall else 2]
    optuna.create_study(study_name="search", storage=url, directions=directions)
    SearchStudy.open(url, "search", with_recall=not with_recall)
    named = optuna.load_study(study_name="search", storage=url).metric_names
    assert named == [*OBJECTIVES, RECALL][: len(directions)]


def test_its_winner_lies_on_optunas_front_and_parents_are_trained_ones(
    study: tuple[SearchStudy, optuna.Study],
) -> None:
    searched, in_optuna = study
    trials = searched.finished()
    best = search_result(trials, BUDGET_MS, "hypervolume").best
    assert best["slot"] in {t.user_attrs["slot"] for t in in_optuna.best_trials}
    by_slot = {t.slot: t for t in trials}
    assert all(by_slot[t.parent].succeeded for t in trials if t.parent is not None)


def test_it_finds_more_recall_than_a_search_by_loss(study: tuple[SearchStudy, optuna.Study]) -> None:
    best = search_result(study[0].finished(), BUDGET_MS, "hypervolume").best
    by_loss = search_result(study[0].finished(), BUDGET_MS).best
    assert best["recall_accuracy"] > by_loss["recall_accuracy"] and best["loss_nats"] >= by_loss["loss_nats"]


def test_it_is_a_function_of_the_seed(study: tuple[SearchStudy, optuna.Study], tmp_path: Any) -> None:
    again = SearchStudy.open(f"sqlite:///{tmp_path}/study.db", "search", with_recall=True)
    run_worker(again, make_proposer(trials=40, **HYPERVOLUME), train)
    assert again.finished() == study[0].finished()


def test_finalists_are_judged_by_their_new_losses_and_their_trials_recall() -> None:
    losses = {0: (3.0, 3.1), 1: (3.05, 3.1), 2: (3.2, math.inf), 3: (3.5, 3.5)}
    runs = [
        replace(trial(2 * parent + number, loss, None), parent=parent, mutation=FINALIST, test_loss_nats=loss)
        for parent, pair in losses.items()
        for number, loss in enumerate(pair)
    ]
    by_loss = judge_finalists(runs)
    assert [f.slot for f in by_loss] == [0, 1, 3, 2] and by_loss[0].recall_accuracy is None
    by_volume = judge_finalists(runs, "hypervolume", {0: 0.3, 1: 0.9, 2: 0.99, 3: 0.95})
    assert by_volume[0].slot == 1 and by_volume[-1].slot == 2, "one of which a run failed comes last"
    assert by_volume[0].recall_accuracy == 0.9
    assert {f.slot: f.difference_nats for f in by_volume}[0] == pytest.approx(-0.025)
