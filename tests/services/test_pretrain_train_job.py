"""The pretrain step on two nodes."""

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashslm.infra.kubernetes import train_job
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.ops import kernel_cache
from flashslm.steps import pretrain
from flashslm.steps.kernel_object import fetch_kernels, store_kernels
from flashslm.steps.run import run_step
from flashslm.training.workers import WorkerFailed
from tests.services.pods import run_pods, two_nodes
from tests.services.pretraining import call, metric_steps, write_inputs
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes

pytestmark = pytest.mark.services
Document = dict[str, Any]
STEPS = 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with two_nodes("design_and_train", "pretrain", tmp_path) as state:
        yield state


def forget_the_machine() -> None:
    kernel_cache.cache_facts.cache_clear()
    kernel_cache.cache_key.cache_clear()


@pytest.fixture
def on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are kept as on a GPU: `nvidia-smi` names one."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{tmp_path.name}, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    forget_the_machine()
    yield
    forget_the_machine()


def test_nodes_share_compiled_kernels(
    on_a_gpu: None,
    server: FakeKubernetes,
    platform_env: Settings,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each node fetches them before it trains; the first one stores what it has compiled."""

    def write(machine: str, kernel: str) -> None:
        monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / machine))
        kernel_cache.cache_directory().mkdir(parents=True)
        (kernel_cache.cache_directory() / kernel).write_text("{}")

    write("pods/kernels-0", "new.json")
    write("earlier", "known.json")
    store_kernels(store)
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / "step"))
    server.on_create = partial(run_pods, tmp_path / "pods")
    arguments = call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=0, steps=2)
    arguments["parameters"]["code_digest"] = "kernels"  # a run of its own
    run_step("pretrain", **arguments)
    for index in range(2):
        assert (tmp_path / "pods" / f"kernels-{index}" / kernel_cache.cache_key() / "known.json").exists()
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / "later"))
    assert fetch_kernels(store) == {"known.json", "new.json"}


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
    assert "@metrics" not in log, "metrics are not printed as lines"
    run = TrackingClient(platform_env).find_runs("attributes.run_name = 'pretrain · wnorm on · seed 0'")[0]
    tags = run.data.tags
    assert tags["train_job.name"] == server.created[0] and tags["train_job.status"]
    assert tags["kernel.attention/cpu/float32"] == "sdpa"
    assert metric_steps(platform_env, "pretrain · wnorm on · seed 0") == list(range(1, STEPS + 1))

    monkeypatch.delenv(train_job.VARIABLE)
    alone = run_step("pretrain", **arguments | {"parameters": arguments["parameters"] | {"code_digest": "alone"}})
    assert alone["resumed_from_step"] == 0, "another run's checkpoints"
    assert result["validation/loss_nats"] == pytest.approx(alone["validation/loss_nats"], abs=1e-4)


def test_a_job_that_another_run_has_removed_after_its_end_is_not_trained_again(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs wait for one job; the first to find it complete removes it."""

    def removed(name: str, kind: str) -> None:
        assert kind == "Complete"
        with server.changed:
            del server.jobs[name]

    monkeypatch.setattr(server, "end_job", removed)
    server.on_create = partial(run_pods, tmp_path / "pod-cache")
    arguments = call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=0, steps=2)
    arguments["parameters"]["code_digest"] = "removed"  # a run of its own
    result = run_step("pretrain", **arguments)
    assert "after 2 steps on 2 processes" in result["summary"] and len(server.created) == 1


def test_the_failure_of_a_worker_and_of_its_pod_are_told(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        pod = server.add_pod(job["metadata"]["name"])
        server.log(pod, "a log line", "@failure ValueError: no such token at step 3", "@failure later: one")
        server.end_pod(pod, 1, "Error")
        server.end_job(job["metadata"]["name"], "Failed", "FailedJobs", "jobset failed")

    server.on_create = script
    with pytest.raises(WorkerFailed) as caught:
        run_step("pretrain", **call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=0, steps=STEPS))
    text = str(caught.value)
    assert text.startswith("ValueError: no such token at step 3\nTrainJob flashslm-")
    assert "Error, exit code 1" in text and "later" not in text.split("its last lines")[0]


def test_a_run_that_diverged_on_nodes_is_its_result_and_not_restarted(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    server.on_create = lambda server, job: server.log(
        server.add_pod(job["metadata"]["name"]), "@failure NonFiniteLoss: the loss is nan"
    )
    arguments = call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=0, steps=STEPS)
    arguments["parameters"]["code_digest"] = "diverged"  # a run of its own
    assert run_step("pretrain", **arguments)["summary"] == "this variant diverged: the loss is nan"
    assert server.deleted == server.created and len(server.created) == 1


def test_workers_of_a_step_that_is_gone_stop_training(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "send_heartbeats", lambda *_: nullcontext())
    server.on_create = partial(run_pods, tmp_path / "pod-cache")
    arguments = call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=0, steps=STEPS)
    arguments["parameters"]["code_digest"] = "abandoned"  # a run of its own, which no other test has waited for
    with pytest.raises(WorkerFailed, match="Abandoned: the step that began this work has not been heard of for 1860 s"):
        run_step("pretrain", **arguments)


def test_the_batch_must_suit_all_nodes(
    server: FakeKubernetes, platform_env: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    arguments = call(write_inputs(store, tmp_path), tmp_path / "x.json", processes=3, steps=STEPS)
    with pytest.raises(ValueError, match=r"batch_size is 4 and 6 processes .* platform.nodes"):
        run_step("pretrain", **arguments)
    assert server.requests == []
    assert json.loads(os.environ[train_job.VARIABLE])["spec"]["trainer"]["numNodes"] == 2
