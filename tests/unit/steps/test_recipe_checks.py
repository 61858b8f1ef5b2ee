"""Checks of a recipe across its sections."""

from types import SimpleNamespace
from typing import cast

import pytest
from pydantic import ValidationError

from flashslm.config import RunConfig, from_step_json
from flashslm.profiling.plan import ProfilingPlan
from flashslm.steps import profile_latency, recipe_checks
from flashslm.steps.context import StepContext
from flashslm.steps.recipe_checks import (
    kernel_problems_of_a_plan,
    problems,
    problems_before_a_run,
    problems_before_a_run_here,
)


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
        (
            {"scaling": {"depths": [6], "widths": [512], "checkpoints": 3}},
            "scaling: 1 depths x 1 widths x 3 token counts",
        ),
        (
            {"scaling": {"depths": [6, 12], "widths": [512], "checkpoints": 2}},
            "scaling: 2 depths x 1 widths x 2 token counts are 4 points for a law of 5 constants: give at least 6",
        ),
        (
            {"scaling": {"holdout_depth": 6, "holdout_width": 512}},
            "scaling.holdout_depth: depth 6 and width 512 are in the grid",
        ),
        ({"search": {"trials": 9, "population": 10}}, "search.trials: 9 are fewer than search.population (10)"),
        (
            {"search": {"seed_designs": ["DFMFDFMF", "(DFMF)x2"]}},
            "search.seed_designs[1]: '(DFMF)x2' is the same design as 'DFMFDFMF'",
        ),
        (
            {"search": {"sizes": {"ffn_ratio": [2, 4]}}},
            "search.sizes.ffn_ratio: [2.0, 4.0] without model.ffn_ratio (3)",
        ),
        (
            {"search": {"sizes": {"ffn_ratio": [3, 3.01]}, "widths": [1024]}},
            "search.sizes.ffn_ratio: 3 and 3.01 are the same ffn_size at every width of the search: remove one",
        ),
        (
            {"search": {"sizes": {"head_dim": [64, 96]}}},
            "search.sizes.head_dim: 96: width 1024 is not a multiple of head_dim 96: remove the value",
        ),
        (
            {"search": {"sizes": {"mamba_state": [96, 128]}}, "profiling": {"device": "cuda"}},
            "search.sizes.mamba_state: 96: at width 1024: no fused decode kernel (mamba_state is 96: a power of two",
        ),
        (
            {"profiling": {"device": "cuda", "sizes": {"mamba_state": [96]}}},
            "profiling.sizes.mamba_state: 96: no fused decode kernel (mamba_state is 96: a power of two from 16 to 256",
        ),
        (
            {"profiling": {"widths": [1024, 2048], "sizes": {"head_dim": [128, 96]}}},
            "profiling.sizes.head_dim: 96 is possible at none of profiling.widths [1024, 2048]: remove it, or add a",
        ),
        (
            {"profiling": {"device": "cuda"}, "model": {"mamba_state": 96}},
            "model: no fused decode kernel (mamba_state is 96: a power of two from 16 to 256; or set kernels.decode",
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


def test_points_that_outnumber_the_constants_are_no_problem() -> None:
    scaling = {"depths": [6, 12], "widths": [512], "checkpoints": 3}
    assert problems(RunConfig.model_validate({"name": "x", "scaling": scaling})) == []


def test_tasks_are_judged_by_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_tasks(names: tuple[str, ...], task_data: str) -> None:
        raise ValueError(f"lm_eval has no task {names[0]}")

    monkeypatch.setattr("flashslm.evaluation.tasks.find_tasks", find_tasks)
    config = RunConfig.model_validate({"name": "x", "evaluation": {"lm_eval_tasks": ["arc_essy"]}})
    monkeypatch.setattr("flashslm.evaluation.tasks.is_installed", lambda: True)
    assert problems_before_a_run(config) == ["evaluation.lm_eval_tasks: lm_eval has no task arc_essy"]
    assert problems_before_a_run_here(config) == problems_before_a_run(config)
    assert problems(config) == []
    monkeypatch.setattr("flashslm.evaluation.tasks.is_installed", lambda: False)
    assert problems_before_a_run(config) == []  # a cluster's images have it
    (missing,) = problems_before_a_run_here(config)
    assert missing == "evaluation.lm_eval_tasks: they need lm_eval: pip install 'flashslm[evaluation]'"
    assert problems_before_a_run_here(RunConfig(name="x")) == []


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("gate", {"model_name": "org/slm"}),
        ("gate", {"model_name": "o'brien"}),
        ("gate", {"model_name": ""}),
        ("gate", {"model_name": "x:y"}),
        ("platform", {"service_account": "My_Account"}),
        ("platform", {"s3_secret": "a b"}),
        ("platform", {"image": "my image"}),
        ("platform", {"cron_time_zone": "Europe/Nowhere"}),
        ("training", {"seeds": [2**32]}),
        ("training", {"seeds": [-1]}),
        ("training", {"weight_norm": ["on", True]}),
        ("profiling", {"widths": [1024, 1024]}),
        ("profiling", {"batches": [1, 1]}),
        ("profiling", {"contexts": [1024, 8192, 1024]}),
        ("scaling", {"choice_depths": [6, 6]}),
        ("search", {"seed_designs": ["DF", "DF"]}),
        ("evaluation", {"needle_lengths": [64, 64]}),
        ("evaluation", {"lm_eval_tasks": ["piqa", "piqa"]}),
        ("search", {"learning_rate": float("inf")}),
    ],
)
def test_values_that_would_fail_late_or_mean_nothing_are_refused(section: str, values: dict) -> None:
    with pytest.raises(ValidationError, match=f"{section}.{next(iter(values))}"):
        RunConfig.model_validate({"name": "x", section: values})


