"""Checks of a recipe across its sections."""

import pytest

from flashslm.config import RunConfig
from flashslm.steps.recipe_checks import problems


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"scaling": {"block": "DQ"}}, "scaling.block: operators 'DQ': unknown Q"),
        ({"search": {"seed_designs": ["DFMFDF"]}}, "search.seed_designs[0]: design 'DFMFDF'"),
        ({"latency": {"reference_width": 64}}, "latency.reference_width: [64] not in profiling.widths"),
        ({"latency": {"context": 512}}, "latency.context: 512 is outside profiling.contexts [1024, 8192]"),
        ({"latency": {"batch": 3}}, "latency.batch: 3 not in profiling.batches [1]"),
        ({"scaling": {"block": "LF"}}, "scaling.block: 'LF' has operators that cannot be exported: L (gla): the class"),
        (
            {"profiling": {"sweep_block": "WF GF"}},
            "profiling.sweep_block: 'WF GF' has operators that cannot be exported",
        ),
        ({"latency": {"reference_operators": "DFG"}}, "latency.reference_operators: 'DFG' has operators that cannot"),
        (
            {"search": {"seed_designs": ["DF", "GF"]}},
            "search.seed_designs[1]: design 'GF': block 'GF' cannot be export",
        ),
        ({"model": {"mamba_head_dim": 48}}, "model, at width 1024: mamba inner size 2048 is not a multiple of 48"),
        ({"model": {"mamba_head_dim": 512}}, "model, at width 1024: 4 Mamba-2 heads"),
        ({"model": {"head_dim": 96}}, "model, at width 1024: width 1024 is not a multiple of model.head_dim 96"),
        (
            {"model": {"max_position_embeddings": 256}},
            "model, at width 1024: 256 meta tokens leave no position for text",
        ),
        ({"evaluation": {"needle_lengths": [40000]}}, "evaluation.needle_lengths: 40000 and 256 meta tokens exceed"),
    ],
)
def test_problem_is_named(recipe: dict, expected: str) -> None:
    found = problems(RunConfig.model_validate({"name": "x"} | recipe))
    assert any(problem.startswith(expected) for problem in found), found


def test_refused_operators_name_every_reason_and_those_the_table_measures() -> None:
    (found,) = problems(RunConfig.model_validate({"name": "x", "scaling": {"block": "GFWF"}}))
    assert "no gated DeltaNet layer" in found and "a window of one token" in found
    assert found.endswith("the latency table measures only those that can: D, M, A, F")


def test_defaults_are_consistent() -> None:
    assert problems(RunConfig(name="x")) == []


def test_an_absolute_target_needs_no_reference() -> None:
    recipe = {"name": "x", "latency": {"target_ms": 1.0, "reference_width": 64}}
    assert problems(RunConfig.model_validate(recipe)) == []
