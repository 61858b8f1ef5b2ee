"""Every rule of the parity lint finds its violation in an otherwise clean pipeline; the shipped pipelines are clean."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashslm.launch.compiling import compile_pipeline, pipeline_names, project_root
from flashslm.launch.parity_lint import MAX_STEP_BYTES, RULES, lint, lint_file

Document = dict[str, Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Document:
    file = compile_pipeline("design_and_train", tmp_path_factory.mktemp("compiled") / "pipeline.yaml")
    return dict(yaml.safe_load(file.read_text()))


def container(spec: Document, name: str = "exec-evaluate") -> Document:
    return spec["deploymentSpec"]["executors"][name]["container"]


def task(spec: Document, name: str, dag: str = "root") -> Document:
    return (spec["root"] if dag == "root" else spec["components"][dag])["dag"]["tasks"][name]


def container_component(spec: Document) -> None:
    container(spec)["command"] = ["echo", "evaluated"]


def target_image(spec: Document) -> None:
    container(spec)["command"] = ["python3", "-m", "kfp.dsl.executor_main"]


def packages_to_install(spec: Document) -> None:
    container(spec)["command"].insert(0, "python3 -m pip install numpy")


def condition_on_named_output(spec: Document) -> None:
    source = task(spec, "condition-4")["inputs"]["parameters"]["pipelinechannel--gate-Output"]
    source["taskOutputParameter"]["outputParameterKey"] = "decision"


def condition_on_named_output_of_an_outer_dag(spec: Document) -> None:
    task(spec, "pretrain", "comp-for-loop-3")["triggerPolicy"] = {
        "condition": "inputs.parameter_values['pipelinechannel--gate-decision'] == 'promote'"
    }
    inner = {"componentInputParameter": "pipelinechannel--gate-decision"}
    task(spec, "pretrain", "comp-for-loop-3")["inputs"]["parameters"]["pipelinechannel--gate-decision"] = inner
    outer = {"taskOutputParameter": {"producerTask": "gate", "outputParameterKey": "decision"}}
    task(spec, "for-loop-3")["inputs"]["parameters"]["pipelinechannel--gate-decision"] = outer


def loop_over_named_output(spec: Document) -> None:
    source = task(spec, "for-loop-3")["inputs"]["parameters"]["pipelinechannel--check-recipe-Output"]
    source["taskOutputParameter"]["outputParameterKey"] = "variants"


def one_of_artifacts(spec: Document) -> None:
    outputs = spec["components"]["comp-for-loop-3"]["dag"]["outputs"]["artifacts"]
    outputs["pipelinechannel--pretrain-checkpoint"]["artifactSelectors"] *= 2


def remote_importer(spec: Document) -> None:
    executor = {"importer": {"artifactUri": {"constant": "s3://bucket/model"}}}
    spec["deploymentSpec"]["executors"]["exec-importer"] = executor


def importer_of_a_parameter(spec: Document) -> None:
    executor = {"importer": {"artifactUri": {"runtimeParameter": "uri"}}}
    spec["deploymentSpec"]["executors"]["exec-importer"] = executor


def optional_none(spec: Document) -> None:
    spec["root"]["inputDefinitions"]["parameters"]["limit"] = {"parameterType": "NUMBER_INTEGER", "isOptional": True}


def cached_gate(spec: Document) -> None:
    task(spec, "gate")["cachingOptions"] = {"enableCache": True}


def cached_step_without_outputs(spec: Document) -> None:
    del spec["components"]["comp-evaluate"]["outputDefinitions"]


def cached_exit_task(spec: Document) -> None:
    task(spec, "evaluate")["triggerPolicy"] = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def custom_cache_key(spec: Document) -> None:
    task(spec, "evaluate")["cachingOptions"]["cacheKey"] = "mine"


def gpu_without_timeout(spec: Document) -> None:
    container(spec)["resources"] = {"accelerator": {"type": "nvidia.com/gpu", "count": "1"}}


def long_source(spec: Document) -> None:
    container(spec)["command"][-1] += "\n# and so on" * 400


def placeholder(spec: Document) -> None:
    constant = {"runtimeValue": {"constant": "started {{$.pipeline_job_create_time_utc}}"}}
    task(spec, "evaluate")["inputs"]["parameters"]["config"] = constant


def boolean_input_name(spec: Document) -> None:
    spec["root"]["inputDefinitions"]["parameters"]["y"] = {"parameterType": "STRING"}


def boolean_output_name(spec: Document) -> None:
    outputs = spec["components"]["comp-evaluate"]["outputDefinitions"]["artifacts"]
    outputs[True] = outputs.pop("evaluation")  # what a YAML 1.1 reader makes of an unquoted "on"


def loop_over_artifacts(spec: Document) -> None:
    loop = task(spec, "for-loop-3")
    del loop["parameterIterator"]
    loop["artifactIterator"] = {"itemInput": "model", "items": {"inputArtifact": "models"}}


def secret_default(spec: Document) -> None:
    parameter = {"parameterType": "STRING", "isOptional": True, "defaultValue": "hunter2"}
    spec["root"]["inputDefinitions"]["parameters"]["s3_secret_key"] = parameter


def secret_argument(spec: Document) -> None:
    task(spec, "evaluate")["inputs"]["parameters"]["api_key"] = {"runtimeValue": {"constant": "hunter2"}}


def secret_in_environment(spec: Document) -> None:
    container(spec)["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}]


def credential_in_source(spec: Document) -> None:
    container(spec)["command"][-1] += "\n# postgresql://user:hunter2@db/study"


def variable_of_the_plug_in(spec: Document) -> None:
    container(spec)["env"] = [{"name": "MLFLOW_RUN_ID", "value": "0" * 32}]


VIOLATIONS: list[tuple[str, Callable[[Document], None]]] = [
    ("lightweight_components_only", container_component),
    ("lightweight_components_only", target_image),
    ("nothing_installed_at_start", packages_to_install),
    ("conditions_on_single_outputs", condition_on_named_output),
    ("conditions_on_single_outputs", condition_on_named_output_of_an_outer_dag),
    ("loops_over_single_outputs", loop_over_named_output),
    ("no_one_of_artifacts", one_of_artifacts),
    ("no_remote_importer", remote_importer),
    ("no_remote_importer", importer_of_a_parameter),
    ("no_optional_without_default", optional_none),
    ("no_cached_side_effects", cached_gate),
    ("no_cached_side_effects", cached_step_without_outputs),
    ("no_cached_side_effects", cached_exit_task),
    ("no_custom_cache_key", custom_cache_key),
    ("gpu_steps_survive", gpu_without_timeout),
    ("steps_are_small", long_source),
    ("no_cluster_only_placeholders", placeholder),
    ("no_yaml_boolean_names", boolean_input_name),
    ("no_yaml_boolean_names", boolean_output_name),
    ("no_loop_over_artifacts", loop_over_artifacts),
    ("no_secrets", secret_default),
    ("no_secrets", secret_argument),
    ("no_secrets", secret_in_environment),
    ("no_secrets", credential_in_source),
    ("no_foreign_variables", variable_of_the_plug_in),
]


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "KFP_POD_NAME"])
@pytest.mark.parametrize(
    "source",
    [
        lambda name: {"configMapAsEnv": [{"configMapName": "x", "keyToEnv": [{"configMapKey": "k", "envVar": name}]}]},
        lambda name: {"secretAsEnv": [{"secretName": "x", "keyToEnv": [{"secretKey": "k", "envVar": name}]}]},
        lambda name: {"fieldPathAsEnv": [{"name": name, "fieldPath": "metadata.uid"}]},
    ],
)
def test_variables_that_kfp_sets_are_refused(source: Callable[[str], Document], variable: str) -> None:
    """By reference too: KFP's own value and the reference make an invalid pod."""
    spec: Document = {"root": {}, "deploymentSpec": {"executors": {"exec-a": {"container": {}}}}}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-a": source(variable)}}}}}
    (found,) = lint(spec, platform)
    assert found.rule == "no_foreign_variables" and f"sets {variable}, which KFP" in found.message
    own = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-a": source("FLASHSLM_X")}}}}}
    assert lint(spec, own) == []


