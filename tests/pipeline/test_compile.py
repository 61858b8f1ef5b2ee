"""Compiling: the golden YAML, the arguments of a recipe, and the digest that keeps the cache honest.

Refresh the golden files: FLASHSLM_UPDATE_GOLDEN=1 pytest tests/pipeline/test_compile.py
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.compiler.pipeline_spec_builder import to_protobuf_value
from kfp.local.executor_output_utils import pb2_value_to_python

from flashslm.config import DESIGN_STEPS, STEP_SECTIONS, RunConfig
from flashslm.config.file import load
from flashslm.config.steps import EVERY_SECTION, section_parameter
from flashslm.launch.compiling import (
    code_digest,
    compile_pipeline,
    load_pipeline,
    pipeline_arguments,
    project_root,
    tree_digest,
)
from flashslm.launch.labels import step_of
from flashslm.launch.parity_lint import Compiled
from flashslm.launch.processes import LaunchError

GOLDEN = Path(__file__).parent / "golden"
PIPELINES = ("design_and_train", "retraining")


def compiled_text(pipeline: str, tmp_path: Path) -> str:
    text = compile_pipeline(pipeline, tmp_path / "pipeline.yaml").read_text()
    return re.sub(r"^sdkVersion: kfp-.*$", "sdkVersion: kfp", text, flags=re.MULTILINE)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_compiled_pipeline_is_the_golden_one(pipeline: str, tmp_path: Path) -> None:
    text, golden = compiled_text(pipeline, tmp_path), GOLDEN / f"{pipeline}.yaml"
    if os.environ.get("FLASHSLM_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "if this change is meant: FLASHSLM_UPDATE_GOLDEN=1 pytest " + __file__


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [compile_pipeline("design_and_train", tmp_path / f"{i}.yaml", retries=3) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def retry_counts(spec: dict[str, Any]) -> list[int]:
    dags = [c["dag"]["tasks"].values() for c in (spec["root"], *spec["components"].values()) if "dag" in c]
    tasks = [
        task for dag in dags for task in dag if spec["components"][task["componentRef"]["name"]].get("executorLabel")
    ]
    return [task.get("retryPolicy", {}).get("maxRetryCount", 0) for task in tasks]


@pytest.mark.parametrize("retries", [0, 5])
def test_retries_of_the_recipe_apply_to_every_step(tmp_path: Path, retries: int) -> None:
    file = compile_pipeline("design_and_train", tmp_path / "pipeline.yaml", retries=retries)
    assert retry_counts(yaml.safe_load(file.read_text())) == [retries] * len(DESIGN_STEPS)


def declared(pipeline: str) -> set[str]:
    spec = yaml.safe_load((GOLDEN / f"{pipeline}.yaml").read_text())
    return set(spec["root"]["inputDefinitions"]["parameters"])


def test_a_recipe_gives_exactly_the_arguments_of_both_pipelines() -> None:
    config = RunConfig.model_validate(
        {"name": "toy", "search": {"workers": 3}, "training": {"seeds": [0, 1]}, "data": {"workers": 2}}
    )
    arguments = pipeline_arguments(config, "digest", "source")
    assert set(arguments) == declared("design_and_train") | declared("retraining")
    shared = declared("design_and_train") & declared("retraining")
    assert shared == {"code_digest", "image", "source_digest", *EVERY_SECTION}
    assert arguments["workers"] == ["0", "1", "2"] and arguments["data_workers"] == ["0", "1"]
    assert (arguments["training"], arguments["search"], arguments["gate"]) == ({"seeds": [0, 1]}, {}, {})


TYPES = {"workers": "LIST", "data_workers": "LIST", "seed": "NUMBER_INTEGER"} | {
    section: "STRUCT" for section in EVERY_SECTION if section not in ("name", "seed")
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_there_is_one_parameter_per_section_and_none_is_json_in_a_text(pipeline: str) -> None:
    spec = yaml.safe_load((GOLDEN / f"{pipeline}.yaml").read_text())
    declared = spec["root"]["inputDefinitions"]["parameters"]
    assert {name: value["parameterType"] for name, value in declared.items()} == {
        name: TYPES.get(name, "STRING") for name in declared
    }
    config = load(project_root() / "configs" / "smoke.yaml")
    for name, value in pipeline_arguments(config, "digest", "source").items():
        assert not isinstance(value, str) or not value.startswith(("{", "[")), name
    required = {name for name, value in declared.items() if not value.get("isOptional")}
    assert required == {"name", "code_digest", "image"}, "'Create run' needs no more"


@pytest.mark.parametrize("recipe", sorted((project_root() / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_comes_back_from_kfps_doubles_as_it_was(recipe: Path) -> None:
    config = load(recipe)
    sections = {name: value for name, value in config.as_parameters().items() if name in EVERY_SECTION}
    sections["search"] = sections["search"] | {"workers": config.search.workers}

    def through_kfp(value: Any) -> Any:
        return pb2_value_to_python(to_protobuf_value(value))

    doubles = {name: through_kfp(value) for name, value in sections.items()}
    assert isinstance(doubles["seed"], float)
    again = RunConfig.model_validate(doubles | {"platform": config.platform})
    assert again == config and text_of(again) == text_of(config), "integers are integers again"


def text_of(config: RunConfig) -> str:
    """In an order that KFP's mappings do not change."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_task_gets_no_section_that_its_step_does_not_read(pipeline: str) -> None:
    """Those that it is not given come with its inputs: the runs in test_local and test_retraining_dag miss none."""
    spec = yaml.safe_load((GOLDEN / f"{pipeline}.yaml").read_text())
    seen = set()
    for _, name, task in Compiled(spec, {}).tasks():
        if "executorLabel" not in (component := spec["components"][task["componentRef"]["name"]]):
            continue
        step = step_of(spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"])
        given = {key: value.get("componentInputParameter", "") for key, value in task["inputs"]["parameters"].items()}
        sections = {s: section_parameter(s) for s in STEP_SECTIONS[step]}
        own = {"pretrain": {"seed"}}.get(step, set())  # of the variant
        assert {key for key in given if key in ALL_SECTION_PARAMETERS} - own <= set(sections.values()), name
        for section, parameter in sections.items():
            assert parameter not in given or given[parameter].removeprefix("pipelinechannel--") == section, name
        seen.add(step)
    assert "check_recipe" in seen and len(seen) > 7


ALL_SECTION_PARAMETERS = {section_parameter(section) for section in EVERY_SECTION}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_tasks_have_display_names(pipeline: str) -> None:
    spec = yaml.safe_load((GOLDEN / f"{pipeline}.yaml").read_text())
    names = {name: task["taskInfo"]["name"] for _, name, task in Compiled(spec, {}).tasks() if "retryPolicy" in task}
    assert all(label[0].isupper() for label in names.values())
    assert len(set(names.values())) == len(names), "KFP's graph tells tasks apart"


def test_retraining_looks_at_registry_and_source_in_every_run(tmp_path: Path) -> None:
    spec = yaml.safe_load(compile_pipeline("retraining", tmp_path / "pipeline.yaml").read_text())
    tasks = {
        name: task
        for c in (spec["root"], *spec["components"].values())
        if "dag" in c
        for name, task in c["dag"]["tasks"].items()
        if "retryPolicy" in task
    }
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"check-recipe", "continue-pretraining", "export-model", "compare-with-champion"}
    assert "source_digest" in tasks["prepare-new-data"]["inputs"]["parameters"], "what a schedule looks for"


