"""The real engine at tiny sizes: what is measured and recorded, not how fast it is."""

import random

import pytest

from flashslm.config import ModelConfig, OperatorSizes, ProfilingConfig
from flashslm.inference import engine, operator_step
from flashslm.models.accounting import parameters
from flashslm.models.architecture import InfeasibleArchitecture, build_architecture
from flashslm.models.operator_spec import OPERATORS
from flashslm.profiling import additivity, measure
from flashslm.profiling.additivity import check_additivity, drift_relative, random_point, summarize
from flashslm.profiling.depth_width import DepthWidthSweep, measure_depth_width, nearest_width
from flashslm.profiling.latency_table import LatencyTable
from flashslm.profiling.measure import ModelPoint, build_table_steps, measure_latency_table, measure_models
from flashslm.profiling.plan import ProfilingPlan, resident_bytes
from flashslm.profiling.timing import Timing
from flashslm.profiling.whole_model import CheckedModel

SIZES = ModelConfig(head_dim=8, mamba_state=8, mamba_head_dim=8, num_meta_tokens=2)
VOCAB_SIZE = 300
CONFIG = ProfilingConfig(
    device="cpu",
    widths=(16, 32),
    contexts=(32, 8),
    batches=(1, 2),
    warmup=1,
    repeats=3,
    sweep_block="DFA",
    sweep_depths=(2, 5, 400),
    sweep_parameters=(40_000,),
    check_models=2,
)
PLAN = ProfilingPlan(CONFIG, SIZES, VOCAB_SIZE)


@pytest.fixture(scope="module")
def table():
    return measure_latency_table(PLAN)


def test_table_holds_every_operator_width_context_and_batch(table):
    keys = {(e.operator, e.width, e.context, e.batch) for e in table.entries}
    everything = {(o, w, c, b) for o in ("D", "M", "A", "F", "head") for w in (16, 32) for c in (8, 32) for b in (1, 2)}
    assert keys == everything and len(table.entries) == len(everything)
    assert all(0 < e.p10_ms <= e.median_ms <= e.p90_ms for e in table.entries)
    assert (table.device.kind, table.dtype, table.vocab_size, table.sizes) == ("cpu", "float32", VOCAB_SIZE, SIZES)
    assert LatencyTable.model_validate_json(table.model_dump_json()) == table


def test_table_holds_operators_at_further_sizes_and_prices_whole_models_by_them():
    """At width 16 an FFN has 128 channels with either ratio."""
    sizes = OperatorSizes(ffn_ratio=(3.0, 9.0), mamba_state=(16,), head_dim=(4, 8))
    table = measure_latency_table(PLAN.changed(sizes=sizes, batches=(1,)))
    further = {(e.operator, e.width, e.size) for e in table.entries if e.size is not None}
    heads = {(operator, width, 4) for operator in "DA" for width in (16, 32)}
    assert further == heads | {("M", 16, 16), ("M", 32, 16), ("F", 32, 256)}
    own = {"ffn_ratio": 9.0, "mamba_state": 16, "head_dim": 4}
    built = build_architecture("DMAF", 32, SIZES.model_copy(update=own), VOCAB_SIZE)
    index = {entry.key: entry.median_ms for entry in table.entries}
    keys = [("D", 32, 8, 1, 4), ("M", 32, 8, 1, 16), ("A", 32, 8, 1, 4), ("F", 32, 8, 1, 256), ("head", 32, 8, 1, None)]
    assert table.sum_ms(built, 8, 1) == pytest.approx(sum(index[key] for key in keys))


def test_only_attention_is_measured_at_every_context(table):
    def times(operator, context):
        return [e.median_ms for e in table.entries if (e.operator, e.context) == (operator, context)]

    for operator in ("D", "M", "F", "head"):
        assert times(operator, 8) == times(operator, 32)
    assert times("A", 8) != times("A", 32)


def test_cost_grows_with_the_context():
    architecture = build_architecture("AAAA", 32, SIZES, VOCAB_SIZE)
    near, far = measure_models([ModelPoint(architecture, 8, 1), ModelPoint(architecture, 80_000, 1)], CONFIG)
    assert far.median_ms > 2 * near.median_ms


def test_operators_beyond_the_search_are_measured_when_asked_for():
    table = measure_latency_table(PLAN.changed(operators=OPERATORS, widths=(16,), batches=(1,)))
    assert {e.operator for e in table.entries} == {*OPERATORS, "head"}
    assert table.predict_ms(build_architecture("GLWF", 16, SIZES, VOCAB_SIZE), 20, 1) > 0


