"""The run's report as one self-contained HTML file: no script, no network, figures inline."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from flashslm.models.operator_spec import LABELS, depends_on_context
from flashslm.reporting import plots


@dataclass(frozen=True)
class RunArtifacts:
    """The JSON documents of a finished run."""

    name: str
    latency_table: dict[str, Any]
    latency_check: dict[str, Any]
    depth_width: dict[str, Any]
    scaling: dict[str, Any]
    architecture: dict[str, Any]
    history: list[dict[str, Any]]
    pareto: list[dict[str, Any]]
    best: dict[str, Any]
    ablation: dict[str, Any]
    step_time_ms: dict[str, float]  # by variant: "on", "off"
    evaluation: dict[str, Any]
    export: dict[str, Any]
    verdict: dict[str, Any]
    latency_context: int
    latency_batch: int
    device_name: str
    lineage: list[dict[str, Any]]  # name, uri, sha256, bytes of every artifact


def figures(run: RunArtifacts) -> dict[str, Figure]:
    """All figures of the report by file stem; MLflow gets the same ones."""
    drawn = {
        "latency_by_width": plots.latency_by_width(run.latency_table, run.latency_context, run.latency_batch),
        "latency_by_context": plots.latency_by_context(run.latency_table, run.latency_batch),
        "depth_width": plots.depth_width_curves(run.depth_width),
        "scaling_fit": plots.scaling_fit(run.scaling),
        "pareto": plots.pareto(run.history, run.pareto, run.best),
    }
    for key, label in (
        ("loss_nats", "training loss (nats)"),
        ("validation_loss_nats", "validation loss (nats)"),
        ("weight_norm", "mean norm of the weight vectors"),
        ("gradient_norm", "gradient norm"),
    ):
        drawn[f"ablation_{key}"] = plots.ablation_curves(run.ablation, key, label)
    return drawn


def render(run: RunArtifacts, drawn: dict[str, Figure]) -> str:
    """The report; every value in the page comes from `run`."""
    images = {name: _data_uri(figure) for name, figure in drawn.items()}
    constant_parts = _constant_parts(run.latency_table)
    decision = run.verdict["decision"]
    return page("report.html.j2", run=run, decision=decision, images=images, constant_parts=constant_parts)


def _constant_parts(table: dict[str, Any]) -> list[str]:
    """The labels of what a latency table measured whose time does not depend on the context."""
    measured = dict.fromkeys(entry["operator"] for entry in table["entries"])
    return [LABELS[part] for part in measured if not depends_on_context(part)]


def page(template: str, **values: Any) -> str:
    """One of this package's templates, filled; a value that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("flashslm", "reporting"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
