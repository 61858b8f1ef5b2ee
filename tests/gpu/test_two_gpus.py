"""Two training processes on two GPUs (NCCL, FSDP2) against one process on one, as the unit tests do on a CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flashslm.config import KernelsConfig
from flashslm.ops.kernels import configure
from tests.unit.training.ranks import (
    Where,
    check_a_checkpoint_of_two_ranks_continues_on_one,
    check_two_ranks_against_one,
)

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
CHANGES = {"learning_rate": 1e-3, "micro_batch_size": 2, "precision": "float32"}
# The fused kernels take sizes that the tiny model does not have; what is compiled between them takes any.
PLAIN, COMPILED = {"default": "torch"}, {"default": "torch", "elementwise": "inductor"}


@pytest.fixture
def configured(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    configure(KernelsConfig(**request.param))
    yield request.param
    configure(KernelsConfig())


@pytest.mark.parametrize("shard_processes", [0, 1])
@pytest.mark.parametrize("configured", [PLAIN, COMPILED], ids=["plain", "compiled"], indirect=True)
def test_two_gpus_give_the_run_of_one(configured: dict[str, str], shard_processes: int, tmp_path: Path) -> None:
    changes = CHANGES | {"shard_processes": shard_processes}
    check_two_ranks_against_one(tmp_path, changes, Where("cuda", configured))


@pytest.mark.parametrize("configured", [PLAIN], ids=["plain"], indirect=True)
def test_a_checkpoint_of_two_gpus_continues_on_one(configured: dict[str, str], tmp_path: Path) -> None:
    check_a_checkpoint_of_two_ranks_continues_on_one(tmp_path, CHANGES, Where("cuda", configured))
