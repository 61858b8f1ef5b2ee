"""benchmarks/latency_table.py and its plot, on sizes that take a moment."""

import json
import re

import pytest

from benchmarks import latency_table as runner
from benchmarks import plot_latency
from flashslm.benchmarking.record_plot import save_beside
from flashslm.config import ModelConfig
from flashslm.models.operator_spec import COLORS, MIXERS
from flashslm.profiling.latency_table import LatencyTable

GRID = {
    "device": ["cpu"],
    "widths": ["16", "32"],
    "contexts": ["8", "32"],
    "batches": ["1", "2"],
    "repeats": ["3"],
    "calibration-models": ["4"],
    "check-models": ["2"],
    "sweep-depths": ["2", "4"],
    "sweep-parameters": ["40000", "60000"],
}
ARGUMENTS = [part for name, values in GRID.items() for part in (f"--{name}", *values)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    make_plan = runner.make_plan
    sizes = ModelConfig(head_dim=8, mamba_state=8, mamba_head_dim=8, num_meta_tokens=2)

    def tiny_plan(given):
        plan = make_plan(given)
        assert (plan.sizes, plan.vocab_size) == (runner.SIZES, runner.VOCAB_SIZE)
        assert plan.sweep_contexts == (1024, 8192)
        return runner.Plan(plan.profiling, sizes, vocab_size=300, sweep_contexts=(8, 16))

    monkeypatch.setattr(runner, "make_plan", tiny_plan)
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def run(output, *arguments, capsys):
    assert runner.main([*ARGUMENTS, "--output", str(output), *arguments]) == 0
    record = json.loads(output.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record["summary"]
    return record


def test_the_record(place, capsys):
    record = run(place / "all.json", "--check-models", "30", capsys=capsys)
    assert record["commit"] == "0123456789abcdef" and record["repeats"] == 3
    assert {"subject", "command", "device", "fingerprint", "versions", "date", "kernels"} <= record.keys()
    table = LatencyTable.model_validate(record["table"])
    assert (table.widths, table.contexts, table.batches) == ((16, 32), (8, 32), (1, 2))
    assert len(table.entries) == len({e.key for e in table.entries}) == 5 * 2 * 2 * 2
    assert [o.batch for o in table.overheads] == [1, 2] and table.overheads[0].models == 4
    check = record["check"]
    assert len(check["models"]) == 34 and record["summary"]["worst_relative"] == check["worst_relative"]
    points = {(p["budget_parameters"], p["depth"], p["context"]) for p in record["sweep"]["points"]}
    assert points == {(b, d, c) for b in (40_000, 60_000) for d in (2, 4) for c in (8, 16)}
    assert list(record["durations_s"]) == [
        *("compilation", "table, batch 1", "table, batch 2", "calibration", "check"),
        *("sweep, 40,000 parameters", "sweep, 60,000 parameters"),
    ]
    assert record["left_out"] == []


def test_an_earlier_table_is_taken_up(place, capsys):
    first = run(place / "table.json", "--parts", "table", capsys=capsys)
    assert first["check"] is first["sweep"] is None
    second = run(place / "check.json", "--parts", "check", "--table", str(place / "table.json"), capsys=capsys)
    assert second["table"] == first["table"] and second["check"]["models"]
    other = first["table"] | {"device": first["table"]["device"] | {"cores": 999}}
    (place / "elsewhere.json").write_text(json.dumps({"table": other}), encoding="utf-8")
    with pytest.raises(SystemExit):
        run(place / "no.json", "--parts", "check", "--table", str(place / "elsewhere.json"), capsys=capsys)
    assert re.search(r"cores=999.*measure it again", capsys.readouterr().err)


def test_parts_that_need_a_table_are_refused_without_one(place, capsys):
    with pytest.raises(SystemExit):
        run(place / "no.json", "--parts", "check", capsys=capsys)
    assert "need a table: add the part table, or --table RECORD" in capsys.readouterr().err


def test_a_table_of_8_bits_is_not_taken_up_for_another(place, capsys):
    record = run(place / "int8.json", "--parts", "table", "--weights", "int8", capsys=capsys)
    assert record["table"]["weights"] == record["profiling"]["weights"] == "int8"
    taken_up = ("--table", str(place / "int8.json"))
    again = run(place / "c.json", "--parts", "check", *taken_up, "--weights", "int8", capsys=capsys)
    assert again["table"] == record["table"]
    with pytest.raises(SystemExit):
        run(place / "no.json", "--parts", "check", *taken_up, capsys=capsys)
    assert "weights in 'int8', profiling.weights is 'full'" in capsys.readouterr().err


def test_what_the_budget_does_not_allow_is_left_out(place, monkeypatch, capsys):
    """Batch 1 takes 70 of 100 s, so that nothing as long can follow."""
    clock = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    measure = runner.measure_latency_table

    def slow(*arguments):
        clock[0] += 70.0
        return measure(*arguments)

    monkeypatch.setattr(runner, "measure_latency_table", slow)
    record = run(place / "short.json", "--budget-s", "100", capsys=capsys)
    assert record["durations_s"] == {"compilation": 0.0, "table, batch 1": 70.0}
    assert record["left_out"][0] == "table, batch 2: 70 s of 100 s were over" and len(record["left_out"]) == 5
    assert LatencyTable.model_validate(record["table"]).batches == (1,)


def test_every_part_is_plotted(place, capsys):
    record = run(place / "plotted.json", "--parts", "table", "check", "sweep", capsys=capsys)
    save_beside([place / "plotted.json"], plot_latency.plot)
    for suffix in (".png", ".svg"):
        assert (place / "plotted").with_suffix(suffix).stat().st_size > 10_000
    labels = [axes.get_xlabel() for axes in plot_latency.plot(record).axes]
    assert [label.split(" (")[0] for label in labels] == ["width", "context", "measured ms per step", "depth"]
    widths, contexts, *_ = plot_latency.plot(record).axes
    measured = {entry["operator"] for entry in record["table"]["entries"]}
    assert {line.get_color() for line in contexts.lines} == {COLORS[mixer] for mixer in MIXERS if mixer in measured}
    drawn = {line.get_label(): list(line.get_xdata()) for line in widths.lines}
    assert drawn == {name: [16, 32] for name in ("DeltaNet", "Mamba-2", "attention", "FFN", "embedding + head")}
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_latency.plot(record | {"table": None, "check": None, "sweep": None})
