"""Metrics item by item: values, errors, pairs, and what the harness's documents come to."""

import json
import math
from typing import Any

import pytest

from flashslm.evaluation import items
from flashslm.evaluation.comparison import compare_items
from flashslm.evaluation.items import MetricItems, accuracy_items
from flashslm.evaluation.task_metrics import is_metric
from flashslm.evaluation.task_results import metric_name, task_items, task_results
from flashslm.statistics import mcnemar, paired_bootstrap


def losses(*nats: float, sha256: str = "documents") -> MetricItems:
    weights = tuple(range(10, 10 + len(nats)))
    totals = tuple(n * w for n, w in zip(nats, weights, strict=True))
    return MetricItems(totals=totals, weights=weights, scale="exponential", higher_is_better=False, items_sha256=sha256)


def test_an_accuracy_is_compared_by_mcnemar_and_a_loss_by_the_bootstrap() -> None:
    before, after = accuracy_items([True, False, False, True], "q"), accuracy_items([True, True, True, True], "q")
    low, high, found = after.interval_beside(before)
    assert found == mcnemar(before.totals, after.totals) and found.value == 0.5
    assert (low, high) == (0.5 + found.low, 0.5 + found.high)
    first, second = losses(*(3 + i / 7 for i in range(30))), losses(*(2.9 + i / 7 + i % 3 / 100 for i in range(30)))
    low, high, found = second.interval_beside(first)
    assert found == paired_bootstrap(first.totals, second.totals, first.weights)
    assert found.value == pytest.approx(-0.09, abs=1e-3)
    assert low == pytest.approx(first.value * math.exp(found.low)) and low <= second.value <= high < first.value


def test_other_items_are_not_paired() -> None:
    with pytest.raises(ValueError, match="different items"):
        losses(3, 4).difference_from(losses(3, 4, sha256="others"))
    compared = compare_items("test/perplexity", "data", losses(3, 4), losses(3, 4, sha256="others"))
    assert compared.low is None and compared.interval_text() == ""


def test_a_single_item_has_no_error_and_its_difference_says_nothing() -> None:
    assert losses(3).standard_error is None and set(items.numbers({"x": losses(3)})) == {"x"}
    compared = compare_items("test/perplexity", "data", losses(2.0), losses(3.0), must_gain=True)
    assert compared.judged(compared.champion) == "cannot tell"


def test_items_travel_as_json() -> None:
    made = {"a": losses(3, 4), "b": accuracy_items([True, False], "q")}
    assert items.load(json.loads(json.dumps(items.dump(made)))) == made


def outcome(samples: list[dict[str, Any]], **results: float) -> dict[str, Any]:
    """As lm_eval returns it, of one task."""
    for number, sample in enumerate(samples):
        sample.setdefault("doc_id", number)
        sample.setdefault("doc_hash", f"hash {sample['doc_id']}")
        sample.setdefault("prompt_hash", f"prompt {sample['doc_id']}")
        sample.setdefault("filter", "none")
    return {
        "results": {"t": {"alias": "t"} | {key.replace("__", ","): value for key, value in results.items()}},
        "samples": {"t": samples},
        "n-samples": {"t": {"effective": len(samples)}},
        "versions": {"t": 2.0},
        "n-shot": {"t": 5},
        "higher_is_better": {"t": {"acc": True, "word_perplexity": False, "perplexity": False}},
    }


def test_a_mean_a_perplexity_and_nats_per_word_are_recognised() -> None:
    samples = [{"acc": 1.0, "perplexity": -2.0, "word_perplexity": (-6.0, 3)}]
    samples += [{"acc": 0.0, "perplexity": -4.0, "word_perplexity": (-9.0, 2)}]
    values = {"acc__none": 0.5, "perplexity__none": math.exp(3.0), "word_perplexity__none": math.exp(3.0)}
    found = task_items(outcome(samples, **values), "t")
    assert {name: of.value for name, of in found.items()} == {
        "acc": 0.5,
        "perplexity": math.exp(3),
        "word_perplexity": math.exp(3),
    }
    assert found["acc"].higher_is_better and not found["word_perplexity"].higher_is_better
    assert found["word_perplexity"].item_weights == (3, 2)


def test_documents_are_put_in_order_and_named_by_their_hashes() -> None:
    shuffled = [{"acc": 0.0, "doc_id": 1}, {"acc": 1.0, "doc_id": 0}]
    (found,) = task_items(outcome(shuffled, acc__none=0.5), "t").values()
    (straight,) = task_items(outcome([{"acc": 1.0}, {"acc": 0.0}], acc__none=0.5), "t").values()
    (other,) = task_items(outcome([{"acc": 1.0, "doc_hash": "x"}, {"acc": 0.0}], acc__none=0.5), "t").values()
    assert found == straight and found.items_sha256 != other.items_sha256
    few_shot = [{"acc": 1.0, "prompt_hash": "x"}, {"acc": 0.0}]
    (asked_otherwise,) = task_items(outcome(few_shot, acc__none=0.5), "t").values()
    assert asked_otherwise.items_sha256 not in (found.items_sha256, other.items_sha256)


def test_a_filter_has_its_own_items_and_what_is_no_mean_has_none() -> None:
    samples = [{"exact_match": 1.0, "filter": "strict"}, {"exact_match": 0.0, "filter": "flexible"}]
    made = outcome(
        samples, exact_match__strict=1.0, exact_match__flexible=0.0, exact_match_stderr__strict=0.1, f1__strict=0.3
    )
    found = task_items(made, "t")
    assert set(found) == {"exact_match_strict", "exact_match_flexible"}
    results = task_results(made)["t"]
    assert results["exact_match_strict_stderr"] == 0.1 and (results["version"], results["shots"]) == (2, 5)
    assert [name for name in results if is_metric(name)] == ["exact_match_strict", "exact_match_flexible", "f1_strict"]


def test_names_of_metrics() -> None:
    names = ("acc,none", "acc_stderr,none", "exact_match,strict", "exact_match_stderr,strict")
    assert [metric_name(name) for name in names] == [
        "acc",
        "acc_stderr",
        "exact_match_strict",
        "exact_match_strict_stderr",
    ]
