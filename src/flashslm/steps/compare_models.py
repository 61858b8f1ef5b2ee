"""Two models beside each other, metric by metric: runs, checkpoints, exports or registry versions. A command, no step.

Runs and versions have a stored evaluation, item by item: nothing is run again. With a recipe and a data set both are
evaluated here instead, which checkpoints and exports always need.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flashslm.config import RunConfig
from flashslm.evaluation import items as metric_items
from flashslm.evaluation.comparison import compare_items
from flashslm.evaluation.items import ITEMS_FILE, MetricItems
from flashslm.export.importing import load_export, read_served_weights
from flashslm.hardware import pick_device
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.gate import Comparison
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.models.accounting import parameters
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_model
from flashslm.ops import kernels
from flashslm.steps.evaluate import evaluate_served, for_evaluation

WEIGHTS, ARCHITECTURE, TOKENIZER = "model.safetensors", "architecture.json", "tokenizer.json"
SIZES = ("latency_ms", "parameters")  # of a model's facts, in the table
FORMS = (
    "a run's directory or its id below runs/, a manifest of an evaluation, a checkpoint or an export (such as "
    "runs/latest/artifacts/chosen.json), a directory of a checkpoint or an export, or NAME@VERSION with a version's "
    "number or alias in the registry"
)


class ModelComparison(BaseModel):
    """`challenger` of a row is the second model, `champion` the first; sizes and latency have no interval."""

    first: str
    second: str
    facts: dict[str, dict[str, Any]]  # by "first" and "second"
    rows: list[Comparison]
    errors: dict[str, tuple[float | None, float | None]]  # by metric: the standard error of each
    alone: list[str]  # metrics that only one of them has


@dataclass
class ComparedModel:
    """One of the two: what is known of it, and how to get its model."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    items: dict[str, MetricItems] | None = None
    model_directory: Callable[[], Path] | None = None


