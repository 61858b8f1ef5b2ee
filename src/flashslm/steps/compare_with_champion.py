"""compare_with_champion: challenger and champion, both as served, on the same data and device, by the same code."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.evaluation.comparison import compare_items
from flashslm.evaluation.task_metrics import higher_is_better, is_metric
from flashslm.export.importing import load_export, read_served_weights
from flashslm.hardware import pick_device
from flashslm.infra.registry.gate import Comparison
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext
from flashslm.steps.evaluate import Evaluation, evaluate_model, evaluate_served, for_evaluation, perplexity_text
from flashslm.steps.fetch_champion import champions_data

NEW = "new data"
BASE = "first data"


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `evaluation`: evaluation.json with the results of both on every data set, and the comparisons;
    items.json, the challenger's metrics on the first data item by item.

    The data sets are those the champion was judged on (its first and its newest ones) and the new one. The manifest
    carries the challenger's numbers on the first, which later models are compared on.
    """
    datasets = yardsticks(champions_data(context), context.config.retraining.max_evaluated_datasets)
    base = datasets[BASE]
    datasets[NEW] = context.manifest("dataset")
    found: dict[str, dict[str, Evaluation]] = {name: {} for name in datasets}
    with context.scratch() as directory:
        for name, manifest in datasets.items():
            _require_test_split(context.store.get_part(manifest, ("test/", "tokenizer/"), directory / name), name)
        for side, source in (("champion", "deployed"), ("challenger", "exported")):
            exported = context.fetch(source) / "huggingface"
            for name, made in evaluate_side(exported, directory, datasets, context.config):
                found[name][side] = made
                context.events.emit("progress", f"{side} on {name}: {perplexity_text(made.results)}")
    compared = [c for name, of in found.items() for c in comparisons(name, of["challenger"], of["champion"])]
    headline = found[BASE]["challenger"].headline()
    new = {key.replace("/", "/new_"): value for key, value in found[NEW]["challenger"].headline().items()}
    results = {name: {side: made.results for side, made in of.items()} for name, of in found.items()}
    documents = {
        "results": results,
        "comparisons": [c.model_dump() for c in compared],
        "datasets": {name: manifest.model_dump(mode="json") for name, manifest in datasets.items()},
    }
    facts = headline | new | {"dataset_sha256": base.sha256}
    files = found[BASE]["challenger"].files() | {"evaluation.json": documents}
    context.publish_json("evaluation", files, facts)
    before, after = (results[NEW][side]["test/perplexity"] for side in ("champion", "challenger"))
    return (
        headline
        | new
        | {
            "test/champion_new_perplexity": before,
            "summary": f"perplexity on new data {before:.2f} to {after:.2f}, on first data "
            f"{results[BASE]['champion']['test/perplexity']:.2f} to {headline['test/perplexity']:.2f}",
        }
    )


def _require_test_split(dataset: Path, name: str) -> None:
    if not (dataset / "test").is_dir():
        raise ValueError(
            f"the champion's {name} have no test split: they were prepared by an older version; train a new champion "
            "with design_and_train"
        )


def yardsticks(data: list[Manifest], limit: int) -> dict[str, Manifest]:
    """The first data set and the newest ones, `limit` in all."""
    newest = data[1:][-(limit - 1) :] if limit > 1 else []
    return {BASE: data[0]} | {f"data of retraining {data.index(manifest)}": manifest for manifest in newest}


def evaluate_side(
    exported: Path, datasets: Path, names: Iterable[str], recipe: RunConfig
) -> Iterator[tuple[str, Evaluation]]:
    """One side on every data set, the first data before the others: then its weights become those that are served.

    lm-eval's tasks bring their own text: they run once.
    """
    model = for_evaluation(load_export(exported, pick_device("auto")), recipe)
    without_tasks = recipe.evaluation.model_copy(update={"lm_eval_tasks": ()})
    other = recipe.model_copy(update={"evaluation": without_tasks})
    yield BASE, evaluate_served(model, read_served_weights(exported), datasets / BASE, recipe)
    for name in names:
        if name != BASE:
            yield name, evaluate_model(model, datasets / name, other)


def comparisons(data: str, challenger: Evaluation, champion: Evaluation) -> list[Comparison]:
    """Perplexity, retrieval and accuracies of one data set, as the gate takes them."""
    found = [_comparison("test/perplexity", data, challenger, champion, must_gain=data == NEW)]
    needles = [key for key in champion.items if key.startswith("test/needle_accuracy_")]
    found += [_comparison(key, data, challenger, champion) for key in needles]
    for task, metrics in champion.results["tasks"].items():
        for metric in filter(is_metric, metrics):
            found.append(_task_comparison(task, metric, challenger, champion))
    return found


def _comparison(
    key: str, data: str, challenger: Evaluation, champion: Evaluation, must_gain: bool = False
) -> Comparison:
    return compare_items(key, data, challenger.items[key], champion.items[key], must_gain)


def _task_comparison(task: str, metric: str, challenger: Evaluation, champion: Evaluation) -> Comparison:
    """With an interval where the metric is known document by document."""
    key = f"{task}/{metric}"
    if key in challenger.items and key in champion.items:
        return compare_items(metric, task, challenger.items[key], champion.items[key])
    values = {
        side: of.results["tasks"][task].get(metric, math.nan)  # one that was not finite is left out
        for side, of in (("challenger", challenger), ("champion", champion))
    }
    return Comparison(metric=metric, data=task, higher_is_better=higher_is_better(metric), **values)
