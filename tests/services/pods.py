"""A cluster for this process whose pods are processes here, started as Kubeflow Trainer starts them."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import PlatformConfig
from flashslm.infra.kubernetes import train_job
from flashslm.infra.kubernetes.client import Kubernetes
from flashslm.infra.stack import daemons
from flashslm.launch.kfp.cluster_pass import for_cluster
from flashslm.launch.labels import step_of
from flashslm.ops import kernel_cache
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes, client_of, serving

Document = dict[str, Any]


@contextmanager
def two_nodes(pipeline: str, step: str, directory: Path) -> Iterator[FakeKubernetes]:
    """Its API server, its service account, and the TrainJob that the cluster pass puts into the step's pod."""
    spec = for_cluster(pipeline, PlatformConfig.model_validate({"nodes": 2, "gpu_steps": {"gpus": 0}})).spec
    state = FakeKubernetes()
    with pytest.MonkeyPatch.context() as patch, serving(state, directory / "account") as address:
        for executor in spec["deploymentSpec"]["executors"].values():
            if step_of(executor["container"]) == step:
                variables = {entry["name"]: entry["value"] for entry in executor["container"]["env"]}
                patch.setenv(train_job.VARIABLE, variables[train_job.VARIABLE])
        patch.setattr(train_job, "TrainJob", partial(train_job.TrainJob, poll_s=0.1))
        patch.setattr(Kubernetes, "in_cluster", lambda: client_of(address, directory / "account"))
        yield state


def run_pods(cache: Path, server: FakeKubernetes, job: Document) -> None:
    """What Trainer and JobSet do: one process per node with PET_* set, its output in the pod's log.

    Each has a directory of its own for compiled kernels, kernels-0 and so on below `cache`.
    """
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    (port,) = daemons.free_ports(1)
    cluster = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "FLASHSLM_CACHE": str(cache),
    }
    command = [sys.executable if part == "python" else part for part in trainer["command"]]
    pods = [server.add_pod(name, index) for index in range(trainer["numNodes"])]

    def follow(index: int) -> None:
        own = {"PET_NODE_RANK": str(index), kernel_cache.VARIABLE: str(cache / f"kernels-{index}")}
        variables = os.environ | cluster | own
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
