"""What makes runs of a pipeline comparable in MLflow: figures, verdict, data and report, on the pipeline's own run."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import MlflowUnavailable, TrackingClient

_KEYS = {
    "evaluation": ("test/perplexity", "test/loss_nats", "test/bits_per_byte", "test/new_perplexity"),
    "dataset": ("unigram_entropy_nats", "reason"),
    "chosen": ("reason",),
    "exported": ("latency_ms", "parameters", "operators", "width"),
}


def headline(artifacts: Mapping[str, Manifest]) -> dict[str, Any]:
    """The figures of a run by the metadata of its artifacts; a run that ended early has fewer."""
    return {
        key: artifacts[name].metadata[key]
        for name, keys in _KEYS.items()
        for key in keys
        if name in artifacts and key in artifacts[name].metadata
    }


def record_figures(settings: Settings, artifacts: Mapping[str, Manifest]) -> None:
    """Put the figures of a step's outputs on the pipeline's run as soon as the step has ended."""
    numbers = _numbers(headline(artifacts))
    if numbers and settings.parent_run_id:
        mlflow_runs.run_of(settings, settings.parent_run_id).log_metrics(numbers, step=0)


def record_headline(
    settings: Settings, run_id: str, artifacts: Mapping[str, Manifest], decision: str, source: str, report: Path
) -> None:
    """Put them on the MLflow run of the pipeline, unless their steps did; `source` names its data."""
    figures = headline(artifacts)
    tags = {"decision": decision} | ({"operators": figures["operators"]} if "operators" in figures else {})
    run, dataset, known = mlflow_runs.run_of(settings, run_id), artifacts["dataset"], _known(settings, run_id)
    run.log_metrics({key: value for key, value in _numbers(figures).items() if key not in known}, step=0)
    run.set_tags(tags)
    run.log_dataset(source, dataset.uri, dataset.sha256)
    run.log_file(report)


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}


def _known(settings: Settings, run_id: str) -> set[str]:
    """The metrics that the run has; none are known while MLflow is away."""
    with suppress(MlflowUnavailable):
        return set(TrackingClient(settings).get_run(run_id).data.metrics)
    return set()
