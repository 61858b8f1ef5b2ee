"""The run's report as one HTML file that needs no network: charts are SVG, a short script shows tips and sorts."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from flashslm.config import sizes_in_words
from flashslm.evaluation.task_metrics import task_rows
from flashslm.models.architecture import parse_operators
from flashslm.models.operator_spec import COLORS, FFN, LABELS, LM_HEAD, depends_on_context
from flashslm.reporting import charts
from flashslm.reporting.run_facts import Headline, RunFacts, duration

CURVES = {
    "train/loss_nats": "training loss (nats)",
    "validation/loss_nats": "validation loss (nats)",
    "weight_norm": "mean norm of the weight vectors",
    "gradient_norm": "gradient norm",
}
LEFT_OUT_ROWS = (
    ("duplicates dropped", "duplicates_dropped", ""),
    ("near duplicates dropped", "near_duplicates_dropped", ""),
    ("dropped for text of evaluation sets", "contaminated_dropped", ""),
    ("rows that cannot be read", "bad_rows", ""),
)
DATA_ROWS = (
    ("documents", "documents", ""),
    *LEFT_OUT_ROWS,
    ("bytes", "bytes", ""),
    ("train tokens", "train_tokens", ""),
    ("validation tokens", "validation_tokens", ""),
    ("test tokens", "test_tokens", ""),
    ("vocabulary", "vocab_size", ""),
    ("bytes per token of validation", "bytes_per_token", ""),
    ("unigram entropy", "unigram_entropy_nats", " nats per token"),
)


@dataclass(frozen=True)
class RunArtifacts:
    """The JSON documents of a finished run."""

    name: str
    data: dict[str, Any]
    latency_table: dict[str, Any]
    latency_check: dict[str, Any]
    depth_width: dict[str, Any]
    scaling: dict[str, Any]
    architecture: dict[str, Any]
    operator_ms: dict[str, float]  # of one layer of the chosen architecture, and of the head
    history: list[dict[str, Any]]
    pareto: list[dict[str, Any]]
    winners: list[dict[str, Any]]  # designs that the table let win, measured as whole models
    best: dict[str, Any]
    ablation: dict[str, Any]
    step_time_ms: dict[str, float]  # of each variant of the ablation
    evaluation: dict[str, Any]
    export: dict[str, Any]
    verdict: dict[str, Any]
    latency_context: int
    latency_batch: int
    device_name: str
    lineage: list[dict[str, Any]]  # name, uri, sha256, bytes of every artifact
    finalists: list[dict[str, Any]] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)  # ranges of the search of which the chosen design has an end


def render(run: RunArtifacts, facts: RunFacts | None = None) -> str:
    """The report; `facts` are known only after the run: without them the page says what the artifacts say."""
    return page(
        "report.html.j2",
        run=run,
        facts=facts,
        headline=headline(run.verdict["decision"], facts),
        charts=_charts(run),
        blocks=_blocks(run),
        shares=_shares(run),
        trials=_trials(run),
        slack=_slack(run),
        heat=needle_heat(run.evaluation["needle"]),
        recall_heat=recall_heat(run.evaluation.get("recall", [])),
        task_rows=task_rows(run.evaluation["tasks"]),
        data_rows=DATA_ROWS,
        constant_parts=_constant_parts(run.latency_table),
    )


def headline(decision: str, facts: RunFacts | None) -> Headline:
    """What came of the gate's decision, as far as it is known."""
    if facts and facts.headline:
        return facts.headline
    if decision != "promote":
        return Headline(decision, f"Decision: {decision}")
    step = "The step register_model, which this page does not wait for, says whether the model was registered."
    return Headline(decision, f"The gate's checks passed. {step}")


def page(template: str, **values: Any) -> str:
    """One of this package's templates, filled; a value that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("flashslm", "reporting"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"duration": duration, "share_interval": share_interval, "in_words": sizes_in_words}
    return environment.get_template(template).render(**values)


def share_interval(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of right answers, which is right also where none or all are (Wilson 1927)."""
    z = 1.959964
    middle, weight = (share + z * z / (2 * samples)) / (1 + z * z / samples), 1 + z * z / samples
    half = z * ((share * (1 - share) + z * z / (4 * samples)) / samples) ** 0.5 / weight
    return max(0.0, middle - half), min(1.0, middle + half)


