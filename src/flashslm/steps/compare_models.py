"""Two models beside each other, metric by metric: runs, checkpoints, exports or registry versions. A command, no step.

Runs and versions have a stored evaluation, item by item: nothing is run again. With a recipe and a data set both are
evaluated here instead, which checkpoints and exports always need.
"""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flashslm.config import RunConfig
from flashslm.evaluation.comparison import compare_items
from flashslm.export.importing import load_export, read_served_weights
from flashslm.hardware import pick_device
from flashslm.infra.registry.gate import Comparison
from flashslm.models.accounting import parameters
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_model
from flashslm.ops import kernels
from flashslm.steps.evaluate import evaluate_served, for_evaluation
from flashslm.steps.named_model import NamedModel, export_in

TOKENIZER = "tokenizer.json"
SIZES = ("latency_ms", "parameters")  # of a model's facts, in the table


class ModelComparison(BaseModel):
    """`challenger` of a row is the second model, `champion` the first; sizes and latency have no interval."""

    first: str
    second: str
    facts: dict[str, dict[str, Any]]  # by "first" and "second"
    rows: list[Comparison]
    errors: dict[str, tuple[float | None, float | None]]  # by metric: the standard error of each
    alone: list[str]  # metrics that only one of them has
    unpaired: list[str]  # metrics whose items differ, or how they were read: the difference says nothing


def evaluate_candidate(candidate: NamedModel, recipe: RunConfig, dataset: Path) -> NamedModel:
    """Its metrics on the data set's test split. Raises ValueError where it has no model, or other tokens."""
    if candidate.model_directory is None:
        raise ValueError(f"'{candidate.name}' is an evaluation without its model: leave out --config and --dataset")
    kernels.configure(recipe.kernels)
    directory, device = candidate.model_directory(), pick_device("auto")
    export = export_in(directory)
    if export:
        _refuse_other_tokens(candidate.name, export / TOKENIZER, dataset / "tokenizer" / TOKENIZER)
    model: HybridLM = load_export(export, device) if export else load_model(directory, device=device)
    weights = read_served_weights(export) if export else recipe.profiling.weights
    found = evaluate_served(for_evaluation(model, recipe), weights, dataset, recipe)
    facts = {"parameters": parameters(model.architecture)["total"]} | candidate.facts
    return NamedModel(candidate.name, facts, found.items, candidate.model_directory)


def compare_models(first: NamedModel, second: NamedModel) -> ModelComparison:
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
        unpaired=[name for name in shared if a[name].items_sha256 != b[name].items_sha256],
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


def _refuse_other_tokens(name: str, own: Path, expected: Path) -> None:
    if own.is_file() and json.loads(own.read_text()).get("model") != json.loads(expected.read_text()).get("model"):
        raise ValueError(
            f"'{name}' has another tokenizer than the data set: prepare the data with its own (data.tokenizer)"
        )
