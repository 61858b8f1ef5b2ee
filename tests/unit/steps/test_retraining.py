"""What retraining decides before and after it trains, without any service."""

import math
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import GateConfig, RetrainingConfig, RunConfig, TrainingConfig
from flashslm.data.summary import DatasetSummary
from flashslm.evaluation.items import MetricItems, accuracy_items
from flashslm.infra.registry.gate import MeasuredModel, decide_retraining
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps import compare_with_champion
from flashslm.steps.compare_with_champion import comparisons, yardsticks
from flashslm.steps.continue_pretraining import retraining_config
from flashslm.steps.evaluate import Evaluation
from flashslm.steps.prepare_new_data import too_little


def dataset(content: str) -> Manifest:
    sha256 = content * 64
    return Manifest(kind="dataset", uri=f"s3://bucket/cas/{sha256}", sha256=sha256, bytes=1)


DATA = [dataset(content) for content in "abcde"]
MODEL = MeasuredModel(sha256="a", perplexity=4.0, latency_ms=1.0, parameters=9, device="cpu", dataset_sha256="data")


@pytest.mark.parametrize(
    ("seen", "limit", "expected"),
    [
        (1, 4, {"first data": "a"}),
        (3, 4, {"first data": "a", "data of retraining 1": "b", "data of retraining 2": "c"}),
        (5, 3, {"first data": "a", "data of retraining 3": "d", "data of retraining 4": "e"}),
        (5, 1, {"first data": "a"}),
    ],
)
def test_yardsticks_are_the_first_and_the_newest(seen: int, limit: int, expected: dict[str, str]) -> None:
    chosen = yardsticks(DATA[:seen], limit)
    assert {name: manifest.sha256[0] for name, manifest in chosen.items()} == expected


def results(perplexity: float, **tasks: Any) -> Evaluation:
    """Two documents, two needles and the questions of `arc`, whose perplexity is not known document by document."""
    nats = math.log(perplexity)
    items = {
        "test/perplexity": MetricItems(
            totals=(10 * nats, 20 * nats),
            weights=(10, 20),
            scale="exponential",
            higher_is_better=False,
            items_sha256="documents",
        ),
        "test/needle_accuracy_48": accuracy_items([True, False], "needles"),
        "test/needle_ranked_first_48": accuracy_items([True, True], "needles"),
    }
    if "arc" in tasks:
        items["arc/acc"] = accuracy_items([i < 10 * tasks["arc"]["acc"] for i in range(10)], "questions")
    return Evaluation({"test/perplexity": perplexity, "needle": [], "tasks": tasks}, items)


def test_every_quality_is_compared_in_its_direction() -> None:
    task = {"acc": 0.4, "acc_stderr": 0.1, "samples": 10.0, "version": 1.0, "shots": 0.0, "word_perplexity": 30.0}
    made = comparisons("first data", results(5.0, arc=task | {"acc": 0.6}), results(4.0, arc=task))
    assert [(c.metric, c.data, c.champion, c.higher_is_better) for c in made] == [
        ("test/perplexity", "first data", pytest.approx(4.0), False),
        ("test/needle_accuracy_48", "first data", 0.5, True),
        ("acc", "arc", 0.4, True),
        ("word_perplexity", "arc", 30.0, False),
    ]
    assert [c.challenger for c in made] == pytest.approx([5.0, 0.5, 0.6, 30.0])
    assert not any(c.must_gain for c in made)
    assert [c.metric for c in comparisons("new data", results(5.0), results(4.0)) if c.must_gain] == ["test/perplexity"]


@pytest.mark.parametrize(
    ("metric", "higher_is_better"),
    [("brier_score", False), ("ter", False), ("ter_strict", False), ("bits_per_byte", False), ("terse", True)],
)
def test_a_metric_without_items_has_its_direction_by_its_name(metric: str, higher_is_better: bool) -> None:
    """As lm_eval registers it."""
    task = {metric: 0.4, "samples": 10.0}
    (*_, made) = comparisons("first data", results(5.0, made=task), results(4.0, made=task))
    assert (made.metric, made.higher_is_better, made.low) == (metric, higher_is_better, None)


