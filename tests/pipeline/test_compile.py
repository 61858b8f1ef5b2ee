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

from flashslm.config import DESIGN_STEPS, RunConfig
from flashslm.launch.compiling import (
    code_digest,
    compile_pipeline,
    load_pipeline,
    pipeline_arguments,
    project_root,
    tree_digest,
)
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
    config = RunConfig.model_validate({"name": "toy", "search": {"workers": 3}, "training": {"seeds": [0, 1]}})
    arguments = pipeline_arguments(config, "digest", "source")
    assert set(arguments) == declared("design_and_train") | declared("retraining")
    shared = declared("design_and_train") & declared("retraining")
    assert shared == {
        "code_digest",
        "config_digest",
        "image",
        "source_digest",
        "export_model_config",
        "register_model_config",
    }
    assert arguments["workers"] == ["0", "1", "2"]
    assert {"weight_norm": "off", "seed": "1"} in arguments["variants"] and len(arguments["variants"]) == 4
    assert json.loads(arguments["gate_config"]) == {"gate": config.gate.model_dump(mode="json")}


def test_the_recipes_digest_is_that_of_the_work() -> None:
    def digest_of(values: dict[str, Any]) -> str:
        config = RunConfig.model_validate({"name": "toy"} | values)
        return str(pipeline_arguments(config, "digest", "source")["config_digest"])

    assert digest_of({}) == digest_of({"platform": {"image": "all@sha256:1"}}) != digest_of({"seed": 1})


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
    assert cached == {"continue-pretraining", "export-model", "compare-with-champion"}
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