def test_entries_beyond_the_memory_are_left_out(monkeypatch):
    monkeypatch.setattr(measure, "available_bytes", lambda device: 30_000)
    table = measure_latency_table(PLAN.changed(widths=(32,)))
    assert {e.key for e in table.left_out} >= {("head", 32, 8, 1, None), ("head", 32, 8, 2, None)}
    assert {e.key for e in table.entries}.isdisjoint(e.key for e in table.left_out)
    assert ("A", 32, 8, 1, None) in {e.key for e in table.entries}


def test_a_growing_context_is_timed_at_lengths_whose_mean_is_half_of_it(monkeypatch):
    """One engine with room for all of it; the time is the mean over the lengths."""
    built, timed = [], []

    def build(architecture, contexts, batch, device, dtype, max_context, weights):
        built.append((contexts, max_context))
        return [lambda context=context: timed.append(context) for context in contexts]

    def rounds(groups, warmup, repeats, device, *, keep):
        steps = [pair for group in groups.values() for pair in group()]
        return {key: Timing(key[1] + 1.0, key[1] + 0.0, key[1] + 2.0, 3) for key, _ in steps}

    monkeypatch.setattr(measure, "build_decode_steps", build)
    monkeypatch.setattr(measure, "measure_rounds", rounds)
    architecture = build_architecture("A", 16, SIZES, VOCAB_SIZE)
    points = [ModelPoint(architecture, 800, 1, growing=True), ModelPoint(architecture, 800, 1)]
    growing, fixed = measure_models(points, CONFIG)
    assert built == [([100, 300, 500, 700], 800), ([800], 800)]
    assert growing == Timing(401.0, 400.0, 402.0, 3) and fixed.median_ms == 801.0


def test_kernels_are_compiled_by_building_every_entry(monkeypatch):
    built = []
    monkeypatch.setattr(
        measure, "build_operator_step", lambda layer, *rest: built.append((*rest[:3], layer.hidden_size))
    )
    monkeypatch.setattr(measure, "build_head_step", lambda *args, **kw: built.append("head"))
    plan = PLAN.changed(widths=(16,), batches=(2,))
    build_table_steps(plan, memory_bytes=1e6)
    assert {x for x in built if x != "head"} == {
        (o, 2, c, 16) for o, c in (("D", 8), ("M", 8), ("F", 8), ("A", 8), ("A", 32))
    }
    assert built.count("head") == 1
    built.clear()
    build_table_steps(plan.changed(contexts=(8,)), memory_bytes=15_000)
    assert {operator for operator, *_ in built} == set("DMA"), "FFN and head have weights of 25 and 19 kB"


def test_a_table_of_8_bits_is_measured_with_engines_of_8_bits(monkeypatch):
    """And so are whole models beside it."""
    rounded = []

    def noted(model, weights):
        rounded.append(weights)
        return model

    monkeypatch.setattr(operator_step, "as_served", noted)
    monkeypatch.setattr(engine, "as_served", noted)
    for weights in ("full", "int8"):
        plan = PLAN.changed(widths=(16,), batches=(1,), contexts=(8,), weights=weights)
        table = measure_latency_table(plan)
        measure_models([ModelPoint(build_architecture("DF", 16, SIZES, VOCAB_SIZE), 8, 1)], plan.profiling)
        assert table.weights == weights and set(rounded) == {weights}
        assert len(rounded) == 3 * 4 + 1 + 1, "three instances of an operator, the head, the model"
        rounded.clear()


