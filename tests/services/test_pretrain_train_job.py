"""The pretrain step on two nodes: a TrainJob whose pods are processes here, started as Kubeflow Trainer starts them."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import PlatformConfig
from flashslm.launch.cluster import for_cluster, step_of
from flashslm.platform import train_job
from flashslm.platform.kubernetes import Kubernetes
from flashslm.platform.mlflow_api import MlflowApi
from flashslm.platform.object_store import Manifest, ObjectStore
from flashslm.platform.settings import Settings
from flashslm.steps.run import run_step
from flashslm.training.workers import WorkerFailed
from tests.services.pretraining import call, metric_steps, write_inputs
from tests.unit.platform.fake_kubernetes import FakeKubernetes, serving

pytestmark = pytest.mark.services
Document = dict[str, Any]
STEPS = 6


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """A cluster for this process: its API server, its service account, and what the cluster pass puts into the pod."""
    spec = for_cluster("design_and_train", PlatformConfig.model_validate({"nodes": 2, "gpu_steps": {"gpus": 0}})).spec
    for executor in spec["deploymentSpec"]["executors"].values():
        if step_of(executor["container"]) == "pretrain":
            (variable,) = executor["container"]["env"]
            monkeypatch.setenv(variable["name"], variable["value"])
    monkeypatch.setattr(train_job, "TrainJob", partial(train_job.TrainJob, poll_s=0.1))
    state = FakeKubernetes()
    with serving(state, tmp_path / "account") as address:
        monkeypatch.setattr(Kubernetes, "in_cluster", lambda: Kubernetes(address, tmp_path / "account"))
        yield state


def run_pods(cache: Path, server: FakeKubernetes, job: Document) -> None:
    """What Trainer and JobSet do: a process a node with PET_* set, its output in the pod's log."""
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "FLASHSLM_CACHE": str(cache),
    }
    command = [sys.executable, *trainer["command"][1:]]
    pods = [server.add_pod(name, index) for index in range(trainer["numNodes"])]

    def follow(index: int) -> None:
        variables = os.environ | cluster | {"PET_NODE_RANK": str(index)}
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            server.log(pods[index], line.rstrip("\n"))
        exit_codes[index] = process.wait()
        server.end_pod(pods[index], exit_codes[index])

    exit_codes: dict[int, int] = {}
    threads = [threading.Thread(target=follow, args=(index,)) for index in range(len(pods))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.end_job(name, "Failed" if any(exit_codes.values()) else "Complete")


def test_two_nodes_give_the_run_of_one_process(
    server: FakeKubernetes,
    platform_env: Settings,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    inputs = write_inputs(store, tmp_path)
    server.on_create = partial(run_pods, tmp_path / "pod-cache")
    output = tmp_path / "together.json"
    arguments = call(inputs, output, processes=0, steps=STEPS)
    result = run_step("pretrain", **arguments)
    facts = Manifest.read(output).metadata
    assert server.created == server.deleted == [f"flashslm-{facts['run_key']}"]
    assert "on 2 processes" in result["summary"] and result["resumed_from_step"] == 0
    log = capfd.readouterr().out
    assert "@metrics" not in log, "metrics are no lines for people"
    run = MlflowApi(platform_env).search_runs("attributes.run_name = 'pretrain seed=0 weight_norm=on'")[0]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["train_job.name"] == server.created[0] and tags["train_job.status"]
    assert tags["kernel.attention/cpu/float32"] == "sdpa"
    assert metric_steps(platform_env, "pretrain seed=0 weight_norm=on") == list(range(1, STEPS + 1))

    monkeypatch.delenv(train_job.VARIABLE)
    alone = run_step("pretrain", **arguments | {"parameters": arguments["parameters"] | {"code_digest": "alone"}})
    assert alone["resumed_from_step"] == 0, "another run's checkpoints"
    assert result["validation_loss_nats"] == pytest.approx(alone["validation_loss_nats"], abs=1e-4)


def test_the_failure_of_a_worker_and_of_its_pod_are_told(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        pod = server.add_pod(job["metadata"]["name"])
        server.log(pod, "a log line", "@failure NonFiniteLoss: loss is not finite at step 3", "@failure later: one")
        server.end_pod(pod, 1, "Error")
        server.end_job(job["metadata"]["name"], "Failed", "FailedJobs", "jobset failed")

    server.on_create = script
    with pytest.raises(WorkerFailed) as caught:
        run_step("pretrain", **call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=0, steps=STEPS))
    text = str(caught.value)
    assert text.startswith("NonFiniteLoss: loss is not finite at step 3\nTrainJob flashslm-")
    assert "Error, exit code 1" in text and "later" not in text.split("its last lines")[0]


def test_the_batch_must_suit_all_nodes(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    arguments = call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=3, steps=STEPS)
    with pytest.raises(ValueError, match=r"batch_size is 4 and 6 processes .* platform.nodes"):
        run_step("pretrain", **arguments)
    assert server.requests == []
    assert json.loads(os.environ[train_job.VARIABLE])["spec"]["trainer"]["numNodes"] == 2
