"""The figures of a pipeline's record, from a made-up report and from studies that workers have worked on."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import RunConfig
from flashslm.experiments.pipeline_findings import cost_share, of_report, search_facts, trials
from flashslm.search.halving import CandidatePruned
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, TrialFailed
from flashslm.search.worker import run_worker
from flashslm.steps.search_architecture import FINALISTS
from flashslm.training.spec import TrainOutcome
from tests.unit.search.synthetic import loss_nats, make_proposer
from tests.unit.training import tiny

SEARCH = {"steps": 20, "batch_size": 4, "sequence_length": 16} | {
    "finalists": 4,
    "finalist_seeds": 2,
    "finalist_steps": 30,
}
TRAINING = {"steps": 100, "batch_size": 8, "sequence_length": 32, "warmup_steps": 1}
CONFIG = RunConfig.model_validate({"name": "x", "search": SEARCH, "training": TRAINING})


def trial(losses: dict[int, float], mutation: str = "random", width: int = 64) -> dict[str, Any]:
    """Pruned where its last budget is not the search's."""
    pruned = None if max(losses) == 20 else max(losses)
    return {
        "losses_by_step": [list(pair) for pair in losses.items()],
        "pruned_at_step": pruned,
        "mutation": mutation,
        "width": width,
    }


HISTORY = [
    trial({5: 3.0, 10: 2.5, 20: 2.0}, "seed"),
    trial({5: 3.1, 10: 2.4, 20: 2.1}),
    trial({5: 3.9}, width=32),
    trial({5: 3.2, 10: 2.6, 20: 2.3}),
    trial({5: 3.3, 10: 2.9}, "ffn"),
]


def report() -> dict[str, Any]:
    winners = [{"operators": "DF", "relative_error": error} for error in (0.01, -0.04)]
    return {
        "scaling": {
            "holdout_perplexity_error": 0.02,
            "budget_ms": 1.0,
            "choice": {"depth": 4, "width": 64, "extrapolated": [], "candidates": ["all of them"]},
            "points": ["all of them"],
        },
        "latency_check": {"median_relative": 0.006, "worst_relative": 0.05, "models": ["all of them"]},
        "history": HISTORY,
        "winners": winners,
        "finalists": [{"operators": name} for name in ("DF", "MF", "AF", "DFMF")],
        "ablation": {"verdict": "cannot tell", "difference_nats": 0.1, "curves": "long"},
        "step_time_ms": {"on": 2.0, "off": 1.9},
        "evaluation": {"test/perplexity": 20.0, "samples": "long"},
    }


def test_the_figures_of_a_report() -> None:
    found = of_report(report(), CONFIG)
    choice = {"depth": 4, "width": 64, "extrapolated": []}
    law = {"holdout_perplexity_error": 0.02, "budget_ms": 1.0, "points": ["all of them"]} | choice
    assert found["law"] == law and found["worst_winner_error"] == 0.04
    checked = {"median_relative": 0.006, "worst_relative": 0.05, "models": ["all of them"]}
    assert found["latency_table"] == checked
    assert "candidates" not in found, "the record's trials have them"
    assert found["weight_norm"]["step_time_ms"] == {"on": 2.0, "off": 1.9} and "curves" not in found["weight_norm"]
    assert found["evaluation"] == {"test/perplexity": 20.0}
    search = found["search"]
    assert search["pruned_by_step"] == {5: 1, 10: 1} and search["widths"] == {32: 1, 64: 4}
    assert search["origins"] == {"seed": 1, "random": 3, "ffn": 1}
    assert search["trained_step_share"] == (3 * 20 + 5 + 10) / 100


def test_budgets_are_ranked_over_the_trials_that_reached_both() -> None:
    rankings = of_report(report(), CONFIG)["search"]["spearman_of_survivors"]
    found = {tuple(ranking["steps"]): (round(ranking["value"], 6), ranking["items"]) for ranking in rankings}
    assert found == {(5, 10): (0.8, 4), (5, 20): (1.0, 3), (10, 20): (0.5, 3)}


def test_the_search_costs_the_share_of_tokens_that_it_trained_on() -> None:
    """75 steps of candidates and 240 of finalists, of 64 tokens, beside five trainings of 100 steps of 256."""
    assert cost_share(HISTORY, 4, CONFIG) == pytest.approx(315 * 64 / (5 * 25_600))


def test_candidates_and_times_come_from_the_newest_studies(tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    assert search_facts(database) == {"candidates": 0} and trials(database) == {}
    study = SearchStudy.open(f"sqlite:///{database}", "search")
    proposer = make_proposer(trials=6, population=4, sample=2, candidates_per_cycle=3)

    def train(candidate: Candidate) -> TrainOutcome:
        if candidate.slot == 2:
            raise CandidatePruned({5: 9.0})
        if candidate.slot == 4:
            raise TrialFailed("the validation loss is not finite at step 7")
        return tiny.outcome(loss_nats(candidate.operators), train_time_s=1.5)

    run_worker(study, proposer, train)
    SearchStudy.open(f"sqlite:///{database}", f"{FINALISTS}search")
    found = search_facts(database)
    best = min(study.finished(), key=lambda trial: trial.loss_nats)
    assert found["candidates"] == 6 and (found["failed"], found["pruned"]) == (1, 1)
    assert found["best_trial"]["operators"] == best.operators and found["best_trial"]["loss_nats"] == best.loss_nats

    times = trials(database)
    assert times["finalists"] == [] and [trial["slot"] for trial in times["candidates"]] == [0, 1, 2, 3, 4, 5]
    assert [trial["steps_s"] for trial in times["candidates"]] == [1.5, 1.5, None, 1.5, None, 1.5]
    by_slot = {trial.slot: trial for trial in study.finished()}
    kept = [(trial["operators"], trial["loss_nats"]) for trial in times["candidates"]]
    for name in ("width", "latency_ms", "mutation", "pruned_at_step"):
        assert [trial[name] for trial in times["candidates"]] == [getattr(by_slot[n], name) for n in range(6)]
    json.dumps(times, allow_nan=False)
    assert kept == [(by_slot[n].operators, by_slot[n].loss_nats if n not in (2, 4) else None) for n in range(6)]
    assert times["candidates"][2]["steps"] == 5 and {trial["worker"] for trial in times["candidates"]} == {0}
    assert all(trial["began_s"] <= trial["ended_s"] for trial in times["candidates"])
