"""The run's report: everything that the artifacts say, one file, and no tag left open."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from flashslm.evaluation.task_metrics import task_rows
from flashslm.reporting.charts import ablation_curves, origin
from flashslm.reporting.document import document, render_document
from flashslm.reporting.html import render, share_interval
from flashslm.reporting.plots import figures
from flashslm.reporting.run_facts import duration
from flashslm.reporting.svg import around, tick_texts, ticks
from tests.unit.reporting.documents import BUDGET_MS, artifacts, candidate, run_facts

VOID = {"meta", "br"}


class Tags(HTMLParser):
    """Raises AssertionError for a tag that is closed where another one is open; counts what is on the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tips: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        self.tips += [value or "" for name, value in attributes if name == "data-tip"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open}"


def tags_of(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


@pytest.fixture(scope="module")
def page() -> str:
    return render(artifacts(), run_facts())


def test_the_file_needs_no_network_and_is_small(page: str) -> None:
    tags = tags_of(page)
    assert tags.addresses == ["http://127.0.0.1:5000/#/runs/1", "config.yaml", "logs/a.log", "logs/a.log"]
    assert "@import" not in page and "url(" not in page and len(page) < 200_000


def test_the_header_says_when_by_what_and_how_it_differs(page: str) -> None:
    for expected in (
        "20261127-093049-small",
        "2026-11-27 09:30:49 +0000",
        "4 min 47 s",
        "629b3a5aa0",
        "1.25 in the minute before, 2 cores",
        "Some CPU (2 cores), torch 2.13, float32, 1 thread<",
        "The recipe's 3 differences from the defaults",
        '<td class="mono">search.widths</td><td class="mono">[32, 64]</td>',
        '<div class="verdict failed">\n  <b>Not promoted: MLflow &lt;gone&gt;</b>',
    ):
        assert expected in page.replace("&#39;", "'"), expected


def test_the_law_says_what_it_extrapolates_and_how_well_it_predicts(page: str) -> None:
    for expected in (
        "depth 2, width 64, predicted loss 4.8000 nats. The law",
        "perplexity of the held-out larger model is 1.4 %",
        "<li>At 0.4000 ms: no candidate decodes a token within 0.4 ms.</li>",
        "<li>At 1.6000 ms: depth 4, width 64, predicted loss 4.6000 nats, extrapolated in depth: no model of that size",
        "<td>no</td><td>depth</td>",
        '<td>depth 4</td><td class="n">3</td><td class="n">6.2 %</td><td>extrapolated</td>',
        '<td>L0</td><td class="n">1.8</td><td class="span">1.7 to 1.9</td>',
        "(90 %: 5.0000 to 5.2000)",
    ):
        assert expected in page.replace("&#39;", "'"), expected


def test_a_choice_that_the_trainings_do_not_prefer_is_said_to_be_one(page: str) -> None:
    effects = "the prediction changes by 0.2000 nats (at width 64), over their widths by 0.0000 (at depth 2); "
    assert f"{effects}the trained models lie 0.2500 nats off the law (standard deviation). No other candidate" in page
    run = artifacts()
    near = [candidate(1, 0.5), candidate(3, 0.6)]
    run.scaling["choice"]["candidates"] += near
    run.scaling["within_scatter"] = near
    said = "2 of the 2 other candidates within the budget are predicted less than that above the choice, which these "
    said += "trainings therefore do not prefer to them; the fastest is depth 1, width 64 at 0.5000 ms."
    assert said in render(run, run_facts())


def test_ticks_of_an_axis_have_as_many_decimals_as_the_finest() -> None:
    assert [text for _, text in tick_texts([0, 0.005, 0.01, 0.015])] == ["0", "0.005", "0.010", "0.015"]
    assert [text for _, text in tick_texts([256, 1024])] == ["256", "1024"]
    assert [text for _, text in tick_texts([0, 2e6])] == ["0", "2e+06"] and tick_texts([]) == []


def test_a_legend_shows_what_is_drawn(page: str) -> None:
    legend = page[page.index("Depth and width") : page.index("Architecture search")].split('<ul class="legend">')[1]
    equal, fitted, held_out = legend.split("</ul>")[0].split("</li>")[:3]
    assert "<line" in equal and 'fill="#2563eb"' in fitted and 'fill="#ffffff"' in held_out


def test_the_seeds_of_the_ablation_are_shown_beside_its_interval(page: str) -> None:
    assert "On less off by seed, nats: -0.2500 (seed 0), -0.3500 (seed 1). The interval is Student" in page
    run = artifacts()
    run.ablation["differences_nats"] |= {"2": -0.3}
    assert "-0.3000 (seed 2).</p>" in render(run, run_facts())


def test_a_calibrated_table_says_what_it_was_fitted_on_and_what_that_gained() -> None:
    run = artifacts()
    fit = {"batch": 1, "models": 12, "step_ms": -0.0034, "layer_ms": 0.0, "l2_ms_per_mb": -0.00015, "l2_mb": 50.0}
    errors = {"summed_median_relative": 0.091, "summed_worst_relative": 0.107}
    errors |= {"left_out_median_relative": 0.012, "left_out_worst_relative": 0.029}
    earlier = {"batch": 8, "models": 6, "step_ms": 0.5, "layer_ms": 0.0}
    none = fit | errors | {"batch": 4, "step_ms": 0.0, "l2_ms_per_mb": 0.0}
    table = run.latency_table | {"overheads": [fit | errors, earlier, none]}
    export = run.export | {"predicted_latency_ms": 0.5964}
    page = render(dataclasses.replace(run, latency_table=table, export=export), run_facts())
    assert (
        "Calibrated on 12 whole models at batch 1: their plain sums are off by 9.1 % in the median and 10.7 % at "
        "worst, each one's prediction by a fit on the others by 1.2 % and 2.9 %. Added to a sum: -0.00340 ms a step, "
        "-0.00015 ms for each MB that the step's bytes are below the L2 cache's 50 MB."
    ) in page
    assert "at batch 4: " in page and page.count("No overhead predicts them better, so none is added.") == 1
    assert "at batch 8: " not in page and "<p>Prediction of the table against 1 whole models" in page
    assert "(the sum, and -0.0036 ms of overhead), which is off by" in page
    plain = render(run, run_facts())
    assert (
        "<p>Sum of the table against 1 whole models" in plain and "Calibrated" not in plain and "overhead" not in plain
    )


def test_the_table_is_held_to_the_winners_it_chose(page: str) -> None:
    assert "within the budget, measured after the search: worst error 5.7 %." in page
    row = '<tr class="best"><td class="mono">DFMFF ★</td><td class="n">64</td><td class="n">0.7000</td>'
    assert f'{row}<td class="n">0.6800</td>' in page and ">+2.9 %</td>" in page and ">-5.7 %</td>" in page


def test_every_step_has_its_state_time_and_result(page: str) -> None:
    rows = re.findall(
        r"<tr><td>(?:<a [^>]*>)?([^<]*)(?:</a>)?</td><td class=\"state-(\w+)\">.*?data-value=.*?>(.*?)</td>", page
    )
    assert rows == [
        ("pretrain weight_norm=on", "success", "4.2 s"),
        ("evaluate", "cached", ""),
        ("register_model", "failure", "1 h 1 min"),
    ]
    assert "done &amp; &lt;well&gt;" in page


def test_the_search_shows_every_trial_with_its_design_and_the_budget(page: str) -> None:
    tips = tags_of(page).tips
    trials = [tip for tip in tips if tip.startswith("trial ")]
    assert len(trials) == 3, "a failed trial has no place in the chart"
    assert "trial 2: DFMFF, width 64, 100,002 parameters; 0.7000 ms, 4.6000 nats; trial 0, mixer type changed" in trials
    assert any(tip.startswith("chosen: trial 2: DFMFF") for tip in tips)
    assert f"budget {BUDGET_MS:.4g} ms" in page and "Pareto front" in page
    assert len(re.findall(r'<tr id="trial-\d"', page)) == 4 and '<td class="n" data-value="">failed</td>' in page


def test_the_unused_part_of_the_latency_budget_is_said() -> None:
    run = artifacts()
    history = [
        trial | {"latency_ms": share * BUDGET_MS} for trial, share in zip(run.history, (1, 0.9, 0.5, 0.7), strict=True)
    ]
    best = run.best | {"latency_ms": 0.9 * BUDGET_MS}
    page = render(dataclasses.replace(run, history=history, best=best), run_facts())
    assert "leaves 10.0 % of the latency budget unused, the trials 20.0 % in the median and 50.0 % at most." in page
    limited = "whether a wider design would fit the budget was not measured"
    for widest, is_said in ((best["width"], True), (2 * best["width"], False)):
        entries = [entry | {"width": widest} for entry in run.latency_table["entries"]]
        table = run.latency_table | {"entries": entries}
        page = render(dataclasses.replace(run, latency_table=table, best=best), run_facts())
        assert (limited in page) == is_said


def test_what_was_pruned_says_after_how_many_steps() -> None:
    run = artifacts()
    history = [*run.history[:-1], run.history[-1] | {"pruned_at_step": 40}]
    page = render(dataclasses.replace(run, history=history), run_facts())
    assert ", 1 pruned after 40 steps." in page
    assert '<td class="n" data-value="">pruned after 40 steps</td>' in page


def test_recall_has_a_column_where_it_was_measured_and_says_whom_it_rejected() -> None:
    run = artifacts()
    scored = [trial | {"recall_accuracy": 0.75} for trial in run.history]
    scored[-1] |= {"recall_accuracy": 0.125, "pruned_at_step": 0}
    page = render(dataclasses.replace(run, history=scored), run_facts())
    assert ", 1 rejected by recall." in page and page.count('<td class="n" data-value="0.75">0.750</td>') == 3
    assert '<td class="n" data-value="">rejected by recall</td><td class="n" data-value="0.125">0.125</td>' in page
    assert '<th class="n">recall</th>' in page and '<th class="n">recall</th>' not in render(run, run_facts())


def test_sizes_have_a_column_where_they_are_searched() -> None:
    run, sizes = artifacts(), {"ffn_ratio": 2.0, "mamba_state": 64}
    history = [trial | {"sizes": sizes} for trial in run.history]
    winners = [winner | {"sizes": sizes} for winner in run.winners]
    best = next(trial for trial in history if trial["slot"] == run.best["slot"])
    page = render(dataclasses.replace(run, history=history, winners=winners, best=best), run_facts())
    words = "ffn_ratio 2, mamba_state 64"
    assert page.count(f"<td>{words}</td>") == len(history) + len(winners) and page.count("<th>sizes</th>") == 2
    assert f"operators of width 64 with {words}, " in page
    assert any(f"width 64, {words}, 100,002 parameters" in tip for tip in tags_of(page).tips)
    assert "<th>sizes</th>" not in render(run, run_facts())


def test_the_latency_charts_are_those_of_the_recipes_own_sizes() -> None:
    run = artifacts()
    further = [entry | {"size": 384, "median_ms": 99.0, "p90_ms": 99.0} for entry in run.latency_table["entries"]]
    table = run.latency_table | {"entries": [*run.latency_table["entries"], *further]}
    assert render(dataclasses.replace(run, latency_table=table), run_facts()) == render(run, run_facts())


def test_finalists_stand_beside_the_winner_with_their_seeds() -> None:
    winner = {"slot": 2, "operators": "DFMFF", "width": 64, "latency_ms": 0.7}
    winner |= {"validation_losses_nats": [4.5, 4.6], "test_losses_nats": [4.7, 4.8]}
    winner |= {"validation_loss_nats": 4.55, "test_loss_nats": 4.75}
    winner |= {"difference_nats": None, "difference_interval_nats": None}
    other = winner | {"slot": 0, "test_loss_nats": 4.85, "difference_nats": 0.1}
    other |= {"difference_interval_nats": [-0.2, 0.4]}
    failed = other | {"slot": 1, "validation_loss_nats": None, "test_loss_nats": None, "test_losses_nats": [None, 4.9]}
    failed |= {"difference_nats": None, "difference_interval_nats": None}
    page = render(dataclasses.replace(artifacts(), finalists=[winner, other, failed]), run_facts())
    tags_of(page)
    assert "By it trial 0 cannot be distinguished from the winner: the interval holds zero." in page
    assert "the fastest of them takes 0.7000 ms, the winner 0.7000 ms." in page
    assert "hypervolume" not in page and "with 2 new seeds" in page and "<td>4.7000, 4.8000</td><td></td>" in page
    assert "<td>+0.1000 (-0.2000 to +0.4000)</td>" in page and "<td>failed, 4.9000</td>" in page
    assert "Finalists" not in render(artifacts(), run_facts())


def test_the_architecture_is_drawn_block_by_block(page: str) -> None:
    assert re.findall(r"block (\d): ([\d.]+) ms", page) == [("1", "0.2500"), ("2", "0.2500")]
    assert page.count('<div class="operator"') == 5
    assert re.findall(r"<td>(DeltaNet|Mamba-2|FFN|embedding \+ head)</td><td class=\"n\">(\d)</td>", page) == [
        ("DeltaNet", "1"),
        ("FFN", "3"),
        ("Mamba-2", "1"),
        ("embedding + head", "1"),
    ]
    assert "measured 0.7500 ms per token (10th percentile 0.7000, 90th 0.8000;" in page
    assert "1.500 times the fixed reference model, whose rounds drifted by 2.0 %." in page
    assert "The table predicts 0.6000 ms, which is off by -20.0 %." in page


def test_recall_tasks_are_a_table_and_a_heat_map_of_their_own_for_the_page_and_for_mlflow() -> None:
    run = artifacts()
    facts = {"samples": 16, "accuracy_stderr": 0.1}
    run.evaluation["recall"] = [
        {"task": "single_2", "length": 1024, "accuracy": 0.25, "by_depth": [0.0, 0.5], **facts},
        {"task": "mqar", "length": 4096, "accuracy": 0.5, "by_depth": [0.0, 1.0], **facts},
        {"task": "mqar", "length": 512, "accuracy": 0.75, "by_depth": [1.0, 0.5], **facts},
    ]
    section = render(run).split("Recall from long texts")[1]
    assert "<td>single_2</td>" in section and "0.250 ± 0.100" in section
    heat = section[section.index('<table class="heat">') :].split("</table>")[0]
    assert re.findall(r"<th>(\w+, \d+)</th>", heat) == ["mqar, 512", "mqar, 4096", "single_2, 1024"]
    assert re.findall(r">(\d\.\d\d)</td>", heat) == ["1.00", "0.50", "0.00", "1.00", "0.00", "0.50"]
    (axes,) = figures(run)["recall_heat"].axes
    assert axes.images[0].get_array().tolist() == [[1.0, 0.5], [0.0, 1.0], [0.0, 0.5]]
    run.evaluation["recall"] = []
    assert "Recall from long texts" not in render(run) and "recall_heat" not in figures(run)


def test_evaluation_has_intervals_errors_and_the_heat_map(page: str) -> None:
    assert '0.000 <span class="soft">(0.00 to 0.19)</span>' in page and "(0.10 to 0.49)" in page
    assert "0.3100 ± 0.0200" in page and "acc_stderr" not in page
    heat = page[page.index('<table class="heat">') :].split("</table>")[0]
    assert re.findall(r"<th>(\d+)</th>", heat) == ["48", "96"] and heat.count("<td") == 8
    assert "hsl(0 65% 72%)" in heat and "hsl(60 65% 61%)" in heat, "none and half of the needles"


def test_what_the_model_says_and_what_to_type(page: str) -> None:
    assert page.count('<pre><span class="given">def load(</span>path: &lt;str&gt;)</pre>') == 3
    assert "<pre>flashslm run --config &#39;runs/x/config.yaml&#39;</pre>" in page


def test_the_candidate_stands_beside_the_champion(page: str) -> None:
    assert "champion (version 3)" in page
    assert '<td class="n">70.0000</td><td class="n">80.0000</td><td class="n">-12.5 %</td>' in page
    first = artifacts()
    alone = dataclasses.replace(first, verdict=first.verdict | {"champion": None, "champion_version": ""})
    assert "none yet" in render(alone)


def test_seeds_and_variants_have_lines_of_their_own() -> None:
    drawn = ablation_curves(artifacts().ablation, "train/loss_nats", "loss")
    assert drawn is not None
    assert len({(item.color, item.dash) for item in drawn.legend}) == 4 == len({item.color for item in drawn.legend})


def test_without_the_facts_of_the_run_the_page_says_what_it_can() -> None:
    page = render(artifacts())
    tags_of(page)
    assert "gate&#39;s checks passed" in page and "register_model, which this page does not wait for" in page
    assert '<h2 id="steps">' not in page and '<h2 id="search">' in page


def test_the_stored_document_makes_the_same_page() -> None:
    stored = json.loads(json.dumps(document(artifacts())))
    assert render_document(stored, run_facts()) == render(artifacts(), run_facts())


@pytest.mark.parametrize(
    "evaluation",
    [{"needle": []}, {"samples": []}, {"tasks": {}}, {"needle": [{**artifacts().evaluation["needle"][0]}] * 1}],
)
def test_what_was_not_evaluated_leaves_no_gap(evaluation: dict[str, Any]) -> None:
    run = artifacts()
    tags_of(render(dataclasses.replace(run, evaluation=run.evaluation | evaluation)))


def test_a_run_that_diverged_is_named(page: str) -> None:
    assert "<p>Weight norm off, seed 2: loss is not finite at step 7.</p>" in page


def test_one_seed_and_one_variant_can_be_shown() -> None:
    run = artifacts()
    alone = {"variants": run.ablation["variants"][:1], "difference_nats": None, "difference_interval_nats": None}
    alone |= {"curves": {"on, seed 0": run.ablation["curves"]["on, seed 0"]}}
    tags_of(render(dataclasses.replace(run, ablation=run.ablation | alone)))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 47, [10, 20, 30, 40]), (-0.31, 0.12, [-0.3, -0.2, -0.1, 0, 0.1])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_range_has_room_also_around_one_value() -> None:
    low, high = around([2.0, 2.0])
    assert low < 2.0 < high and around([0.0, 0.0]) == (-1.0, 1.0)
    assert around([1.0, 3.0], from_zero=True)[0] == 0.0


