"""The step continue_pretraining in one process, in two of one node, and on two nodes; and what diverges in each."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.steps.run import run_step
from flashslm.training.workers import WorkerFailed
from tests.services.pods import run_pods, two_nodes
from tests.services.pretraining import continue_call, metric_steps, write_champion
from tests.unit.training import tiny

pytestmark = pytest.mark.services
NAME = "continue_pretraining"
RUINED = {"learning_rate": 1e30, "warmup_steps": 0}


@pytest.fixture
def inputs(
    platform_env: Settings, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    return write_champion(store, tmp_path)


def weights(store: ObjectStore, output: Path) -> dict[str, torch.Tensor]:
    tree = store.get_tree(Manifest.read(output), output.with_suffix(".tree"))
    return load_file(tree / "model.safetensors")


def test_it_is_the_same_run_in_one_process_in_two_and_on_two_nodes(
    platform_env: Settings, store: ObjectStore, inputs: dict[str, str], tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("alone", "together", "nodes")}
    results = {"alone": run_step(NAME, **continue_call(inputs, files["alone"], 1))}
    results["together"] = run_step(NAME, **continue_call(inputs, files["together"], 2))
    with two_nodes("retraining", NAME, tmp_path) as server:
        server.on_create = partial(run_pods, tmp_path / "pod-cache")
        results["nodes"] = run_step(NAME, **continue_call(inputs, files["nodes"], 0))
    run_key = Manifest.read(files["nodes"]).metadata["run_key"]
    assert server.created == server.deleted == [f"flashslm-{run_key}"]
    assert [r["decision"] for r in results.values()] == ["trained"] * 3
    assert ["on 2 processes" in result["summary"] for result in results.values()] == [False, True, True]
    expected = weights(store, files["alone"])
    assert expected.keys() == tiny.model(width=32).state_dict().keys()
    change = (expected["embedding.weight"] - tiny.model(width=32).state_dict()["embedding.weight"]).abs().max()
    assert 1e-4 < change < 6 * 1e-3, "six steps of AdamW from the exported weights, each no larger than its rate"
    for name in ("together", "nodes"):
        assert results[name]["validation/loss_nats"] == pytest.approx(
            results["alone"]["validation/loss_nats"], abs=1e-4
        )
        found = weights(store, files[name])
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, atol=2e-3, rtol=0, msg=f"{name}: {key}")
    assert metric_steps(platform_env, NAME) == list(range(1, 7))
    run = TrackingClient(platform_env).find_runs(f"attributes.run_name = '{NAME}'")[0]
    tags = run.data.tags
    assert tags["train_job.name"] == server.created[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_challenger_that_diverges_is_a_decision_with_its_reason(
    inputs: dict[str, str], tmp_path: Path, processes: int
) -> None:
    output = tmp_path / "x.json"
    result = run_step(NAME, **continue_call(inputs, output, processes, **RUINED))
    assert result["decision"] == "diverged"
    reason = Manifest.read(output).metadata["reason"]
    assert reason.startswith("the challenger diverged: the validation loss is not finite at step 4")
    assert result["summary"] == reason and "Lower learning_rate (1e+30)" in reason


def test_on_nodes_a_divergence_is_told_from_a_failure(inputs: dict[str, str], tmp_path: Path) -> None:
    def fail(server, job, reported: str) -> None:
        name = job["metadata"]["name"]
        pod = server.add_pod(name)
        server.log(pod, reported)
        server.end_pod(pod, 1, "Error")
        server.end_job(name, "Failed", "FailedJobs", "jobset failed")

    first, second = (continue_call(inputs, tmp_path / "x.json", 0, steps=steps) for steps in (6, 7))
    with two_nodes("retraining", NAME, tmp_path) as server:
        server.on_create = partial(fail, reported="@failure NonFiniteLoss: loss is not finite at step 3")
        assert run_step(NAME, **first)["summary"] == "the challenger diverged: loss is not finite at step 3"
        server.on_create = partial(fail, reported="@failure RuntimeError: NCCL lost a peer")
        with pytest.raises(WorkerFailed, match="NCCL lost a peer"):
            run_step(NAME, **second)