def test_random_models_fit_the_memory(table, monkeypatch):
    """At width 32 context 32 and batch 2 together are beyond it; at last every place of the table is."""
    operators = "A" * 40
    wide = build_architecture(operators, 32, SIZES, VOCAB_SIZE)
    few, many = (resident_bytes(wide, 32, batch, 4) for batch in (1, 2))
    monkeypatch.setattr(additivity, "available_bytes", lambda device: (few + many) / 2)
    rng = random.Random(0)
    points = [random_point(table, PLAN, rng, (1, 2), operators) for _ in range(100)]
    assert {p[1:3] for p in points if p.architecture == wide} == {(8, 1), (32, 1), (8, 2)}
    assert {p[1:3] for p in points if p.architecture != wide} == {(8, 1), (32, 1), (8, 2), (32, 2)}
    monkeypatch.setattr(additivity, "available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"fits the memory at none of contexts \[8, 32\] and batches \[1, 2\]"):
        random_point(table, PLAN, rng, (1, 2))


def test_check_compares_random_models_and_known_designs(table):
    check = check_additivity(table, PLAN)
    assert len(check.models) == 2 + 4
    assert "DFMFAFMF" * 2 + "DFMFDFMF" in {m.operators for m in check.models}
    for model in check.models:
        architecture = build_architecture(model.operators, model.width, SIZES, VOCAB_SIZE)
        assert model.predicted_ms == table.predict_ms(architecture, model.context, model.batch)
    assert check.worst_relative == max(abs(m.predicted_ms / m.measured_ms - 1) for m in check.models)
    assert check.worst_relative < 3.0, "the sum has the whole model's order of magnitude"
    assert set(check.median_relative_by_batch) == {model.batch for model in check.models}
    again = check_additivity(table, PLAN)
    assert [m.operators for m in again.models] == [m.operators for m in check.models]


def checked(measured_ms, predicted_ms, summed_ms, operators="D"):
    return CheckedModel(
        operators=operators,
        width=8,
        context=8,
        batch=1,
        measured_ms=measured_ms,
        predicted_ms=predicted_ms,
        summed_ms=summed_ms,
    )


def test_overhead_is_fitted_on_one_half_and_judged_on_the_other():
    """A step costs 2 ms beyond the sum in the fitted half, 3 ms in the held-out one."""
    models = [checked(ms + extra, 0.5 * ms, ms) for ms, extra in ((8.0, 2.0), (18.0, 3.0), (38.0, 2.0), (98.0, 3.0))]
    check = summarize(models, drift=0.25)
    assert check.overhead_ms == pytest.approx(2.0)
    assert check.worst_relative == pytest.approx(0.6)  # 4 for 10 ms
    assert check.summed_worst_relative == pytest.approx(0.2)  # 8 for 10 ms
    assert check.held_out_worst_relative == pytest.approx(3 / 21)
    assert check.corrected_worst_relative == pytest.approx(1 / 21)
    assert check.corrected_median_relative == pytest.approx((1 / 21 + 1 / 101) / 2)
    assert check.drift_relative == 0.25


def test_an_overhead_that_is_none_is_not_made_up():
    """Errors that scale with the model are left as they are: the held-out half shows it."""
    check = summarize([checked(ms, ms, 0.9 * ms) for ms in (10.0, 100.0, 10.0, 100.0, 10.0)], drift=0.0)
    assert check.held_out_median_relative == pytest.approx(0.1)
    assert check.corrected_median_relative == pytest.approx(0.09)


def test_the_residual_is_spread_over_operators_and_the_step():
    cost = {"D": 0.25, "F": -0.125, "A": 0.5}
    designs = ("DF", "DDF", "AF", "AAFF", "DAFFF", "F")
    made = [checked(10.0 + sum(map(cost.get, o)) + 0.75, 10.0, 10.0, o) for o in designs]
    assert summarize(made, drift=0.0).residual_ms == pytest.approx(cost | {"step": 0.75})


def test_drift_is_the_entries_median_change(table):
    slower = [e.model_copy(update={"median_ms": 1.5 * e.median_ms}) for e in table.entries]
    assert drift_relative(table, table.model_copy(update={"entries": tuple(slower)})) == pytest.approx(0.5)


def test_sweep_measures_matched_models_and_explains_skips():
    sweep = measure_depth_width(PLAN)
    assert {(p.depth, p.context) for p in sweep.points} == {(2, 8), (2, 32), (5, 8), (5, 32)}
    for point in sweep.points:
        assert abs(point.parameters / 40_000 - 1) <= 0.25
        assert point.width % 8 == 0 and point.median_ms > 0
    widths = {p.depth: p.width for p in sweep.points}
    assert widths[2] > widths[5], "deeper is narrower at equal parameters"
    assert [s.depth for s in sweep.skipped] == [400]
    assert "40,000 parameters" in sweep.skipped[0].reason
    assert DepthWidthSweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_nearest_width_is_the_nearest():
    chosen = nearest_width(PLAN, "DFMF", 2_000_000)

    def miss(width):
        return abs(parameters(build_architecture("DFMF", width, SIZES, VOCAB_SIZE))["total"] - 2_000_000)

    assert chosen.hidden_size == min(range(8, 1024, 8), key=miss)


@pytest.mark.parametrize("budget", [100, 1_000])
def test_a_budget_below_the_narrowest_model_has_no_width(budget):
    with pytest.raises(InfeasibleArchitecture, match="head size 8"):
        nearest_width(PLAN, "DFMF", budget)