@pytest.mark.parametrize(("share", "samples"), [(0.0, 4), (1.0, 4), (0.25, 16), (0.5, 1000)])
def test_the_interval_of_a_share_is_wilsons(share: float, samples: int) -> None:
    """Its ends are where the share lies 1.96 standard errors away, the error being that of the end."""
    for end in share_interval(share, samples):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / samples), rel=1e-9)


def test_where_a_design_comes_from_is_said_in_words() -> None:
    assert [origin(t) for t in artifacts().history] == [
        "seed design",
        "random design",
        "trial 0, mixer type changed",
        "trial 1, repeats changed",
    ]
    assert [duration(s) for s in (4.21, 65, 7260)] == ["4.2 s", "1 min 5 s", "2 h 1 min"]
    assert task_rows({"t": {"acc": 1.0}})[0] == {
        "task": "t",
        "metric": "acc",
        "value": 1.0,
        "error": None,
        "samples": "",
        "version": "",
        "shots": "",
    }


def test_rows_that_could_not_be_read_are_counted_and_named() -> None:
    made = artifacts()
    reason = "'text/a.jsonl:7' is not JSON: <b>Expecting</b> value"
    row = {"place": "text/a.jsonl:7", "reason": reason}
    made = dataclasses.replace(made, data=made.data | {"bad_rows": 1234, "bad_row_samples": [row]})
    page = render(made, run_facts())
    tags_of(page)
    assert "1,234" in page and "Rows that cannot be read" in page
    assert "&lt;b&gt;Expecting&lt;/b&gt; value</li>" in page and "a.jsonl:7" in page
    assert "Rows that cannot be read" not in render(artifacts(), run_facts())


def test_tasks_whose_text_was_not_kept_out_of_the_training_are_named(page: str) -> None:
    assert "kept out" not in page
    run = artifacts()
    run.evaluation["not_decontaminated"] = ["arc"]
    assert "The text of arc was not kept out of the training text, unless" in render(run)
