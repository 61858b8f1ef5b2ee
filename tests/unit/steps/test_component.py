"""What a KFP component hands to its step, and what KFP shows of it."""

import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flashslm.steps import component
from flashslm.steps.component import run_component


@dataclass
class FakeArtifact:
    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def run_step(name: str, **call: Any) -> dict[str, Any]:
        made.append({"name": name, **call, "config": json.loads(call["config"])})
        return {"loss_nats": 1.5, "summary": "trained"}

    monkeypatch.setattr(component, "run_step", run_step)
    return made


def test_sections_artifacts_and_parameters_reach_the_step(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    metrics = FakeArtifact(str(tmp_path / "metrics"))
    arguments = {
        "model": {},
        "kernels": {"gla": "fla"},
        "training": {"steps": 3.0},
        "code_digest": "code",
        "weight_norm": "on",
        "seed": "7",
        "dataset": FakeArtifact("/in/dataset"),
        "architecture": FakeArtifact("/in/architecture"),
        "checkpoint": FakeArtifact("/out/checkpoint"),
        "metrics": metrics,
    }
    assert run_component("pretrain", arguments, ("checkpoint",))["summary"] == "trained"
    (call,) = calls
    assert call["config"] == {"model": {}, "kernels": {"gla": "fla"}, "training": {"steps": 3.0}}
    assert call["inputs"] == {"dataset": "/in/dataset", "architecture": "/in/architecture"}
    assert call["outputs"] == {"checkpoint": "/out/checkpoint"}
    assert call["parameters"] == {"code_digest": "code", "weight_norm": "on", "seed": "7"}
    assert metrics.metadata == {"loss_nats": 1.5, "display_name": "seed=7 weight_norm=on"}, "what KFP compares runs by"
    assert json.loads(Path(metrics.path).read_text()) == {"loss_nats": 1.5}, "without a file nothing is cached"


def test_what_only_decides_about_the_cache_does_not_reach_the_step(calls: list[dict[str, Any]]) -> None:
    arguments = {"seed": 0, "data": {}, "code_digest": "code", "source_digest": "source"}
    run_component("plan_data", arguments | {"plan": FakeArtifact("/out/plan")}, ("plan",))
    assert calls[0]["parameters"] == {"code_digest": "code"} and calls[0]["inputs"] == {}


def test_absent_artifacts_and_lists_of_texts_are_no_inputs(calls: list[dict[str, Any]]) -> None:
    names = ("model", "kernels", "profiling", "latency", "scaling", "search")
    sections: dict[str, Any] = {name: {} for name in names}
    artifacts = {"latency_table": None, "dataset": FakeArtifact("/d")}
    arguments = sections | artifacts | {"seed": 0, "workers": ["done", "done"]}
    run_component("select_architecture", arguments)
    assert calls[0]["inputs"] == {"dataset": "/d"}


def test_nothing_is_collected_before_the_step_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(component, "run_step", lambda *_, **__: held.append(not gc.isenabled()) or {})
    run_component("plan_data", {"seed": 0, "data": {}})
    gc.unfreeze()
    assert held == [True] and gc.isenabled()


def test_several_artifacts_are_a_list(calls: list[dict[str, Any]]) -> None:
    checkpoints = [FakeArtifact("/1"), FakeArtifact("/2")]
    run_component("compare_weight_norm", {"training": {}, "checkpoints": checkpoints})
    assert calls[0]["inputs"] == {"checkpoints": ["/1", "/2"]}
