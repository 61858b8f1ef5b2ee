"""The bytes of Argo's node statuses: the estimate against the recorded run, and what a run takes now."""

import gzip
import json
from typing import Any

import pytest
import yaml

from flashslm.config.file import load
from flashslm.launch.compiling import arguments_for, pipeline_arguments, project_root
from flashslm.launch.kfp.cluster_pass import for_cluster
from tests.pipeline.argo_record import DRIVER, Record
from tests.pipeline.pod_patch import size
from tests.pipeline.recorded_kfp import HERE, recorded_nodes

Document = dict[str, Any]

OPTIONS = [
    "platform.image=ghcr.io/flashslm/runtime:0.1.0",
    "platform.gpu_steps={gpus: 0, cpu: 2, memory: 4Gi}",
]


def values(node: Document, side: str = "inputs") -> dict[str, str]:
    return {p["name"]: p.get("value", "") for p in node.get(side, {}).get("parameters", [])}


def recorded_drivers() -> list[Document]:
    nodes = recorded_nodes("succeeded_compressed").values()
    return [node for node in nodes if node["templateName"] == DRIVER and node["type"] == "Pod"]


@pytest.fixture(scope="module")
def estimated() -> Record:
    """Of the recorded run, by the definition, the containers and the arguments that were recorded with it."""
    spec = yaml.safe_load(gzip.decompress((HERE / "recorded" / "design_and_train.yaml.gz").read_bytes()))
    settings = {}
    for node in recorded_drivers():
        given = values(node)
        label = json.loads(given["component"])["executorLabel"]
        spec["deploymentSpec"]["executors"][label]["container"] = json.loads(given["container"])
        settings[label] = json.loads(given["kubernetes-config"])
    nodes = recorded_nodes("succeeded_compressed").values()
    (root,) = [node for node in nodes if node["displayName"] == "root-driver(0)"]
    arguments = json.loads(values(root)["runtime-config"])["parameterValues"]
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": settings}}}}
    return Record(spec, platform, arguments, {"search-architecture": {"Output": "0"}})


def test_the_estimate_of_each_pod_is_what_was_recorded(estimated: Record) -> None:
    recorded = {values(node)["task-name"]: values(node, "outputs")["pod-spec-patch"] for node in recorded_drivers()}
    found = {pod.task: size(pod.patch) for pod in estimated.pods}
    assert found == pytest.approx({task: size(patch) for task, patch in recorded.items()}, rel=0.03)
    assert len(estimated.pods) == len(recorded_drivers())


def test_the_estimate_of_the_whole_is_what_was_recorded(estimated: Record) -> None:
    assert estimated.bytes() == pytest.approx(size(recorded_nodes("succeeded_compressed")), rel=0.01)


def test_a_task_takes_at_most_60_percent_of_what_was_recorded() -> None:
    config = load(project_root() / "configs" / "smoke.yaml", OPTIONS)
    package = for_cluster("design_and_train", config.platform)
    known = pipeline_arguments(config, code_digest := "c" * 64, "s" * 64, "d" * 64) | {"code_digest": code_digest}
    variants = [{"seed": "0", "weight_norm": weight_norm} for weight_norm in ("on", "off")]
    returned = {
        "check-recipe": {"Output": variants, "config_digest": "c" * 64},
        "search-architecture": {"Output": "0"},
        "gate": {"Output": "promote"},
    }
    now = Record(package.spec, package.platform, arguments_for(package.spec, known), returned)
    recorded = size(recorded_nodes("succeeded_compressed")) / len(recorded_drivers())
    assert now.bytes() / len(now.pods) <= 0.6 * recorded
