"""The tasks of the shipped pipelines, loops unrolled by the arguments of a run."""

from typing import Any

import pytest
import yaml

from flashslm.config import RunConfig
from flashslm.launch.compiling import arguments_for, pipeline_arguments
from flashslm.launch.kfp.definition import defined_tasks
from tests.pipeline.test_compile import GOLDEN


def labels(arguments: dict[str, Any]) -> list[str]:
    spec = yaml.safe_load((GOLDEN / "design_and_train.yaml").read_text())
    return [task.label for task in defined_tasks(spec, arguments_for(spec, arguments))]


def test_a_recipes_seeds_and_workers_are_the_iterations() -> None:
    recipe = RunConfig.model_validate(
        {"name": "toy", "training": {"seeds": [3, 4]}, "search": {"workers": 3}, "data": {"workers": 2}}
    )
    found = labels(pipeline_arguments(recipe, "code", "source"))
    prepared = ["plan_data", "prepare_data worker=0", "prepare_data worker=1", "merge_data"]
    assert found[:7] == ["check_recipe", *prepared, "profile_latency", "fit_scaling_law"]
    assert [label for label in found if label.startswith("pretrain")] == [
        f"pretrain seed={seed} weight_norm={weight_norm}" for weight_norm in ("on", "off") for seed in (3, 4)
    ]
    assert [f"search_architecture worker={i}" for i in range(3)] == found[7:10]
    assert found[-2:] == ["register_model", "report"]


@pytest.mark.parametrize("training", [{"seeds": "none"}, {"steps": 0}])
def test_a_section_that_will_be_refused_counts_as_one_iteration(training: dict[str, Any]) -> None:
    found = labels({"name": "toy", "code_digest": "code", "image": "", "training": training, "workers": ["0"]})
    assert found.count("pretrain") == 1 and found.count("search_architecture worker=0") == 1
