"""What makes runs of a pipeline comparable in MLflow: figures, verdict, data and report, on the pipeline's own run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest
from flashslm.infra.tracking import mlflow_runs

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


def record_headline(
    settings: Settings, run_id: str, artifacts: Mapping[str, Manifest], decision: str, source: str, report: Path
) -> None:
    """Put them on the MLflow run of the pipeline; `source` names its data."""
    figures = headline(artifacts)
    tags = {"decision": decision} | ({"operators": figures["operators"]} if "operators" in figures else {})
    numbers = {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
    run, dataset = mlflow_runs.run_of(settings, run_id), artifacts["dataset"]
    run.log_metrics(numbers, step=0)
    run.set_tags(tags)
    run.log_dataset(source, dataset.uri, dataset.sha256)
    run.log_file(report)
