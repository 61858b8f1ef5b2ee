"""Calibration where the table is used: which whole models are measured, and what the fit makes of an H200's figures."""

import json
from typing import Any

import pytest

from flashslm.config import LatencyConfig, ModelConfig, ProfilingConfig
from flashslm.hardware import DeviceFingerprint
from flashslm.models.architecture import parse_operators
from flashslm.profiling import additivity, calibration
from flashslm.profiling.additivity import CHECKED_DESIGNS, check_additivity
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.calibration import BUDGET_SHARES, calibrate, calibration_points
from flashslm.profiling.latency_table import LatencyEntry, LatencyTable
from flashslm.profiling.measure import ModelPoint
from flashslm.profiling.overhead import Overhead, Sample, solve
from flashslm.profiling.plan import ProfilingPlan
from flashslm.profiling.timing import Timing
from flashslm.profiling.whole_model import l2_shortfall_mb

# configs/h200-proxy.yaml on an H200: medians in ms at context 1024 of D, M, A, F and the head, by width.
MEASURED_MS = {
    256: (0.0042, 0.0041, 0.0056, 0.0028, 0.0161),
    384: (0.0047, 0.0047, 0.0060, 0.0032, 0.0162),
    512: (0.0048, 0.0053, 0.0063, 0.0033, 0.0157),
    640: (0.0054, 0.0059, 0.0068, 0.0042, 0.0158),
    768: (0.0061, 0.0058, 0.0077, 0.0048, 0.0161),
}
# Whole models of the same run: operators, width, the entries' sum and the measured time.
CHECKED = (
    ("FMMAMFMMAFAMFAMF", 768, 0.1090, 0.105),
    ("FFMAFAMDMAFFMFMFADAMFADMFD", 640, 0.156, 0.155),
    ("ADFDFDADFFFMMM", 512, 0.0790, 0.0753),
    ("AFAFAAM", 256, 0.0513, 0.043),
    ("FMDDFDFDMDADDDDAFAFAADDA", 256, 0.1128, 0.106),
    ("FAMAFFFDAMAFDADDFMFDDADAFAADAA", 384, 0.1672, 0.171),
    ("DFMFAFMFDFMFAFMFDFMFDFMF", 256, 0.1020, 0.093),
    ("MFAFAFDMFAFAFDMFAFAFDMFAFDFF", 384, 0.142, 0.142),
    ("DF" * 12, 256, 0.1004, 0.090),
    ("AF" * 12, 256, 0.1242, 0.120),
)
WINNERS = (
    ("MDDFMM", 768, 0.050440, 0.046469),
    ("MDDFM", 768, 0.044685, 0.040490),
    ("MDMM", 768, 0.039475, 0.035667),
    ("MFFM", 768, 0.037235, 0.034905),
)
L2_MB = 50.0
SIZES = ModelConfig(head_dim=64, ffn_ratio=3, mamba_state=64, mamba_head_dim=32, num_meta_tokens=64)
VOCAB_SIZE = 16_384
LATENCY = LatencyConfig(context=1024, batch=1, reference_operators="DFMF AFMF DFMF", reference_width=512)
PLAN = ProfilingPlan(
    ProfilingConfig(
        device="cpu",
        dtype="bfloat16",
        widths=tuple(MEASURED_MS),
        contexts=(1024,),
        batches=(1,),
        calibration_models=12,
    ),
    SIZES,
    VOCAB_SIZE,
)


def h200_table(*batches: int) -> LatencyTable:
    entries = [
        LatencyEntry(operator=o, width=w, context=1024, batch=b, median_ms=b * ms, p10_ms=ms, p90_ms=ms)
        for b in batches or (1,)
        for w, times in MEASURED_MS.items()
        for o, ms in zip(("D", "M", "A", "F", "head"), times, strict=True)
    ]
    gpu = DeviceFingerprint(kind="cuda", cpu="x", cores=1, gpu="NVIDIA H200", driver="", torch="2", cuda="13")
    facts: dict[str, Any] = {"device": gpu, "dtype": "bfloat16", "threads": 1, "warmup": 1, "repeats": 3}
    return LatencyTable(**facts, sizes=SIZES, vocab_size=VOCAB_SIZE, entries=tuple(entries))


def sample(operators: str, width: int, summed_ms: float, measured_ms: float) -> Sample:
    step_mb = h200_table().step_mb(PLAN.architecture(operators, width), 1024, 1)
    return Sample(measured_ms, summed_ms, len(operators), l2_shortfall_mb(L2_MB, step_mb))