@pytest.mark.parametrize("name", pipeline_names(project_root()))
def test_shipped_pipeline_is_clean(name: str, tmp_path: Path) -> None:
    assert lint_file(compile_pipeline(name, tmp_path / "pipeline.yaml")) == []


@pytest.mark.parametrize(("rule", "violate"), VIOLATIONS, ids=[violate.__name__ for _, violate in VIOLATIONS])
def test_rule_finds_its_violation_and_no_other(clean: Document, rule: str, violate: Callable[[Document], None]) -> None:
    spec = copy.deepcopy(clean)
    violate(spec)
    found = lint(spec)
    assert [v.rule for v in found] == [rule]
    assert found[0].where and found[0].message


def test_every_rule_has_a_violation() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _ in VIOLATIONS}


def test_a_large_step_says_which_part_is_large(clean: Document) -> None:
    spec, settings = copy.deepcopy(clean), {"podMetadata": {"annotations": {"note": "x" * MAX_STEP_BYTES}}}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-gate": settings}}}}}
    (found,) = lint(spec, platform)
    assert re.search(r"root/gate: takes \d+ bytes of the definition \(task \d+, .* platform 50\d\d\)", str(found))
    job = {"name": "FLASHSLM_TRAIN_JOB", "value": "x" * MAX_STEP_BYTES}
    container(spec, "exec-pretrain")["env"] = [job]
    assert lint(spec) == [], "a TrainJob's template does not count"


def test_gpu_step_with_retry_and_timeout_is_clean(clean: Document) -> None:
    spec = copy.deepcopy(clean)
    gpu_without_timeout(spec)
    timeout = {"deploymentSpec": {"executors": {"exec-evaluate": {"activeDeadlineSeconds": "3600"}}}}
    assert lint(spec, {"platforms": {"kubernetes": timeout}}) == []
    del task(spec, "evaluate")["retryPolicy"]
    assert "without a retry" in lint(spec, {"platforms": {"kubernetes": timeout}})[0].message