@pytest.mark.parametrize("kernels", [{"decode": "torch"}, {"default": "torch"}])
def test_sizes_without_a_fused_kernel_run_in_torch(kernels: dict) -> None:
    searched = {"sizes": {"mamba_state": [96, 128], "ffn_ratio": [3, 2], "head_dim": [64, 128]}}
    measured = {"device": "cuda", "sizes": {"mamba_state": [48]}}
    recipe = {"name": "x", "search": searched, "profiling": measured, "kernels": kernels}
    assert problems(RunConfig.model_validate(recipe)) == []


def test_a_size_for_later_searches_is_measured_where_it_fits() -> None:
    """256 divides 1024 and not 1152."""
    measured = {"widths": [1024, 1152], "sizes": {"head_dim": [256]}, "device": "cuda"}
    recipe = {"profiling": measured, "search": {"widths": [1024]}, "latency": {"reference_width": 1024}}
    assert problems(RunConfig.model_validate({"name": "x", "model": {"mamba_head_dim": 32}} | recipe)) == []


def test_the_table_must_measure_what_is_searched() -> None:
    """A pipeline's parameters may be changed by hand, one section without the other."""
    config = RunConfig.model_validate({"name": "x", "search": {"sizes": {"ffn_ratio": [2, 3]}}})
    changed = config.model_copy(update={"profiling": RunConfig(name="x").profiling})
    missing = "search.sizes.ffn_ratio: [2.0, 3.0] not in profiling.sizes.ffn_ratio: the table must measure them"
    assert problems(changed) == [missing]


OPEN = {"name": "x", "profiling": {"sizes": {"mamba_state": [96, 128]}}}
NO_KERNEL = "profiling.sizes.mamba_state: 96: no fused decode kernel"


def test_where_the_device_is_open_the_machine_decides_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_checks, "pick_device", lambda _: "cuda")
    (found,) = problems_before_a_run_here(RunConfig.model_validate(OPEN))
    assert found.startswith(NO_KERNEL) and "profiling.device: auto is this machine's GPU" in found
    assert problems_before_a_run_here(RunConfig.model_validate(OPEN | {"kernels": {"decode": "torch"}})) == []
    monkeypatch.setattr(recipe_checks, "pick_device", lambda _: "cpu")
    assert problems_before_a_run_here(RunConfig.model_validate(OPEN)) == []


def test_a_recipe_that_any_machine_takes_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_checks, "pick_device", lambda _: pytest.fail("asked"))
    assert problems_before_a_run_here(RunConfig(name="x")) == []


def test_the_step_that_measures_refuses_sizes_before_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashslm.profiling.plan.pick_device", lambda _: "cuda")
    monkeypatch.setattr(profile_latency, "compile_ahead", lambda *_: pytest.fail("compiled"))
    recipe = RunConfig.model_validate(OPEN | {"model": {"mamba_state": 48}})
    config = from_step_json("profile_latency", recipe.for_step("profile_latency"))
    context = SimpleNamespace(config=config, manifest=lambda _: SimpleNamespace(metadata={"vocab_size": 1000}))
    with pytest.raises(ValueError, match=r"profiling\.device is 'auto', here cuda: no fused decode") as refusal:
        profile_latency.run(cast(StepContext, context))
    assert all(f"mamba_state is {size}: a power of two" in str(refusal.value) for size in (48, 96))
    assert "128" not in str(refusal.value) and str(refusal.value).endswith("or set profiling.device: cpu")
    monkeypatch.setattr("flashslm.profiling.plan.pick_device", lambda _: "cpu")
    assert kernel_problems_of_a_plan(config, ProfilingPlan(config.profiling, config.model, 1000)) == []
