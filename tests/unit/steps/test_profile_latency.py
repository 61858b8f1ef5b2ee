"""The step on a CPU, with a real table of tiny operators: what it publishes and says of a calibrated table."""

from types import SimpleNamespace
from typing import Any, cast

from flashslm.config import RunConfig
from flashslm.config.recipe import from_step_json
from flashslm.infra.events import Events
from flashslm.profiling.latency_table import LatencyTable
from flashslm.steps import profile_latency
from flashslm.steps.context import StepContext

RECIPE = {
    "name": "x",
    "model": {"head_dim": 8, "mamba_state": 8, "mamba_head_dim": 8, "num_meta_tokens": 2},
    "profiling": {
        "device": "cpu",
        "widths": [16, 32],
        "contexts": [8, 32],
        "warmup": 1,
        "repeats": 3,
        "sweep_depths": [2],
        "sweep_parameters": [40_000],
        "check_models": 1,
    },
    "latency": {"context": 16, "reference_operators": "DFMFAF", "reference_width": 32},
}


def profile(calibration_models: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the step returns, and the documents that it publishes."""
    profiling = cast(dict[str, Any], RECIPE["profiling"]) | {"calibration_models": calibration_models}
    recipe, published = RunConfig.model_validate(RECIPE | {"profiling": profiling}), {}
    context = SimpleNamespace(
        config=from_step_json("profile_latency", recipe.for_step("profile_latency")),
        manifest=lambda name: SimpleNamespace(metadata={"vocab_size": 300}),
        events=Events("profile_latency", "profile", None),
        parameters={},
        publish_json=lambda name, documents, facts: published.update(documents),
    )
    return profile_latency.run(cast(StepContext, context)), published


def test_calibration_is_in_the_table_and_its_errors_in_the_result() -> None:
    result, published = profile(calibration_models=4)
    table = LatencyTable.model_validate(published["latency_table.json"])
    reference, *others = table.calibration
    assert (reference.operators, reference.width, reference.context) == ("DFMFAF", 32, 16)
    assert len(others) == 3 and {(model.context, model.batch) for model in others} == {(16, 1)}
    (overhead,) = table.overheads
    assert (overhead.models, overhead.l2_mb) == (4, 0.0)
    assert result["calibration_models"] == 4
    assert result["calibration_summed_worst_relative"] == overhead.summed_worst_relative
    assert result["calibration_left_out_worst_relative"] == overhead.left_out_worst_relative
    assert "; calibrated on 4 whole models, worst error of their sums " in result["summary"]
    assert "prediction against whole models: median error" in result["summary"]
    taken = {model.operators for model in table.calibration}
    assert taken.isdisjoint(model["operators"] for model in published["check.json"]["models"])


def test_without_calibration_the_step_says_nothing_of_it() -> None:
    result, published = profile(calibration_models=0)
    assert not published["latency_table.json"]["overheads"] and not published["latency_table.json"]["calibration"]
    assert not any("calibrat" in name for name in result)
    assert "; sum against whole models: median error" in result["summary"]
