"""What the step publishes of a law whose family is known."""

from typing import Any

import pytest

from flashslm.config import RunConfig
from flashslm.infra.storage.object_store import Manifest
from flashslm.scaling.family import Family
from flashslm.steps import fit_scaling_law
from tests.unit.scaling.test_law import make_points
from tests.unit.search.synthetic import make_table


class Context:
    """The part of a step's context that the step uses beside training."""

    def __init__(self, scaling: dict[str, Any], latency: dict[str, Any]) -> None:
        recipe = {"name": "x", "scaling": scaling, "latency": latency, "model": make_table().sizes}
        self.config = RunConfig.model_validate(recipe)
        self.published: dict[str, Any] = {}

    def manifest(self, name: str) -> Manifest:
        metadata = {"vocab_size": make_table().vocab_size}
        return Manifest(kind=name, uri="s3://bucket/cas/x", sha256="0" * 64, bytes=1, metadata=metadata)

    def read_json(self, name: str, file: str) -> Any:
        return make_table().model_dump(mode="json")

    def publish_json(self, name: str, files: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.published = files["scaling_law.json"] | metadata


BUDGET_MS = 20.0  # depth 4 of D and F takes 8.0 ms at width 64


def fit(run_noise: float = 0.0, **scaling: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the step returns and publishes for a family of depths 2 to 8 and widths 64 to 192."""
    tokens = (10**6, 4 * 10**6, 16 * 10**6)
    points = make_points(run_noise=run_noise, depths=(2, 4, 8), widths=(64, 128, 192), tokens=tokens)
    family = Family(points, make_points(depths=(12,), widths=(256,)))
    recipe = {"block": "DF", "choice_depths": (2, 4, 24), "bootstrap": 10} | scaling
    context: Any = Context(recipe, {"context": 1024, "target_ms": BUDGET_MS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_scaling_law, "trained_family", lambda context: family)
        return fit_scaling_law.run(context), context.published


@pytest.fixture(scope="module")
def fitted() -> tuple[dict[str, Any], dict[str, Any]]:
    return fit(other_budgets=(0.01, 100.0))


def test_held_out_models_and_sizes_are_judged_in_perplexity(fitted: tuple[dict[str, Any], dict[str, Any]]) -> None:
    returned, published = fitted
    assert returned["holdout_perplexity_error"] == published["holdout_perplexity_error"] < 1e-5
    left_out = {(s["axis"], s["size"]): s["is_extrapolation"] for s in published["left_out_sizes"]}
    assert left_out == {("depth", 4): False, ("depth", 8): True, ("width", 128): False, ("width", 192): True}
    assert returned["left_out_perplexity_error"] == max(s["perplexity_error"] for s in published["left_out_sizes"])
    for point in published["points"]:
        low, high = point["fitted_interval_nats"]
        assert low - 1e-6 <= point["fitted_nats"] <= high + 1e-6
    assert set(published["constant_intervals"]) == set(published["law"]["constants"])


def test_three_budgets_each_have_a_depth_and_width_or_a_reason(fitted: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, published = fitted
    too_small, large = published["other_budgets"]
    assert too_small["budget_ms"] == 0.2 and "no candidate decodes a token within 0.2 ms" in too_small["infeasible"]
    assert (large["depth"], large["width"], large["budget_ms"]) == (24, 256, 2000)
    assert large["extrapolated"] == ["depth", "width"] and large["latency_ms"] == pytest.approx(4 * (24 * 1.5 + 2))
    choice = published["choice"]
    assert large["predicted_loss_nats"] < choice["predicted_loss_nats"]
    assert (choice["depth"], choice["width"], choice["extrapolated"]) == (2, 256, ["width"])
    assert (published["depth"], published["width"], published["budget_ms"]) == (2, 256, BUDGET_MS)


def test_a_choice_at_an_end_of_what_was_offered_is_said(fitted: tuple[dict[str, Any], dict[str, Any]]) -> None:
    returned, published = fitted
    ends = ["depth 2 is the smallest that was offered", "width 256 is the largest that was offered"]
    assert published["ends"] == ends
    assert returned["summary"].endswith(f"; {'; '.join(ends)}")
    assert fit(choice_depths=(1, 2, 24))[1]["ends"] == ends[1:], "depth 2 lies between the others"


def test_an_extrapolated_choice_is_said_to_be_one() -> None:
    returned, published = fit(choice_depths=(1,))
    assert published["choice"]["extrapolated"] == ["depth", "width"]
    assert returned["summary"].startswith("depth 1, width 256 (extrapolated in depth and width) within 20 ms/token")


def test_what_the_trainings_do_not_prefer_the_choice_to_is_published_and_counted() -> None:
    returned, published = fit(run_noise=0.5)
    choice = published["choice"]
    others = [c for c in choice["candidates"] if c["feasible"] and c["latency_ms"] != choice["latency_ms"]]
    near = choice["predicted_loss_nats"] + published["law"]["residual_std_nats"]
    within = [c for c in others if c["predicted_loss_nats"] < near]
    assert published["within_scatter"] == sorted(within, key=lambda c: c["latency_ms"])
    assert 0 < len(within) < len(others)
    said = f"; {len(within)} of {len(others)} other candidates in the budget within the scatter of the choice; "
    assert said in returned["summary"]
