"""The branches of retraining, with stand-ins for the steps (conftest.FakeRuns)."""

from collections.abc import Callable
from typing import Any

import pytest

from flashslm.config import PlatformConfig
from flashslm.launch.cluster import for_cluster
from flashslm.launch.parity_lint import lint

FakeRuns = Callable[..., Any]
TRAINED = ["fetch_champion", "prepare_new_data", "continue_pretraining", "export_model", "compare_with_champion"]


@pytest.mark.parametrize(
    ("new", "gate", "expected"),
    [
        ("retrain", "promote", [*TRAINED, "gate_challenger", "register_model", "report_retraining"]),
        ("retrain", "hold", [*TRAINED, "gate_challenger", "report_retraining"]),
        ("hold", "promote", ["fetch_champion", "prepare_new_data", "report_retraining"]),
    ],
)
def test_each_decision_takes_its_branch(fake_runs: FakeRuns, new: str, gate: str, expected: list[str]) -> None:
    runs = fake_runs(pipeline="retraining")
    result = runs.run(decisions={"prepare_new_data": new, "gate_challenger": gate})
    assert result.state == "SUCCESS" and sorted(runs.ran()) == sorted(expected)
    calls = {call["step"]: call for call in runs.calls()}
    shown = calls["report_retraining"]["inputs"]
    assert shown == {
        "champion": "fetch_champion",
        "dataset": "prepare_new_data",
        **(
            {
                "chosen": "continue_pretraining",
                "exported": "export_model",
                "evaluation": "compare_with_champion",
                "verdict": "gate_challenger",
            }
            if new == "retrain"
            else {}
        ),
    }
    if new == "retrain":
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


def test_only_registration_gets_the_hooks_secret() -> None:
    package = for_cluster("retraining", PlatformConfig(hook_secret="flashslm-hook"))
    pods = package.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    holders = {
        name: [key["envVar"] for key in secret["keyToEnv"]]
        for name, pod in pods.items()
        for secret in pod["secretAsEnv"]
        if secret["secretName"] == "flashslm-hook"
    }
    assert holders == {"exec-register-model": ["FLASHSLM_HOOK_SECRET"]}