def worst_winner(table: LatencyTable) -> float:
    predicted = [table.predict_ms(PLAN.architecture(operators, width), 1024, 1) for operators, width, *_ in WINNERS]
    return max(abs(p / measured_ms - 1) for p, (*_, measured_ms) in zip(predicted, WINNERS, strict=True))


@pytest.fixture
def small_models_are_faster(monkeypatch: pytest.MonkeyPatch) -> list[ModelPoint]:
    """As on the H200: 3.4 us a step and 0.15 us for each MB below the cache, with errors of 1.5 % in turns."""
    seen: list[ModelPoint] = []

    def measure(again: ProfilingPlan, points: list[ModelPoint]) -> tuple[LatencyTable, list[Timing]]:
        seen.extend(points)
        table, times_ms = h200_table(*again.profiling.batches), []
        for number, (architecture, context, batch, _) in enumerate(points):
            short_mb = l2_shortfall_mb(L2_MB, table.step_mb(architecture, context, batch))
            exact_ms = table.sum_ms(architecture, context, batch) - 0.0034 - 0.00015 * short_mb
            times_ms.append(exact_ms * (1.015 if number % 2 else 0.985))
        return table, [Timing(ms, ms, ms, 3) for ms in times_ms]

    monkeypatch.setattr(additivity, "measure_together", measure)
    monkeypatch.setattr(calibration, "l2_mb", lambda device: L2_MB)
    return seen


def test_a_term_for_the_cache_predicts_the_winners_from_models_far_from_them() -> None:
    """Fitted on the run's ten random models and known designs, none of them near the winners' size or depth."""
    winners = [sample(*winner) for winner in WINNERS]

    def worst(overhead: Overhead) -> float:
        return max(abs(overhead.predict_ms(s) / s.measured_ms - 1) for s in winners)

    checked = [sample(*model) for model in CHECKED]
    with_cache = solve(checked, (0, 2))
    assert with_cache.step_ms < 0 and with_cache.l2_ms_per_mb < 0
    assert worst(with_cache) < 0.04 < 0.1 < worst(Overhead())
    assert worst(solve(checked, (0,))) > 0.1, "a constant that holds for narrow models takes too much from wide ones"
    assert worst(solve(checked, (0, 1))) > 0.05, "nor is it the depth"


def test_calibrated_near_the_budget_the_table_is_within_5_percent_of_its_winners(
    small_models_are_faster: list[ModelPoint],
) -> None:
    table = h200_table()
    calibrated = calibrate(table, PLAN, LATENCY)
    assert worst_winner(table) > 0.1 and worst_winner(calibrated) < 0.05
    (overhead,) = calibrated.overheads
    assert (overhead.batch, overhead.models, len(calibrated.calibration)) == (1, 12, 12)
    assert overhead.summed_worst_relative and overhead.left_out_worst_relative and overhead.left_out_median_relative
    assert overhead.summed_worst_relative > 0.08 > 0.05 > overhead.left_out_worst_relative
    for model in calibrated.calibration:
        architecture = PLAN.architecture(model.operators, model.width)
        assert model.predicted_ms == calibrated.predict_ms(architecture, 1024, 1)
        assert model.summed_ms == table.sum_ms(architecture, 1024, 1)
    assert LatencyTable.model_validate(json.loads(calibrated.model_dump_json())) == calibrated
    assert calibrated.without_overheads() == table and calibrate(calibrated, PLAN, LATENCY) == calibrated


def test_the_budget_follows_the_calibrated_reference(small_models_are_faster: list[ModelPoint]) -> None:
    calibrated = calibrate(h200_table(), PLAN, LATENCY)
    reference = calibrated.calibration[0]
    assert (reference.operators, reference.width) == ("DFMFAFMFDFMF", 512)
    budget_ms = latency_budget_ms(calibrated, LATENCY, SIZES, VOCAB_SIZE)
    assert budget_ms == reference.predicted_ms == pytest.approx(reference.measured_ms, rel=0.03)
    assert budget_ms < reference.summed_ms


