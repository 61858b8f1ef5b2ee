"""Checks of a recipe across its sections."""

import pytest

from flashslm.config import RunConfig
from flashslm.steps.recipe import problems


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"scaling": {"block": "DQ"}}, "scaling.block: operators 'DQ': unknown Q"),
        ({"search": {"seed_designs": ["DFMFDF"]}}, "search.seed_designs[0]: design 'DFMFDF'"),
        ({"latency": {"reference_width": 64}}, "latency.reference_width: [64] not in profiling.widths"),
        ({"latency": {"context": 512}}, "latency.context: 512 is outside profiling.contexts [1024, 8192]"),
        ({"latency": {"batch": 3}}, "latency.batch: 3 not in profiling.batches [1]"),
        ({"model": {"mamba_head_dim": 48}}, "model, at width"),
        ({"evaluation": {"needle_lengths": [40000]}}, "evaluation.needle_lengths: 40000 and 256 meta tokens exceed"),
    ],
)
def test_problem_is_named(recipe: dict, expected: str) -> None:
    found = problems(RunConfig.model_validate({"name": "x"} | recipe))
    assert any(problem.startswith(expected) for problem in found), found


def test_defaults_are_consistent() -> None:
    assert problems(RunConfig(name="x")) == []


def test_an_absolute_target_needs_no_reference() -> None:
    recipe = {"name": "x", "latency": {"target_ms": 1.0, "reference_width": 64}}
    assert problems(RunConfig.model_validate(recipe)) == []
