import pytest

from flashslm.scaling.holdout import leave_out_sizes
from tests.unit.scaling.test_law import DEPTHS, TOKENS, WIDTHS, make_points


def test_every_size_but_the_smallest_is_left_out_and_predicted_from_the_others() -> None:
    found = leave_out_sizes(make_points())
    assert [(s.axis, s.size) for s in found] == [("depth", d) for d in DEPTHS[1:]] + [("width", w) for w in WIDTHS[1:]]
    assert [s.is_extrapolation for s in found] == [False, False, True] * 2
    assert all(s.points == len(TOKENS) * 4 and s.perplexity_error < 1e-6 for s in found)


def test_a_size_that_breaks_the_law_is_the_one_with_the_error() -> None:
    """Depth 16 is 0.1 nats worse than the law of the others says: it promises a perplexity 9.5 % lower."""
    points = [
        p.model_copy(update={"loss_nats": p.loss_nats + 0.1 * (p.depth == 16)}) for p in make_points(noise=0.0005)
    ]
    errors = {(s.axis, s.size): s.perplexity_error for s in leave_out_sizes(points)}
    assert errors["depth", 16] == max(errors.values()) == pytest.approx(0.095, abs=0.01)


def test_an_axis_of_two_sizes_is_not_left_out() -> None:
    """One depth would be left: nothing to tell its effect from."""
    assert {s.axis for s in leave_out_sizes(make_points(depths=(4, 8)))} == {"width"}
    assert leave_out_sizes(make_points(depths=(4, 8), widths=(256, 512))) == []
