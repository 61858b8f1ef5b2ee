"""What a person reads on the MLflow run of a pipeline: what came out, and links to curves, other runs and files."""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from flashslm.infra.settings import Settings
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.infra.tracking.spool import NOTE_TAG, PARENT_TAG

_FIGURES = ("test/perplexity", "test/bits_per_byte", "latency_ms", "parameters")
_CURVE = "validation/loss_nats"
_TRAINING = ("pretrain", "continue_pretraining")
_TYPE = "workflowType=machine_learning"

# A view of an experiment's runs as MLflow keeps one that a person shares: the columns that tell runs apart come first.
VIEW = "flashslm"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = (
    "tags.`decision`",
    *(f"metrics.`{name}`" for name in _FIGURES),
    "tags.`operators`",
    "attributes.`Created`",
    "attributes.`Duration`",
)
_VIEW_STATE: dict[str, Any] = {
    **{"searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL"},
    **{"lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": []},
    **{"selectedColumns": COLUMNS, "columnOrder": COLUMNS, "columnWidths": {}, "runsExpanded": {}, "runsPinned": []},
    **{"runsHidden": [], "runsVisibilityMap": {}, "runsHiddenMode": "FIRST_10_RUNS", "viewMaximized": False},
    **{"runListHidden": False, "isAccordionReordered": False, "useGroupedValuesInCharts": True},
    **{"hideEmptyCharts": True, "groupBy": None, "groupsExpanded": {}, "autoRefreshEnabled": True},
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
}


def describe(settings: Settings, run_id: str, heading: str, more: Sequence[str] = (), name: str = "") -> None:
    """Describe a run by what it has in MLflow; a `name` is made to end with the architecture. Raises MlflowError."""
    client = TrackingClient(settings)
    run = client.get_run(run_id)
    figures, tags = run.data.metrics, run.data.tags
    results = [f"**{tags['decision']}**"] if "decision" in tags else []
    results += [f"{key} {_shown(figures[key])}" for key in _FIGURES if key in figures]
    results += [f"operators {tags['operators']}"] if "operators" in tags else []
    # MLflow shows the first lines and hides the others behind "Show more".
    paragraphs = [" · ".join(results), " · ".join(_links(client, run)), heading, *more]
    described = {NOTE_TAG: "\n\n".join(filter(None, paragraphs))}
    if name:
        width = f" w{figures['width']:.0f}" if "width" in figures else ""
        described["mlflow.runName"] = name + (f" · {tags['operators']}{width}" if "operators" in tags else "")
    client.set_experiment_tag(run.info.experiment_id, VIEW_TAG, json.dumps(_VIEW_STATE))
    mlflow_runs.run_of(settings, run_id).set_tags(described)


def _links(client: TrackingClient, run: Any) -> Iterator[str]:
    """Addresses within MLflow, which hold wherever people see it."""
    experiment, run_id = run.info.experiment_id, run.info.run_id
    if trained := list(_trained(client, run_id)):
        query = f"runs={_quoted(trained)}&metric={_quoted(_CURVE)}&experiments={_quoted([experiment])}"
        query += f"&plot_metric_keys={_quoted([_CURVE])}&x_axis=step"
        yield f"[curves of all variants on one chart](#/metric?{query}&{_TYPE})"
    if earlier := _earlier(client, run):
        query = f"runs={_quoted([earlier, run_id])}&experiments={_quoted([experiment])}"
        yield f"[beside the run before it](#/compare-runs?{query}&{_TYPE})"
    yield f"[all runs, results first](#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{_TYPE})"


def _trained(client: TrackingClient, run_id: str) -> Iterator[str]:
    """The runs that have the curves: of a step from the cache the one that did the work."""
    for step in _TRAINING:
        for run in client.find_runs(f"tags.{PARENT_TAG} = '{run_id}' and tags.step = '{step}'"):
            if run.data.tags.get("cached") != "true":
                yield str(run.info.run_id)
            elif origin := run.data.tags.get("cached.origin"):
                yield str(origin)


def _earlier(client: TrackingClient, run: Any) -> str:
    """The last finished run of the same pipeline and recipe that began before; "" where there is none."""
    condition = f"attributes.status = 'FINISHED' and attributes.start_time < {run.info.start_time}"
    for key in ("pipeline", "recipe"):
        condition += f" and tags.{key} = '{run.data.tags[key]}'" if key in run.data.tags else ""
    found = [earlier for earlier in client.find_runs(condition) if PARENT_TAG not in earlier.data.tags]
    return str(found[0].info.run_id) if found else ""


def _quoted(value: Any) -> str:
    return quote(json.dumps(value, separators=(",", ":")), safe="")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.5g}"
