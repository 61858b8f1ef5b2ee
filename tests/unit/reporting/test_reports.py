"""What the reports show: every number beside its unit, in the gate's order, and no empty figure."""

import dataclasses
import html
from typing import Any

import pytest

from flashslm.reporting.html import render
from flashslm.reporting.plots import latency_by_width
from flashslm.reporting.retraining import RetrainingArtifacts, render_retraining
from tests.unit.reporting.documents import artifacts, run_facts


def results(perplexity: float, ranked_first: float, **tasks: dict[str, float]) -> dict[str, Any]:
    needle = {"length": 48, "samples": 16, "chance": 0.0625, "accuracy": 0.0, "ranked_first": ranked_first}
    values = {"test/perplexity": perplexity, "test/loss_nats": 4.0, "test/bits_per_byte": 3.0}
    return values | {"test/tokens": 20_000, "needle": [needle], "needle_accuracy_48": 0.0, "tasks": tasks}


INTERVAL = {"data": "new data", "metric": "test/perplexity", "champion": 80.0, "low": 55.0, "high": 65.0} | {
    "higher_is_better": False
}


def retrained(decision: str, device: str = "fingerprint-1") -> RetrainingArtifacts:
    names = ("first data", "data of retraining 2", "data of retraining 10", "new data")
    task = {"acc": 0.5, "samples": 1200.0}
    of = {
        "champion": results(80.0, 0.25, arc=task),
        "challenger": results(60.0, 0.5, arc=task | {"acc": 0.75, "acc_stderr": 0.0125}),
    }
    evaluation = {
        "results": {n: of for n in sorted(names)},
        "comparisons": [{"data": n} for n in names for _ in "ab"] + [INTERVAL],
    }
    failed = ["fail: perplexity on first data 116.9, at most 66.4"] if decision == "hold" else []
    return RetrainingArtifacts(
        name="nightly",
        decision=decision,
        reasons=[check.removeprefix("fail: ") for check in failed],
        champion={"name": "m", "version": "3", "data": [{}], "facts": {"latency_ms": 0.957, "device": "fingerprint-1"}},
        data={"read_documents": 1500, "seen_documents": 1200},
        lineage=[],
        evaluation=evaluation,
        export={
            "operators": "DF",
            "latency_ms": 0.046876,
            "latency_p90_ms": 0.047491,
            "context": 256,
            "batch": 1,
            "device": device,
        },
        training={
            "steps": 100,
            "tokens_seen": 204800,
            "tokens_per_s": 14843.1,
            "device": "cpu",
            "weight_norm": "on",
            "resumed_from_step": 0,
        },
        verdict={"checks": ["pass: latency 0.4 ms/token", *failed]},
    )


def numbers(champion: str, challenger: str, difference: str) -> str:
    """The cells of a row that hold them."""
    row = {"champion": champion, "challenger": challenger, "difference": difference}
    return "".join(f'<td class="n" data-label="{label}">{text}</td>' for label, text in row.items())


def test_both_models_are_shown_in_the_order_of_the_gate() -> None:
    page = render_retraining(retrained("promote"))
    places = [page.index(f"<td>{name} (20,000 tokens)</td>") for name in ("first data", "data of retraining 2")]
    places += [page.index(f"<td>{name} (20,000 tokens)</td>") for name in ("data of retraining 10", "new data")]
    assert places == sorted(places)
    assert numbers("80.0000", "60.0000", "-20.0000 (-25.0%)") in page
    assert "needle in 48 tokens, 16 samples: ranked first (chance 0.062)" in page
    assert page.count('<td data-label="the challenger is">better (55.0000 to 65.0000)</td>') == 1
    assert "0.7500 ± 0.0125</td>" in page and "acc_stderr" not in page
    assert numbers("0.0000", "0.0000", "+0.0000") in page
    assert page.count("<td>first data") == 1, "the name stands once over its rows"
    assert "arc (1,200 samples)" in page and "<td>samples</td>" not in page
    assert "trained on 1 data set<" in page and "14,843 tokens/s" in page