def test_models_are_within_the_budget_and_near_it() -> None:
    """Within the budget at the largest width that is, and near it; the same ones each time."""
    table = h200_table()
    points = calibration_points(table, PLAN, LATENCY)
    assert points == calibration_points(table, PLAN, LATENCY) and len(set(points)) == 12
    budget_ms = latency_budget_ms(table, LATENCY, SIZES, VOCAB_SIZE)
    for architecture, context, batch, _ in points[1:]:
        assert (context, batch) == (1024, 1)
        operators, width = architecture.operators, architecture.hidden_size
        deeper_ms = table.sum_ms(PLAN.architecture(operators + "A", width), context, batch)
        assert BUDGET_SHARES[0] * budget_ms <= deeper_ms and table.sum_ms(architecture, context, batch) <= budget_ms
        wider = [w for w in MEASURED_MS if w > width]
        assert all(table.sum_ms(PLAN.architecture(operators, w), context, batch) > budget_ms for w in wider)
    assert len({p.architecture.hidden_size for p in points}) > 1


def test_an_absolute_budget_has_no_reference() -> None:
    points = calibration_points(h200_table(), PLAN, LatencyConfig(context=1024, target_ms=0.05))
    sums_ms = [h200_table().sum_ms(p.architecture, 1024, 1) for p in points]
    assert len(points) == 12 and max(sums_ms) <= 0.05


@pytest.mark.parametrize("latency", [None, LatencyConfig(context=1024, batch=8), LatencyConfig(target_ms=0.01)])
def test_without_a_budget_to_draw_from_models_are_random(latency: LatencyConfig | None) -> None:
    """No latency section, one of another batch, and a budget below the head's own time."""
    points = calibration_points(h200_table(), PLAN, latency and latency.model_copy(update={"context": 1024}))
    assert len(points) == 12 and max(len(p.architecture.operators) for p in points) > 20


def test_other_batches_have_random_models() -> None:
    points = calibration_points(h200_table(1, 4), PLAN.changed(batches=(1, 4)), LATENCY)
    assert points[:12] == calibration_points(h200_table(), PLAN, LATENCY)
    assert {p.batch for p in points[12:]} == {4} and max(len(p.architecture.operators) for p in points[12:]) > 20


def test_models_that_do_not_fit_the_memory_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = 60e6
    monkeypatch.setattr(calibration, "available_bytes", lambda device: allowed)
    points = calibration_points(h200_table(), PLAN, LATENCY)
    assert len(points) == 12
    assert all(PLAN.resident_bytes(p.architecture, 1024, 1) <= allowed for p in points)


def test_the_check_has_other_models_than_the_calibration(small_models_are_faster: list[ModelPoint]) -> None:
    """Also where the reference is one of the known designs, or a random model of the check was drawn before."""
    known = LATENCY.model_copy(update={"reference_operators": CHECKED_DESIGNS[0], "reference_width": 256})
    table = calibrate(h200_table(), PLAN, known)
    first = check_additivity(table, PLAN).models[0].operators
    repeated = table.calibration[1].model_copy(update={"operators": first})
    table = table.model_copy(update={"calibration": (*table.calibration, repeated)})
    small_models_are_faster.clear()
    check = check_additivity(table, PLAN)
    taken = {model.operators for model in table.calibration}
    assert {first, parse_operators(CHECKED_DESIGNS[0])} <= taken
    assert taken.isdisjoint(point.architecture.operators for point in small_models_are_faster)
    assert len(check.models) == PLAN.profiling.check_models + len(CHECKED_DESIGNS) - 1


def test_without_calibration_models_the_sum_is_the_prediction() -> None:
    table = h200_table()
    assert calibrate(table, PLAN.changed(calibration_models=0), LATENCY) is table


def test_every_batch_has_terms_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models take 1 ms more than their sums at batch 1, and 0.1 ms per layer at batch 2."""
    table = h200_table(1, 2)

    def measure(again: ProfilingPlan, points: list[ModelPoint]) -> tuple[LatencyTable, list[Timing]]:
        extra_ms = [1.0 if p.batch == 1 else 0.1 * len(p.architecture.operators) for p in points]
        sums_ms = [table.sum_ms(p.architecture, p.context, p.batch) for p in points]
        return table, [Timing(s + e, s, s, 3) for s, e in zip(sums_ms, extra_ms, strict=True)]

    monkeypatch.setattr(additivity, "measure_together", measure)
    one, two = calibrate(table, PLAN.changed(batches=(1, 2), calibration_models=6)).overheads
    assert (one.batch, one.models, two.batch, two.models) == (1, 6, 2, 6)
    assert (one.step_ms, one.layer_ms) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert (two.step_ms, two.layer_ms) == pytest.approx((0.0, 0.1), abs=1e-6)
    assert (one.l2_mb, one.l2_ms_per_mb) == (0.0, 0.0), "a CPU"