def _charts(run: RunArtifacts) -> dict[str, Any]:
    chosen = (run.export["latency_ms"], run.export["predicted_latency_ms"])
    curves = [charts.ablation_curves(run.ablation, key, label) for key, label in CURVES.items()]
    if run.ablation["difference_interval_nats"]:
        low, high = run.ablation["difference_interval_nats"]
        label = "on minus off, validation loss (nats)"
        curves.append(charts.interval(run.ablation["difference_nats"], low, high, label))
    return {
        "latency_by_width": charts.latency_by_width(run.latency_table, run.latency_context, run.latency_batch),
        "latency_by_context": charts.latency_by_context(run.latency_table, run.latency_batch),
        "predicted_and_measured": charts.predicted_and_measured(run.latency_check["models"], chosen),
        "depth_width": charts.depth_width(run.depth_width),
        "scaling_fit": charts.scaling_fit(run.scaling),
        "pareto": charts.pareto(run.history, run.pareto, run.best, run.scaling["budget_ms"]),
        "ablation": [drawn for drawn in curves if drawn],
    }


def _blocks(run: RunArtifacts) -> list[list[dict[str, Any]]]:
    """The chosen architecture block by block: a token mixer and the feed-forward layers after it."""
    blocks: list[list[dict[str, Any]]] = []
    for letter in parse_operators(run.architecture["operators"]):
        if letter != FFN or not blocks:
            blocks.append([])
        ms = run.operator_ms[letter]
        blocks[-1].append({"letter": letter, "label": LABELS[letter], "color": COLORS[letter], "ms": ms})
    return blocks


def _shares(run: RunArtifacts) -> list[dict[str, Any]]:
    operators = parse_operators(run.architecture["operators"])
    counts = {letter: operators.count(letter) for letter in dict.fromkeys(operators)} | {LM_HEAD: 1}
    return charts.shares((letter, count, run.operator_ms[letter]) for letter, count in counts.items())


def _trials(run: RunArtifacts) -> list[dict[str, Any]]:
    front = {trial["slot"] for trial in run.pareto}
    # Columns that the histories of earlier runs, or of those without the setting, do not have.
    later: dict[str, Any] = {"pruned_at_step": None, "recall_accuracy": None, "sizes": {}}
    return [later | t | {"origin": charts.origin(t), "is_on_front": t["slot"] in front} for t in run.history]


def _slack(run: RunArtifacts) -> dict[str, float]:
    """Which share of the latency budget designs leave unused, by the table: the chosen one, and over all trials.

    `is_widest`: no wider design than the chosen one was measured, so that none could have used more of it.
    """
    budget_ms = run.scaling["budget_ms"]
    shares = [1 - trial["latency_ms"] / budget_ms for trial in run.history]
    chosen = 1 - run.best["latency_ms"] / budget_ms
    is_widest = run.best["width"] == max(entry["width"] for entry in run.latency_table["entries"])
    return {
        "chosen": chosen,
        "median": statistics.median(shares),
        "largest": max(shares),
        "is_widest": is_widest,
    }


def needle_heat(needles: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Rows of the needle heat map; None of an evaluation that kept no shares by depth."""
    return _heat([(f"{n['length']}", n["length"], n.get("ranked_first_by_depth") or []) for n in needles])


def recall_heat(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Rows of the recall tasks' heat map, those of one task together; None where no task was run."""
    return _heat([(f"{r['task']}, {r['length']}", (r["task"], r["length"]), r["by_depth"]) for r in found])


def _heat(rows: list[tuple[str, Any, list[float]]]) -> dict[str, Any] | None:
    """Of labels, what they are ordered by, and shares by depth; rows of fewer parts than the others are left out."""
    parts = max((len(shares) for _, _, shares in rows), default=0)
    if not parts:
        return None
    kept = sorted((row for row in rows if len(row[2]) == parts), key=lambda row: row[1])
    cells = [{"label": label, "cells": [_cell(share) for share in shares]} for label, _, shares in kept]
    return {"depths": [f"to {(i + 1) / parts:.0%}" for i in range(parts)], "rows": cells}


def _cell(share: float) -> dict[str, Any]:
    """From red (none found) over yellow to green (all found)."""
    return {"share": share, "color": f"hsl({120 * share:.0f} 65% {72 - 22 * share:.0f}%)", "ink": "#111827"}


def _constant_parts(table: dict[str, Any]) -> list[str]:
    """The labels of what a latency table measured whose time does not depend on the context."""
    measured = dict.fromkeys(entry["operator"] for entry in table["entries"])
    return [LABELS[part] for part in measured if not depends_on_context(part)]
