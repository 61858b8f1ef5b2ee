"""The MLflow run of a local run as a person finds it, against a real MLflow."""

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from flashslm.config import RunConfig
from flashslm.config import file as config_file
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest
from flashslm.infra.tracking import mlflow_runs, system_metrics
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.infra.tracking.spool import NOTE_TAG, PARENT_TAG
from flashslm.launch import run_description
from flashslm.launch.local import parent_run
from flashslm.launch.progress import StepRecord
from flashslm.steps.headline import record_figures, record_headline

pytestmark = pytest.mark.services


@pytest.fixture
def recipe() -> RunConfig:
    name = f"recipe-{uuid.uuid4().hex[:8]}"
    return RunConfig.model_validate({"name": name, "training": {"steps": 77}, "gate": {"model_name": "team-model"}})


@pytest.fixture
def run_dir(tmp_path: Path, recipe: RunConfig) -> Path:
    directory = tmp_path / "runs" / f"20261127-234105-{recipe.name}"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(config_file.dump(recipe))
    return directory


def test_a_run_says_who_what_and_what_came_of_it(
    platform_env: Settings, recipe: RunConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    mlflow_runs.origin.cache_clear()
    settings = parent_run.of_recipe(platform_env, recipe)
    run_id = parent_run.begin(settings, recipe, run_dir, "design_and_train")
    client = TrackingClient(settings)
    begun = client.get_run(run_id)
    assert begun.info.run_name == f"{recipe.name} 23:41"
    assert client.get_experiment(begun.info.experiment_id).name == recipe.name
    assert begun.data.tags["mlflow.source.git.commit"] == "0123456789abcdef"
    assert begun.data.tags["mlflow.user"] and begun.data.tags["mlflow.source.name"] == "flashslm"
    assert begun.data.params == {"cfg.training.steps": "77", "cfg.gate.model_name": "team-model"}
    assert [file.path for file in client.list_artifacts(run_id)] == ["config.yaml"]
    run = mlflow_runs.run_of(settings, run_id)
    run.log_metrics({"width": 64, "test/perplexity": 12.5, "parameters": 1234567}, step=0)
    run.set_tags({"operators": "AFAF", "decision": "promote"})
    parent_run.describe(settings, run_id, recipe, run_dir)
    mlflow_runs.finish_run(settings, run_id, "FINISHED")
    ended = client.get_run(run_id)
    assert ended.info.run_name == f"{recipe.name} 23:41 · AFAF w64"
    note = ended.data.tags["mlflow.note.content"]
    assert (
        "**promote**" in note
        and "test/perplexity 12.5" in note
        and "parameters 1,234,567" in note
        and "models list --name team-model" in note
    )


def test_a_description_leads_to_curves_and_to_the_run_before(platform_env: Settings, recipe: RunConfig) -> None:
    settings = parent_run.of_recipe(platform_env, recipe)
    tags = {"pipeline": "design_and_train", "recipe": recipe.name}
    before = mlflow_runs.start_parent_run(settings, "before", tags)
    mlflow_runs.finish_run(settings, before, "FINISHED")
    time.sleep(0.002)
    run_id = mlflow_runs.start_parent_run(settings, "this", tags)
    below = {PARENT_TAG: run_id, "step": "pretrain"}
    trained = mlflow_runs.start_parent_run(settings, "pretrain · wnorm on · seed 0", below)
    cached = mlflow_runs.start_parent_run(settings, "cached", below | {"cached": "true", "cached.origin": "origin"})
    client = TrackingClient(settings)
    run_description.describe(settings, run_id, "this run")
    note = client.get_run(run_id).data.tags[NOTE_TAG]
    links = {text: unquote(address) for text, address in re.findall(r"\[(.+?)\]\((.+?)\)", note)}
    curves, compare, view = links.values()
    runs = json.loads(re.findall(r"runs=(\[.+?\])", curves)[0])
    assert set(runs) == {trained, "origin"} and 'metric="validation/loss_nats"' in curves
    assert f'runs=["{before}","{run_id}"]' in compare
    assert view.startswith(f"#/experiments/{client.experiment_id}/runs?viewStateShareKey=")
    state = json.loads(client.get_experiment(client.experiment_id).tags[run_description.VIEW_TAG])
    assert state["selectedColumns"][:2] == ["tags.`decision`", "metrics.`test/perplexity`"]
    for each in (trained, cached, run_id):
        mlflow_runs.finish_run(settings, each, "FINISHED")


def test_figures_are_on_the_parent_as_soon_as_their_steps_end(platform_env: Settings, tmp_path: Path) -> None:
    parent = mlflow_runs.start_parent_run(platform_env, "whole")
    settings, client = platform_env.model_copy(update={"parent_run_id": parent}), TrackingClient(platform_env)
    record_figures(settings, {"checkpoint": manifest(steps=3)})
    record_figures(settings, {"evaluation": manifest(**{"test/perplexity": 12.5})})
    assert client.get_run(parent).data.metrics == {"test/perplexity": 12.5}
    (tmp_path / "report.html").write_text("report")
    every = {"evaluation": manifest(**{"test/perplexity": 12.5}), "exported": manifest(latency_ms=3.0)}
    record_headline(settings, parent, every | {"dataset": manifest()}, "hold", "text", tmp_path / "report.html")
    assert client.get_run(parent).data.metrics == {"test/perplexity": 12.5, "latency_ms": 3.0}
    assert len(client.get_metric_history(parent, "test/perplexity")) == 1, "once"
    mlflow_runs.finish_run(settings, parent, "FINISHED")


def manifest(**metadata: Any) -> Manifest:
    digest = "a" * 64
    return Manifest(kind="x", uri=f"s3://flashslm/cas/{digest}", sha256=digest, bytes=1, metadata=metadata)


def test_an_experiment_that_the_environment_names_stays(platform_env: Settings, recipe: RunConfig) -> None:
    named = platform_env.model_copy(update={"experiment": "team/x"})
    assert parent_run.of_recipe(named, recipe).experiment == "team/x"


def test_a_cached_step_names_the_run_that_did_the_work(platform_env: Settings, recipe: RunConfig) -> None:
    settings = parent_run.of_recipe(platform_env, recipe)
    worked_name = "pretrain · wnorm on · seed 0"
    parents = [mlflow_runs.start_parent_run(settings, f"run {i}") for i in range(2)]
    with mlflow_runs.open_run(settings.model_copy(update={"parent_run_id": parents[0]}), worked_name) as worked:
        pass
    cached = StepRecord("pretrain", "pretrain seed=0 weight_norm=on", "SUCCESS", cached=True, summary="4.2 nats")
    ran = StepRecord("evaluate", "evaluate", "SUCCESS")
    unknown = StepRecord("merge_data", "merge_data", "SUCCESS", cached=True)
    for _ in range(2):  # the second time the newest run of that name is one that was cached
        parent_run.add_cached_steps(settings, parents[1], [cached, ran, unknown])
    client = TrackingClient(settings)
    found: list[Any] = client.find_runs(f"tags.mlflow.parentRunId = '{parents[1]}'")
    assert sorted(run.info.run_name for run in found) == sorted(2 * [worked_name, "merge_data"])
    for run in found:
        assert run.info.status == "FINISHED" and run.data.tags["cached"] == "true"
        assert run.data.tags.get("cached.origin", "") == (worked.run_id if run.info.run_name == worked_name else "")
        assert run.info.run_name != worked_name or "4.2 nats" in run.data.tags[NOTE_TAG]
    for parent in parents:
        mlflow_runs.finish_run(settings, parent, "FINISHED")


def test_the_machine_is_measured_while_a_step_runs(platform_env: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "_EVERY_S", 0.1)
    client = TrackingClient(platform_env)
    with mlflow_runs.open_run(platform_env, "measured") as run:
        deadline = time.monotonic() + 60
        while "system/cpu_utilization_percentage" not in client.get_run(run.run_id).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    measured = client.get_run(run.run_id).data.metrics
    assert {"system/system_memory_usage_megabytes", "system/disk_usage_percentage"} <= measured.keys()
