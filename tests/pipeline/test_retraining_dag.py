"""The branches of retraining, with stand-ins for the steps (conftest.FakeRuns)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from flashslm.config import PlatformConfig
from flashslm.launch.kfp.cluster_pass import for_cluster
from flashslm.launch.parity_lint import lint

FakeRuns = Callable[..., Any]
TRAINED = ["fetch_champion", "prepare_new_data", "continue_pretraining", "export_model", "compare_with_champion"]


@pytest.mark.parametrize(
    ("new", "training", "gate", "expected"),
    [
        ("retrain", "trained", "promote", [*TRAINED, "gate_challenger", "register_model", "report_retraining"]),
        ("retrain", "trained", "hold", [*TRAINED, "gate_challenger", "report_retraining"]),
        ("retrain", "diverged", "promote", [*TRAINED[:3], "report_retraining"]),
        ("hold", "trained", "promote", ["fetch_champion", "prepare_new_data", "report_retraining"]),
    ],
)
def test_each_decision_takes_its_branch(
    fake_runs: FakeRuns, new: str, training: str, gate: str, expected: list[str]
) -> None:
    runs = fake_runs(pipeline="retraining")
    decisions = {"prepare_new_data": new, "continue_pretraining": training, "gate_challenger": gate}
    result = runs.run(decisions=decisions)
    assert result.state == "SUCCESS" and sorted(runs.ran()) == sorted(["check_recipe", *expected])
    labels = [step.label for step in result.steps]
    assert sorted(labels) == sorted(runs.ran()), "a component's second use has the name of its step"
    report = result.steps[labels.index("report_retraining")]
    assert (report.summary, report.log and report.log.name) == ("report_retraining is done", "report_retraining.log")
    calls = {call["step"]: call for call in runs.calls()}
    sources = {
        "champion": "fetch_champion",
        "dataset": "prepare_new_data",
        "chosen": "continue_pretraining",
        "exported": "export_model",
        "evaluation": "compare_with_champion",
        "verdict": "gate_challenger",
    }
    shown = {name: source for name, source in sources.items() if source in expected}
    assert calls["report_retraining"]["inputs"] == shown
    if "export_model" in expected:
        assert calls["export_model"]["inputs"] == {"dataset": "prepare_new_data", "chosen": "continue_pretraining"}
    if "register_model" in expected:
        assert calls["register_model"]["inputs"]["dataset"] == "prepare_new_data"
        assert {"code_digest", "config_digest", "image"} == set(calls["register_model"]["parameters"])


def test_a_cluster_takes_it_with_what_its_steps_need() -> None:
    package = for_cluster("retraining", PlatformConfig(image="runtime@sha256:ab"))
    assert lint(package.spec, package.platform) == []
    containers = {name: e["container"] for name, e in package.spec["deploymentSpec"]["executors"].items()}
    on_gpu = {name for name, container in containers.items() if "accelerator" in container["resources"]}
    assert on_gpu == {"exec-continue-pretraining", "exec-compare-with-champion", "exec-export-model"}


def holders(pipeline: str, platform: PlatformConfig, secret: str) -> set[str]:
    """The executors that mount a secret."""
    pods = for_cluster(pipeline, platform).platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name for name, pod in pods.items() if secret in {m["secretName"] for m in pod["secretAsVolume"]}}


def test_only_registration_gets_the_hooks_secret() -> None:
    found = holders("retraining", PlatformConfig(hook_secret="flashslm-hook"), "flashslm-hook")
    assert found == {"exec-register-model"}


def test_only_the_search_gets_the_databases_secret() -> None:
    assert holders("retraining", PlatformConfig(), "flashslm-database") == set()
    found = holders("design_and_train", PlatformConfig(), "flashslm-database")
    assert found == {f"exec-{step}-architecture" for step in ("search", "select")}


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container.get("env", [])}


def test_on_several_nodes_it_trains_in_a_train_job_as_pretrain_does() -> None:
    values = {"nodes": 2, "steps": {"continue_pretraining": {"gpus": 4, "timeout_s": 7200}}}
    spec = for_cluster("retraining", PlatformConfig.model_validate(values)).spec
    container = spec["deploymentSpec"]["executors"]["exec-continue-pretraining"]["container"]
    assert "accelerator" not in container["resources"], "the step's own pod watches"
    job = json.loads(variables(container)["FLASHSLM_TRAIN_JOB"])
    assert job["kind"] == "TrainJob"
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert job["spec"]["activeDeadlineSeconds"] == 7200
    (nodes,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = nodes["template"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts == {
        "flashslm-s3": "/etc/flashslm/s3",
        "flashslm-mlflow": "/etc/flashslm/mlflow",
        "flashslm": "/etc/flashslm/config",
        "shm": "/dev/shm",
    }
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "continue-pretraining"
    others = [e["container"] for name, e in spec["deploymentSpec"]["executors"].items() if "continue" not in name]
    assert not any("FLASHSLM_TRAIN_JOB" in variables(other) for other in others)
