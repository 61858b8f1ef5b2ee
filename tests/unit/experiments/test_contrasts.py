"""Means, paired differences and rankings of cells whose numbers are known."""

import pytest
from scipy import stats

from flashslm.experiments.contrasts import differences, grouped, means, rankings
from tests.unit.experiments.tiny import result


def of(found: list[dict], **wanted: object) -> dict:
    (only,) = [each for each in found if all(each[key] == value for key, value in wanted.items())]
    return only


def test_means_and_spread_are_over_seeds() -> None:
    found = means(grouped([result("a", 20.0, 0), result("a", 22.0, 1), result("b", 30.0, 0)]))
    assert [(group["model"], group["seeds"]) for group in found] == [("a", [0, 1]), ("b", [0])]
    assert found[0]["metrics"]["perplexity"] == {"mean": 21.0, "spread": pytest.approx(2**0.5)}
    assert found[1]["metrics"]["perplexity"]["spread"] is None


def test_differences_are_paired_by_seed_with_t_intervals() -> None:
    """The seeds move both models together by far more than they differ."""
    results = [result("a", 20.0 + 5 * seed, seed) for seed in range(4)]
    results += [result("b", 19.0 + 5 * seed + 0.1 * (seed % 2), seed) for seed in range(3)]
    found = of(differences(grouped(results), "a"), model="b", metric="perplexity")
    assert (found["factor"], found["reference"]) == ("model", "a")
    assert found["by_seed"] == pytest.approx({0: -1.0, 1: -0.9, 2: -1.0})
    low, high = stats.ttest_1samp([-1.0, -0.9, -1.0], 0).confidence_interval()
    assert (found["low"], found["high"], found["is"]) == (pytest.approx(low), pytest.approx(high), "better")
    recall = of(differences(grouped(results), "a"), model="b", metric="recall_mqar_512")
    assert recall["difference"] > 0, "more is better there"


def test_one_seed_has_a_difference_and_no_claim() -> None:
    found = of(differences(grouped([result("a", 20.0), result("b", 10.0)]), "a"), metric="perplexity")
    assert (found["difference"], found["is"]) == (-10.0, "cannot tell") and "low" not in found


def test_each_variant_is_compared_with_its_twin() -> None:
    results = [
        result("a", 20.0 + (2 if norm == "on" else 0) + meta / 256, 0, weight_norm=norm, meta_tokens=meta)
        for norm in ("off", "on")
        for meta in (0, 256)
    ]
    found = [each for each in differences(grouped(results), "") if each["metric"] == "perplexity"]
    assert [(each["factor"], each["difference"]) for each in found] == [
        ("weight_norm", 2.0),
        ("weight_norm", 2.0),
        ("meta_tokens", 1.0),
        ("meta_tokens", 1.0),
    ]
    assert {each["reference"] for each in found} == {"off", 0}


def test_a_failed_run_is_in_no_mean_and_no_pair() -> None:
    failed = result("b", 1.0, 1).model_copy(update={"failed": "the loss is not finite", "metrics": {}})
    groups = grouped([result("a", 20.0, 0), result("a", 21.0, 1), result("b", 19.0, 0), failed])
    assert of(means(groups), model="b")["seeds"] == [0]
    assert of(differences(groups, "a"), metric="perplexity")["by_seed"] == {0: -1.0}


def test_each_budget_is_ranked_against_the_longer_ones() -> None:
    """100 steps swap the best two of five models, 200 steps none."""
    orders = {100: [2, 1, 3, 4, 5], 200: [1, 2, 3, 4, 5], 400: [10, 20, 30, 40, 50]}
    results = [
        result(f"m{number}", float(perplexity), steps=steps)
        for steps, order in orders.items()
        for number, perplexity in enumerate(order)
    ]
    found = rankings(grouped(results))
    assert {(each["steps"], each["longer"]) for each in found} == {(100, 200), (100, 400), (200, 400)}
    swapped, same = (of(found, steps=steps, longer=400, metric="perplexity") for steps in (100, 200))
    assert swapped["value"] == pytest.approx(0.9) and swapped["low"] < 0.9 <= swapped["high"]
    assert (same["value"], same["items"]) == (pytest.approx(1.0), 5)


def test_two_models_are_not_ranked() -> None:
    results = [result(name, 20.0 + steps, steps=steps) for name in "ab" for steps in (1, 2)]
    assert rankings(grouped(results)) == []


def test_a_record_cut_off_in_a_long_budget_still_ranks_the_shorter_ones() -> None:
    """Only four of six models have the longest budget: they say nothing, the two shorter budgets of all six do."""
    done = {100: 6, 200: 6, 400: 4}
    results = [result(f"m{n}", 10.0 + n, steps=steps) for steps, models in done.items() for n in range(models)]
    found = rankings(grouped(results))
    shorter = of(found, steps=100, longer=200, metric="perplexity")
    assert (shorter["items"], shorter["value"]) == (6, pytest.approx(1.0))
    few = of(found, steps=100, longer=400, metric="perplexity")
    assert (few["items"], few["low"], few["high"]) == (4, -1.0, 1.0)


def test_models_are_ranked_by_the_seeds_that_all_of_them_have() -> None:
    """The second seed, which is worse by far, has reached the first two models only."""
    results = [result(f"m{n}", 10.0 + n, steps=steps) for steps in (100, 200) for n in range(5)]
    results += [result(f"m{n}", 90.0, seed=1, steps=100) for n in range(2)]
    found = of(rankings(grouped(results)), metric="perplexity")
    assert found["value"] == pytest.approx(1.0) and found["seeds"] == [0]
