"""What a run of the whole pipeline found, from its report and its study: the figures that a record keeps."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from flashslm.config import RunConfig
from flashslm.search.result import pruned_by_step, trained_share
from flashslm.search.study import SearchStudy
from flashslm.search.trial import FinishedTrial
from flashslm.statistics import rank_correlation
from flashslm.steps.search_architecture import FINALISTS

_OF_TRIAL = ("operators", "width", "parameters", "latency_ms", "loss_nats", "mutation", "slot")
_OF_LAW = ("holdout_perplexity_error", "left_out_sizes", "constant_intervals", "budget_ms", "points", "holdout")
_OF_CHOICE = ("depth", "width", "extrapolated")
_OF_TABLE = ("median_relative", "worst_relative", "models")
_OF_CANDIDATE = ("slot", "operators", "width", "latency_ms", "mutation")
_OF_ABLATION = ("verdict", "difference_nats", "difference_interval_nats", "diverged")


def of_report(run: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Of report.json's `run`: the law and its points, the latency table and the models that it was checked with, the
    search and its winners, weight normalisation, evaluation. Single candidates are among the trials (`trials`).
    """
    scaling, history = run["scaling"], run["history"]
    return {
        "law": _some(scaling, _OF_LAW) | _some(scaling["choice"], _OF_CHOICE),
        "latency_table": _some(run["latency_check"], _OF_TABLE),
        "search": of_history(history) | {"trained_step_share": trained_share(history, config.search.steps)},
        "search_cost_share": cost_share(history, len(run["finalists"]), config),
        "winners": run["winners"],
        "worst_winner_error": max(abs(winner["relative_error"]) for winner in run["winners"]),
        "finalists": run["finalists"],
        "weight_norm": _some(run["ablation"], _OF_ABLATION) | {"step_time_ms": run["step_time_ms"]},
        "evaluation": {key: value for key, value in run["evaluation"].items() if key != "samples"},
    }


def of_history(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Candidates by origin, by width and by the budget that ended them; how short losses rank beside longer ones."""
    return {
        "pruned_by_step": pruned_by_step([dict(trial) for trial in history]),
        "origins": dict(Counter(trial["mutation"] for trial in history)),
        "widths": dict(sorted(Counter(trial["width"] for trial in history).items())),
        "spearman_of_survivors": _rankings(history),
    }


def cost_share(history: Sequence[Mapping[str, Any]], finalists: int, config: RunConfig) -> float:
    """Tokens that candidates and finalists were trained on, over those of every candidate at the final training's."""
    search = config.search
    share = trained_share([dict(trial) for trial in history], search.steps)
    steps = share * search.steps * len(history)
    steps += finalists * search.finalist_seeds * (search.finalist_steps or search.steps)
    return steps * search.batch_size * search.sequence_length / (config.training.tokens * len(history))


def search_facts(database: Path) -> dict[str, Any]:
    """The candidates scored so far, in the newest study of the database, and the one of lowest proxy loss.

    It need not be the one that wins: finalists are judged by other seeds.
    """
    if not database.is_file():
        return {"candidates": 0}
    names = _studies(database)
    trials: list[FinishedTrial] = SearchStudy.open(_url(database), names[-1]).finished() if names else []
    scored = [trial for trial in trials if trial.succeeded]
    best = min(scored, key=lambda trial: trial.loss_nats, default=None)
    of_best = {key: value for key, value in best.record().items() if key in _OF_TRIAL} if best else None
    pruned = sum(trial.pruned_at_step is not None for trial in trials)
    failed = len(trials) - len(scored) - pruned
    return {"candidates": len(trials), "pruned": pruned, "failed": failed, "best_trial": of_best}


def trials(database: Path) -> dict[str, list[dict[str, Any]]]:
    """Each trial of the newest search's candidates and of its finalists: what it was and when, and what it came to."""
    names = _studies(database) if database.is_file() else []
    found = {"candidates": names[-1:], "finalists": _studies(database, of=names[-1])[-1:] if names else []}
    return {
        kind: _ended(optuna.load_study(study_name=name, storage=_url(database)).get_trials())
        for kind, its_names in found.items()
        for name in its_names
    }


def _ended(of_study: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Each design with its losses, when it was trained, in POSIX seconds, and how much of that time its steps took.

    They are read from the study, as a run that is cut off has no report. The rest of the time is building, validation,
    logging and, on a GPU, compiling and recording. Pruned trials keep no time of their steps.
    """
    ended = [t for t in of_study if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.datetime_complete]
    workers = {worker: number for number, worker in enumerate(dict.fromkeys(t.user_attrs["worker"] for t in ended))}
    return [
        {
            **_some(trial.user_attrs, _OF_CANDIDATE),
            "worker": workers[trial.user_attrs["worker"]],
            "began_s": round(_posix_s(trial.datetime_start), 2),
            "ended_s": round(_posix_s(trial.datetime_complete), 2),
            "steps": max(trial.intermediate_values, default=0),
            "steps_s": trial.user_attrs.get("train_time_s"),
            "pruned_at_step": max(trial.intermediate_values, default=0) if trial.state == TrialState.PRUNED else None,
            "loss_nats": trial.values[0] if math.isfinite(trial.values[0]) else None,  # pruned, or failed
            "test_loss_nats": trial.user_attrs.get("test_loss_nats"),  # of a finalist
        }
        for trial in ended
    ]


def _rankings(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each budget with each longer one, over the trials that were trained to both: the pruned ones are missing."""
    losses = [dict(trial["losses_by_step"]) for trial in history]
    budgets = sorted({step for by_step in losses for step in by_step})
    found = []
    for short, long in combinations(budgets, 2):
        both = [(by_step[short], by_step[long]) for by_step in losses if short in by_step and long in by_step]
        if len(both) > 1:
            first, second = zip(*both, strict=True)
            found.append({"steps": [short, long]} | rank_correlation(first, second)._asdict())
    return found


def _posix_s(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


def _some(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _studies(database: Path, of: str = "") -> list[str]:
    """Names of searches, or of the studies of a search's finalists; the newest is the last."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = optuna.get_all_study_names(_url(database))
    return [name for name in names if (name.startswith(f"{FINALISTS}{of}") if of else not name.startswith(FINALISTS))]


def _url(database: Path) -> str:
    return f"sqlite:///{database}"
