"""Several training processes beside one, on a CPU (gloo) and on as many GPUs (NCCL)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from flashslm.infra.stack import daemons
from flashslm.models.hybrid import HybridLM
from flashslm.training.spec import TrainOutcome
from flashslm.training.trainer import train
from tests.unit.training import tiny

ROOT = Path(__file__).parents[3]


class Where(NamedTuple):
    """`kernels` is the setting of the workers; the test's own process has the same."""

    device: str = "cpu"
    kernels: dict[str, str] = {}  # noqa: RUF012 - nothing changes it

    @property
    def rounded(self) -> int:
        """A GPU adds up in another order each time, which Adam's division by small moments enlarges."""
        return 1 if self.device == "cpu" else 10


CPU = Where()


def run_workers(arguments: list[dict], size: int, code: int = 0) -> None:
    """What `torchrun --nproc-per-node size` sets up; `code` is what each worker is to exit with."""
    (port,) = daemons.free_ports(1)
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.unit.training.worker", json.dumps(arguments)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [code] * size


def assert_same_run(output: Path, single: TrainOutcome, model: HybridLM, rounded: int = 1) -> dict[str, Any]:
    """What workers left there is the history and the weights of that run; returns their outcome.

    Tolerances are those of fp32, or `rounded` times as large.
    """
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    for alone, together in zip(single.history, result["history"], strict=True):
        assert together.keys() == alone.keys()
        for key in alone.keys() & {"train/loss_nats", "weight_norm", "validation/loss_nats"}:
            assert together[key] == pytest.approx(alone[key], abs=1e-5 * rounded), (output.name, alone["step"], key)
        assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=2e-4 * rounded)
    weights = load_file(output / "model.safetensors")
    for parameter, tensor in model.state_dict().items():
        atol = 1e-3 if rounded == 1 else 1e-2
        torch.testing.assert_close(weights[parameter], tensor.cpu(), atol=atol, rtol=0, msg=parameter)
    return result


def check_two_ranks_against_one(directory: Path, changes: dict[str, Any], where: Where = CPU) -> None:
    """Weight normalisation included; from the beginning, and resumed from a checkpoint of one process at step 3."""
    dataset = tiny.write_dataset(directory / "dataset")
    fetch, model = tiny.fetching(dataset), tiny.model().to(where.device)
    spec = tiny.spec(tiny.config(**changes, keep_checkpoints=1), weight_norm=True)
    single = train(spec, model, fetch)

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, tiny.model().to(where.device), fetch, tiny.DirectoryStore(directory / "stopped"), stop)
    runs = {"fresh": 0, "stopped": 3}
    shared = {"dataset": str(dataset), "changes": changes} | where._asdict()
    arguments = [shared | {"store": str(directory / name), "output": f"{directory / name}-out"} for name in runs]
    run_workers(arguments, size=2)
    for name, start in runs.items():
        result = assert_same_run(Path(f"{directory / name}-out"), single, model, where.rounded)
        assert (result["world_size"], result["resumed_from_step"]) == (2, start)


def check_a_checkpoint_of_two_ranks_continues_on_one(
    directory: Path, changes: dict[str, Any], where: Where = CPU
) -> None:
    """SIGTERM reaches rank 0 alone in step 4: both save their parts and end."""
    dataset = tiny.write_dataset(directory / "dataset")
    fetch, store = tiny.fetching(dataset), directory / "store"
    spec = tiny.spec(tiny.config(**changes), weight_norm=True)
    expected, model = tiny.model().to(where.device), tiny.model().to(where.device)
    single = train(spec, expected, fetch)
    call = {"dataset": str(dataset), "store": str(store), "output": "", "changes": changes, "signals": {4: "SIGTERM"}}
    run_workers([call | where._asdict()], size=2, code=143)
    resumed = train(spec, model, fetch, tiny.DirectoryStore(store))
    assert resumed.resumed_from_step == 4 and len(resumed.history) == len(single.history)
    for alone, row in zip(single.history, resumed.history, strict=True):
        assert row["train/loss_nats"] == pytest.approx(alone["train/loss_nats"], abs=1e-5 * where.rounded)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-3 * where.rounded, rtol=0, msg=name)
