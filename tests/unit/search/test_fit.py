import pytest

from flashslm.config import LatencyConfig, ModelConfig
from flashslm.models.architecture import InfeasibleArchitecture
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
