"""The report of a retraining run as one self-contained HTML file: data, both models side by side, decision."""

from dataclasses import dataclass
from typing import Any

from flashslm.reporting.html import page


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


def render_retraining(run: RetrainingArtifacts) -> str:
    return page("retraining.html.j2", run=run, rows=_rows(run.evaluation))


SHOWN = ("perplexity", "validation_loss_nats", "bits_per_byte", "evaluated_tokens")


def _rows(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every metric of both models by data set."""
    rows = []
    for data, of in (evaluation or {"results": {}})["results"].items():
        champion, challenger = of["champion"], of["challenger"]
        keys = [*SHOWN, *(key for key in champion if key.startswith("needle_accuracy_"))]
        rows += [_row(data, key, champion[key], challenger[key]) for key in keys]
        for task, metrics in champion["tasks"].items():
            rows += [_row(task, key, value, challenger["tasks"][task][key]) for key, value in metrics.items()]
    return rows


def _row(data: str, metric: str, champion: float, challenger: float) -> dict[str, Any]:
    return {"data": data, "metric": metric, "champion": champion, "challenger": challenger}
