"""The report of a retraining run as one self-contained HTML file: data, both models side by side, decision."""

import math
from dataclasses import dataclass
from typing import Any

from flashslm.evaluation.task_metrics import is_metric
from flashslm.reporting.html import LEFT_OUT_ROWS, headline, page
from flashslm.reporting.run_facts import RunFacts
from flashslm.statistics import judge


@dataclass(frozen=True)
class RetrainingArtifacts:
    """The documents of a run; without a challenger `evaluation`, `export`, `training` and `verdict` are None."""

    name: str
    decision: str
    reasons: list[str]
    champion: dict[str, Any]
    data: dict[str, Any]  # the new data set's summary, or its counts where it was not enough
    lineage: list[dict[str, Any]]  # name, uri, sha256, bytes of every artifact
    evaluation: dict[str, Any] | None = None
    export: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None


def render_retraining(run: RetrainingArtifacts, facts: RunFacts | None = None) -> str:
    """The report; `facts` are known only after the run."""
    return page(
        "retraining.html.j2",
        run=run,
        facts=facts,
        headline=headline(run.decision, facts),
        rows=_rows(run.evaluation),
        samples=_samples(run.evaluation),
        left_out_rows=LEFT_OUT_ROWS,
        not_kept_out=_not_decontaminated(run.evaluation),
    )


def _samples(evaluation: dict[str, Any] | None) -> dict[str, list[dict[str, str]]]:
    """What both models say on the new data, by side."""
    new = evaluation["results"].get(NEW_DATA, {}) if evaluation else {}
    return {side: found["samples"] for side, found in new.items() if found.get("samples")}


def _not_decontaminated(evaluation: dict[str, Any] | None) -> list[str]:
    """Tasks run on one of the data sets only."""
    of_sides = (side for of in evaluation["results"].values() for side in of.values()) if evaluation else ()
    return sorted({task for side in of_sides for task in side.get("not_decontaminated", ())})


NEW_DATA = "new data"


LABELS = {
    "test/perplexity": "perplexity per token",
    "test/loss_nats": "loss, nats per token",
    "test/bits_per_byte": "bits per byte",
}


def _rows(evaluation: dict[str, Any] | None) -> list[dict[str, str]]:
    """Every metric of both models by data set, in the order in which the gate compares them."""
    if evaluation is None:
        return []
    rows = []
    judged = {(c["data"], c.get("metric")): _judged(c) for c in evaluation["comparisons"]}
    for data in dict.fromkeys(c["data"] for c in evaluation["comparisons"] if c["data"] in evaluation["results"]):
        champion, challenger = (evaluation["results"][data][side] for side in ("champion", "challenger"))
        name = f"{data} ({champion['test/tokens']:,} tokens)"
        for key, label in LABELS.items():
            rows.append(_row(name, label, champion, challenger, key, judged.get((data, key), ""), share=False))
        for before, after in zip(champion["needle"], challenger["needle"], strict=True):
            needle = f"needle in {before['length']} tokens, {before['samples']} samples"
            found = judged.get((data, f"test/needle_accuracy_{before['length']}"), "")
            rows.append(_row(name, f"{needle}: exact match", before, after, "accuracy", found))
            first = f"{needle}: ranked first (chance {before['chance']:.3f})"
            rows.append(_row(name, first, before, after, "ranked_first"))
        for task, metrics in champion["tasks"].items():
            shown = [key for key in metrics if is_metric(key)]
            label = f"{task} ({metrics['samples']:,.0f} samples)"
            after = dict.fromkeys(shown, math.nan) | challenger["tasks"][task]  # results lack what is not finite
            rows += [_row(label, key, metrics, after, key, judged.get((task, key), "")) for key in shown]
    return rows


def _row(
    data: str,
    metric: str,
    champion: dict[str, Any],
    challenger: dict[str, Any],
    key: str,
    judged: str = "",
    *,
    share: bool = True,
) -> dict[str, str]:
    before, after = champion[key], challenger[key]
    difference = f"{after - before:+.4f}" + ("" if share or not before else f" ({after / before - 1:+.1%})")
    numbers = {"champion": _with_error(champion, key), "challenger": _with_error(challenger, key)}
    return {"data": data, "metric": metric, "difference": difference, "judged": judged} | numbers


def _with_error(results: dict[str, Any], key: str) -> str:
    error = results.get(f"{key}_stderr")
    return f"{results[key]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _judged(comparison: dict[str, Any]) -> str:
    """What the paired interval says of the challenger beside the champion; "" without an interval."""
    low, high = comparison.get("low"), comparison.get("high")
    if low is None or high is None:
        return ""
    outcome = judge(low, high, comparison["champion"], higher_is_better=comparison["higher_is_better"])
    return f"{outcome} ({low:.4f} to {high:.4f})"