class ModelFinder:
    """What a text of the command line means. The store and the registry are asked only where a form needs them."""

    def __init__(self, settings: Callable[[], Settings], trees: Path, runs: Path):
        self._get_settings, self._trees, self._runs = settings, trees, runs

    @cached_property
    def _settings(self) -> Settings:
        return self._get_settings()

    def find(self, text: str) -> ComparedModel:
        """Raises ValueError for what is none of the forms."""
        for path in (Path(text), self._runs / text):
            if (path / "artifacts").is_dir():
                return self._run(text, path / "artifacts")
            if path.is_file() and path.suffix == ".json":
                return self._manifest(text, Manifest.read(path))
            if (path / ARCHITECTURE).is_file() or _export_in(path):
                return ComparedModel(text, model_directory=partial(Path, path))
        name, separator, version = text.rpartition("@")
        if separator and name and version:
            return self._version(name, version)
        raise ValueError(f"'{text}' is not a model to compare: give {FORMS}")

    def fetch(self, manifest: Manifest) -> Path:
        return ObjectStore(self._settings).get_tree(manifest, self._trees / manifest.sha256)

    def _run(self, text: str, artifacts: Path) -> ComparedModel:
        found = {path.stem: path for path in artifacts.glob("*.json")}
        if "evaluation" not in found:
            raise ValueError(
                f"run '{text}' has no evaluation among its artifacts: it ended before its model was judged"
            )
        items = self._items(Manifest.read(found["evaluation"]))
        if "exported" not in found:  # it ended before the export
            return ComparedModel(text, items=items)
        exported = Manifest.read(found["exported"])
        return ComparedModel(text, exported.metadata, items, lambda: self.fetch(exported))

    def _manifest(self, text: str, manifest: Manifest) -> ComparedModel:
        if manifest.kind == "evaluation":
            return ComparedModel(text, items=self._items(manifest))
        return ComparedModel(text, manifest.metadata, model_directory=lambda: self.fetch(manifest))

    def _version(self, name: str, wanted: str) -> ComparedModel:
        versions = model_registry.list_versions(self._settings, name)
        found = next((v for v in versions if wanted == v.version or wanted in v.aliases), None)
        if found is None:
            known = ", ".join(f"{name}@{v.version}" for v in versions) or "none of that name"
            raise ValueError(f"the registry has no '{name}@{wanted}'; it has {known}")
        evaluation, manifest = found.lineage.evaluation, found.manifest
        items = self._items(evaluation) if evaluation else None
        return ComparedModel(f"{name}@{found.version}", found.facts, items, lambda: self.fetch(manifest))

    def _items(self, evaluation: Manifest) -> dict[str, MetricItems] | None:
        file = self.fetch(evaluation) / ITEMS_FILE
        return metric_items.load(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def evaluate_candidate(candidate: ComparedModel, recipe: RunConfig, dataset: Path) -> ComparedModel:
    """Its metrics on the data set's test split. Raises ValueError where it has no model, or other tokens."""
    if candidate.model_directory is None:
        raise ValueError(f"'{candidate.name}' is an evaluation without its model: leave out --config and --dataset")
    kernels.configure(recipe.kernels)
    directory, device = candidate.model_directory(), pick_device("auto")
    export = _export_in(directory)
    if export:
        _refuse_other_tokens(candidate.name, export / TOKENIZER, dataset / "tokenizer" / TOKENIZER)
    model: HybridLM = load_export(export, device) if export else load_model(directory, device=device)
    weights = read_served_weights(export) if export else recipe.profiling.weights
    found = evaluate_served(for_evaluation(model, recipe), weights, dataset, recipe)
    facts = {"parameters": parameters(model.architecture)["total"]} | candidate.facts
    return ComparedModel(candidate.name, facts, found.items, candidate.model_directory)


def compare_models(first: ComparedModel, second: ComparedModel) -> ModelComparison:
    """Every metric that both have, the second beside the first. Raises ValueError where one has no items."""
    for candidate in (first, second):
        if candidate.items is None:
            raise ValueError(
                f"'{candidate.name}' has no stored evaluation, item by item: give --config and --dataset to evaluate "
                "both here"
            )
    a, b = first.items or {}, second.items or {}
    shared = [name for name in a if name in b]
    if not shared:
        raise ValueError(f"'{first.name}' and '{second.name}' have no metric in common: give --config and --dataset")
    rows = [compare_items(name, "", b[name], a[name]) for name in shared]
    return ModelComparison(
        first=first.name,
        second=second.name,
        facts={"first": first.facts, "second": second.facts},
        rows=rows + _sizes(first.facts, second.facts),
        errors={name: (a[name].standard_error, b[name].standard_error) for name in shared},
        alone=sorted(a.keys() ^ b.keys()),
    )


def finite(value: Any) -> Any:
    """JSON has no infinity: an interval that is the whole line ends in null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sizes(first: dict[str, Any], second: dict[str, Any]) -> list[Comparison]:
    """Latencies of other devices, contexts or batches are not beside each other."""
    place = ("device", "context", "batch")
    same_place = all(first.get(key) == second.get(key) for key in place)
    return [
        Comparison(metric=key, data="", challenger=second[key], champion=first[key], higher_is_better=False)
        for key in SIZES
        if key in first and key in second and (key == "parameters" or same_place)
    ]


def _export_in(path: Path) -> Path | None:
    """The exported directory that a path is or holds."""
    places = (path, path / "huggingface", path / "export" / "huggingface")
    return next((place for place in places if (place / "config.json").is_file()), None)


def _refuse_other_tokens(name: str, own: Path, expected: Path) -> None:
    if own.is_file() and json.loads(own.read_text()).get("model") != json.loads(expected.read_text()).get("model"):
        raise ValueError(
            f"'{name}' has another tokenizer than the data set: prepare the data with its own (data.tokenizer)"
        )