@pytest.mark.parametrize(("device", "said"), [("fingerprint-1", "by the same device"), ("other", "by another device")])
def test_the_champions_latency_stands_beside_the_challengers(device: str, said: str) -> None:
    page = render_retraining(retrained("promote", device))
    assert "takes 0.04688 ms per token (90th percentile 0.04749) at context 256, batch 1;" in page
    assert f"the champion was registered with 0.957 ms, {said} (fingerprint <code>fingerprint-1</code>)" in page


def test_a_reason_is_given_once() -> None:
    page = render_retraining(retrained("hold"))
    assert page.count("perplexity on first data 116.9, at most 66.4") == 1 and "pass: latency" in page


def test_a_context_that_was_not_measured_shows_the_nearest() -> None:
    measured = {"operator": "A", "batch": 1, "median_ms": 0.2, "p10_ms": 0.1, "p90_ms": 0.3}
    entries = [measured | {"width": width, "context": context} for width in (32, 64) for context in (32, 128)]
    (axes,) = latency_by_width({"entries": entries}, context=64, batch=1).axes
    assert axes.get_xlabel() == "width (context 32)"
    assert list(axes.lines[0].get_xdata()) == [32, 64]


def test_a_retraining_report_says_what_text_was_left_out_and_which_tasks_were_not_looked_for() -> None:
    run = retrained("promote")
    assert "kept out" not in render_retraining(run)
    run.data.update(documents=9, source="files", bytes=900, train_tokens=80, validation_tokens=9, test_tokens=9)
    run.data.update(contaminated_dropped=3, near_duplicates_dropped=2)
    run.evaluation["results"]["first data"]["champion"]["not_decontaminated"] = ["piqa", "arc_easy"]  # type: ignore[index]
    page = render_retraining(run)
    assert "The text of arc_easy, piqa was not kept out of the training text, unless" in page
    assert "<dt>dropped for text of evaluation sets</dt><dd>3</dd>" in page
    assert "<dt>near duplicates dropped</dt><dd>2</dd>" in page and "rows that cannot be read" not in page


def test_a_perplexity_of_thousands_has_one_decimal() -> None:
    run = artifacts()
    run.evaluation["tasks"]["lambada"] = {"perplexity": 6868.5317, "perplexity_stderr": 322.7831, "samples": 5153.0}
    assert ">6868.5 ± 322.8</td>" in render(run, run_facts())


def test_a_choice_at_an_end_of_the_search_is_said() -> None:
    edges = ["width 64 is the largest that was searched (as in 3 of 4 trials)", "ffn_ratio 2 is the smallest"]
    page = render(dataclasses.replace(artifacts(), edges=edges), run_facts())
    assert f"at an end of what was searched: {'; '.join(edges)}. A better design may lie beyond." in page
    assert "at an end of what was searched" not in render(artifacts(), run_facts())


def test_a_depth_and_width_at_an_end_of_what_was_offered_is_said() -> None:
    run = artifacts()
    scaling = run.scaling | {"ends": ["depth 2 is the smallest that was offered"]}
    said = "At an end of what was offered: depth 2 is the smallest that was offered. The law's largest error"
    assert said in html.unescape(render(dataclasses.replace(run, scaling=scaling), run_facts()))
    assert "At an end of what was offered" not in render(run, run_facts())


def test_a_measured_time_beyond_the_budget_is_said() -> None:
    run, said = artifacts(), "The chosen design's measured time is beyond the budget of 0.8000 ms"
    slow = [run.winners[0] | {"measured_ms": 0.81}, *run.winners[1:]]
    assert said in html.unescape(render(dataclasses.replace(run, winners=slow), run_facts()))
    assert said not in html.unescape(render(run, run_facts()))


def test_a_metric_that_the_challenger_lacks_is_shown_as_not_a_number() -> None:
    """What the harness found not finite is in no results; the gate holds such a challenger, and the report says why."""
    run = retrained("hold")
    results_of = run.evaluation["results"]["first data"]  # type: ignore[index]
    results_of["challenger"]["tasks"] = {"arc": {"samples": 1200.0}}
    assert numbers("0.5000", "nan", "+nan") in render_retraining(run)
