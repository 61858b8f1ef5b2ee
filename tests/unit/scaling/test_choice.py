import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashslm.scaling.choice import InfeasibleBudget, choose_depth_width
from flashslm.scaling.law import NAMES, DepthWidthLaw

DEPTHS, WIDTHS = (6, 12, 18, 24), (256, 512, 1024)


def law(**constants: float) -> DepthWidthLaw:
    values = dict.fromkeys(NAMES, 0.0) | constants
    return DepthWidthLaw(
        constants=values,
        replicates=(values,),
        reference_size=10.0**7,
        reference_tokens=10.0**7,
        residual_std_nats=0.0,
        num_points=9,
        unidentified=(),
        ranges={"depth": (6, 18), "width": (512, 1024), "tokens": (10**6, 10**9)},
    )


def latency_ms(depth: int, width: int) -> float:
    return 0.1 * depth + depth * width**2 / 1e6


positive = st.floats(0.05, 5)


@settings(max_examples=50, deadline=None)
@given(a=positive, alpha=positive, b=st.floats(1, 100), beta=st.floats(0.1, 1), budget_ms=st.floats(1.0, 40))
def test_equals_brute_force(a: float, alpha: float, b: float, beta: float, budget_ms: float) -> None:
    fitted = law(L0=1.0, a=a, alpha=alpha, b=b, beta=beta)
    choice = choose_depth_width(fitted, latency_ms, DEPTHS, WIDTHS, 10**9, budget_ms)
    losses = {
        (d, w): fitted.predict(d, w, 10**9)
        for d, w in itertools.product(DEPTHS, WIDTHS)
        if latency_ms(d, w) <= budget_ms
    }
    assert choice.predicted_loss_nats == min(losses.values()) == losses[choice.depth, choice.width]
    assert choice.latency_ms == latency_ms(choice.depth, choice.width) <= budget_ms


def test_every_candidate_is_listed_with_its_verdict() -> None:
    choice = choose_depth_width(law(L0=1.0, b=10.0, beta=0.5), latency_ms, DEPTHS, WIDTHS, 10**9, budget_ms=4.0)
    assert [(c.depth, c.width) for c in choice.candidates] == list(itertools.product(DEPTHS, WIDTHS))
    assert all(c.feasible == (latency_ms(c.depth, c.width) <= 4.0) for c in choice.candidates)
    assert choice.candidates[0].predicted_loss_nats == pytest.approx(1 + 10 / 16)
    assert choice.candidates[0].loss_interval_nats == pytest.approx((1.625, 1.625))


def test_equal_losses_go_to_the_faster_candidate() -> None:
    choice = choose_depth_width(law(L0=1.0, b=10.0, beta=0.5), latency_ms, DEPTHS, WIDTHS, 10**9, budget_ms=9.0)
    assert (choice.depth, choice.width) == (6, 1024)  # depth has no term here


def test_a_larger_budget_never_costs_loss() -> None:
    fitted = law(L0=1.0, a=3.0, alpha=0.7, b=30.0, beta=0.6)
    budgets = (1.5, 2.5, 5.0, 10.0, 40.0)
    losses = [choose_depth_width(fitted, latency_ms, DEPTHS, WIDTHS, 10**9, b).predicted_loss_nats for b in budgets]
    assert losses == sorted(losses, reverse=True)


def test_an_infeasible_budget_names_the_fastest() -> None:
    with pytest.raises(InfeasibleBudget, match=r"within 0\.5 ms: the fastest is depth 6, width 256 at 0\.9932 ms"):
        choose_depth_width(law(L0=1.0), latency_ms, DEPTHS, WIDTHS, 10**9, budget_ms=0.5)


def test_no_candidates_is_an_error() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        choose_depth_width(law(L0=1.0), latency_ms, (), WIDTHS, 10**9, budget_ms=0.5)


def test_what_lies_outside_the_fitted_models_is_marked() -> None:
    choice = choose_depth_width(law(L0=1.0, a=3.0, alpha=0.7), latency_ms, DEPTHS, WIDTHS, 10**9, budget_ms=40.0)
    marks = {(c.depth, c.width): c.extrapolated for c in choice.candidates}
    assert marks[24, 256] == ("depth", "width") and marks[24, 512] == ("depth",)
    assert marks[6, 256] == ("width",) and marks[12, 1024] == ()
    assert choice.depth == 24 and choice.extrapolated == marks[choice.depth, choice.width]
    longer = choose_depth_width(law(L0=1.0), latency_ms, (6,), (512,), 10**9 + 1, budget_ms=40.0)
    assert longer.extrapolated == ("tokens",)


def test_candidates_within_the_scatter_of_the_points_are_not_worse_than_the_choice() -> None:
    fitted = law(L0=1.0, a=1e-4, alpha=0.02, b=10.0, beta=0.5)  # depth has all but no effect
    choice = choose_depth_width(fitted, latency_ms, DEPTHS, WIDTHS, 10**9, budget_ms=21.0)
    assert (choice.depth, choice.width) == (18, 1024)
    loss_of_512 = fitted.predict(6, 512, 10**9) - choice.predicted_loss_nats
    assert [(c.depth, c.width) for c in choice.within_scatter(0.01)] == [(6, 1024), (12, 1024)]
    wider = choice.within_scatter(1.01 * loss_of_512)
    assert wider[0] == min(wider, key=lambda c: c.latency_ms) and {c.width for c in wider} == {512, 1024}
    assert all(c.feasible for c in wider) and choice.within_scatter(0.0) == []