def test_unknown_pipeline_lists_the_names() -> None:
    with pytest.raises(LaunchError, match=r"'design' is not in .*/pipelines; there are: .*design_and_train"):
        load_pipeline("design", project_root())


def test_project_root_is_found_from_below_and_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine" / "pipelines").mkdir(parents=True)
    (tmp_path / "mine" / "components" / "deep").mkdir(parents=True)
    assert project_root(tmp_path / "mine" / "components" / "deep") == tmp_path / "mine"
    assert (project_root(tmp_path) / "pipelines" / "design_and_train").is_dir()


def test_code_digest_sees_sources_and_templates_only(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "step.py").write_text("x = 1")
    first = tree_digest([package])
    (package / "__pycache__" / "step.pyc").write_text("bytes")
    (package / ".step.py.swp").write_text("editor")
    assert tree_digest([package]) == first
    (package / "report.html.j2").write_text("<html>")
    with_template = tree_digest([package])
    assert with_template != first
    (package / "step.py").write_text("x = 2")
    assert tree_digest([package]) not in (first, with_template)
    (package / "step.py").rename(package / "other.py")
    assert len({first, with_template, tree_digest([package]), code_digest()}) == 4


def test_code_digest_of_an_installed_package_needs_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "flashslm"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(sys.modules[code_digest.__module__], "PACKAGE", installed)
    assert code_digest() == tree_digest([installed])