def test_a_metric_that_the_challenger_lacks_is_not_a_number() -> None:
    """task_results leaves out what is not finite: of a model that lost its way, not of a task that was not run."""
    (*_, made) = comparisons("first data", results(5.0, made={}), results(4.0, made={"word_perplexity": 30.0}))
    assert math.isnan(made.challenger) and made.champion == 30.0
    verdict = decide_retraining(MODEL, MODEL.model_copy(update={"sha256": "b"}), "1", [made], GateConfig())
    assert verdict.reasons == ["word_perplexity on made nan, at most 30.3000 (champion 30.0000)"]


def test_comparisons_have_intervals_where_items_are_known() -> None:
    task = {"acc": 0.4, "samples": 10.0, "word_perplexity": 30.0}
    made = comparisons("first data", results(5.0, arc=task | {"acc": 0.9}), results(4.0, arc=task))
    by_metric = {c.metric: c for c in made}
    assert (by_metric["acc"].method, by_metric["acc"].items) == ("McNemar", 10)
    assert by_metric["acc"].low < 0.9 < by_metric["acc"].high
    assert by_metric["word_perplexity"].low is None
    assert by_metric["test/perplexity"].items == 2


def test_training_is_the_recipes_with_retrainings_own_schedule() -> None:
    own = RetrainingConfig(steps=7, learning_rate=0.5, warmup_steps=3, min_learning_rate_ratio=0.2)
    training = TrainingConfig(batch_size=4, steps=100, weight_decay=0.3)
    made = retraining_config(training, own)
    assert (made.steps, made.learning_rate, made.warmup_steps, made.min_learning_rate_ratio) == (7, 0.5, 3, 0.2)
    assert (made.batch_size, made.weight_decay) == (4, 0.3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"bytes": 999}, "only 999 new bytes in 3 documents, retraining.min_new_bytes is 1,000"),
        ({"train_tokens": 64}, "only 64 new train tokens, one window or needle text needs 65"),
        ({"validation_tokens": 64}, "only 64 new validation tokens, one window or needle text needs 65"),
        ({"test_tokens": 96}, "only 96 new test tokens, one window or needle text needs 97"),
    ],
)
def test_too_little_new_text_waits(changes: dict[str, int], expected: str) -> None:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "training": {"sequence_length": 64},
            "evaluation": {"sequence_length": 32, "needle_lengths": [96]},
            "retraining": {"min_new_bytes": 1000},
        }
    )
    values = (
        dict.fromkeys(DatasetSummary.model_fields, 1000)
        | {"source": "x", "documents": 3, "bad_row_samples": ()}
        | changes
    )
    assert too_little(DatasetSummary.model_validate(values), config) == expected


def test_each_side_is_evaluated_with_the_weights_that_its_export_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first data set before the others, so that its perplexity before rounding is known."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(compare_with_champion, "load_export", lambda *_: "model")
    monkeypatch.setattr(compare_with_champion, "for_evaluation", lambda model, recipe: model)
    monkeypatch.setattr(compare_with_champion, "read_served_weights", lambda exported: exported.name)

    def served(model: str, weights: str, dataset: Path, recipe: RunConfig) -> Evaluation:
        asked.append((dataset.name, weights))
        return results(5.0, **{task: {"acc": 1.0} for task in recipe.evaluation.lm_eval_tasks})

    monkeypatch.setattr(compare_with_champion, "evaluate_served", served)
    monkeypatch.setattr(compare_with_champion, "evaluate_model", lambda m, d, r: served(m, "as they are", d, r))
    recipe = RunConfig.model_validate({"name": "x", "evaluation": {"lm_eval_tasks": ["arc"]}})
    found = dict(compare_with_champion.evaluate_side(Path("int8"), Path(), ["new data", "first data"], recipe))
    assert asked == [("first data", "int8"), ("new data", "as they are")]
    assert (list(found["first data"].results["tasks"]), list(found["new data"].results["tasks"])) == (["arc"], [])
