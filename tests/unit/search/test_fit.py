import pytest

from flashslm.config import LatencyConfig, ModelConfig, OperatorSizes
from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.profiling.latency_table import LatencyTable
from flashslm.search.fit import WidthFitter


def fitter(table, budget_ms):
    return WidthFitter(table, LatencyConfig(context=1024), budget_ms, (64, 256, 128), ModelConfig(), 512)


@pytest.mark.parametrize(
    ("budget_ms", "width"), [(3.5, 64), (6.99, 64), (7.0, 128), (13.9, 128), (14.0, 256), (99, 256)]
)
def test_width_is_the_largest_within_the_budget(table, budget_ms, width):
    architecture, latency_ms = fitter(table, budget_ms).fit("DF")
    assert architecture.hidden_size == width
    assert latency_ms == pytest.approx(3.5 * width / 64)  # D 1.0, F 0.5, head 2.0 ms at width 64


def test_a_design_too_slow_at_every_width_is_infeasible(table):
    with pytest.raises(InfeasibleArchitecture, match=r"DF takes 3.5 ms .* width 64, more than the budget of 3.4 ms"):
        fitter(table, 3.4).fit("DF")


def test_an_operator_that_the_table_left_out_is_found_before_anything_is_trained(table):
    fitter(table, 99).require_measured(OperatorSizes())
    kept = [entry for entry in table.entries if (entry.operator, entry.width) != ("A", 256)]
    lacking = LatencyTable.model_validate(table.model_dump() | {"entries": kept})
    fitter(lacking, 99).fit("DF")  # which has no attention
    with pytest.raises(ValueError, match="latency of A at width 256, context 1024, batch 1 was not measured"):
        fitter(lacking, 99).require_measured(OperatorSizes())
