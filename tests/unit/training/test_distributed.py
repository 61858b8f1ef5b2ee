"""Two processes on the CPU (gloo, FSDP2) against one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from flashslm.training import step
from flashslm.training.distributed import World, any_rank, current_world, own_share
from flashslm.training.trainer import train
from tests.unit.training import tiny
from tests.unit.training.ranks import (
    assert_same_run,
    check_a_checkpoint_of_two_ranks_continues_on_one,
    check_two_ranks_against_one,
    run_workers,
)

CHANGES = {"learning_rate": 1e-3, "micro_batch_size": 2}


@pytest.mark.parametrize("shard_processes", [0, 1])
def test_two_ranks_give_the_single_process_run(shard_processes: int, tmp_path: Path) -> None:
    check_two_ranks_against_one(tmp_path, CHANGES | {"shard_processes": shard_processes})


SETTINGS: dict[int, dict[str, dict[str, Any]]] = {  # by the number of processes
    2: {
        "axes": {"weight_norm_axes": tiny.AXES},
        "replicated": {"shard_processes": 1, "gradient_sync": "each"},
        "copies": {"shard_processes": 1, "micro_batch_size": 2, "weight_norm_axes": tiny.AXES},
        "recomputed": {"activation_checkpointing": "on"},
        "micro-batches": {"micro_batch_per_process": True, "micro_batch_size": 2},
        "wide": {"precision": "bfloat16"},
        "narrow": {"precision": "bfloat16", "gather_dtype": "bfloat16"},
        "last": {"micro_batch_size": 2},  # four micro-batches
        "each": {"micro_batch_size": 2, "gradient_sync": "each"},
    },
    4: {"two-copies": {"shard_processes": 2, "weight_norm_axes": tiny.AXES, "activation_checkpointing": "on"}},
}

FUSED = {"last", "copies"}  # whose weight normalisation has a stand-in for the kernel


@pytest.mark.parametrize("size", SETTINGS)
def test_every_setting_gives_the_single_process_run(size: int, tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset")
    arguments, expected = [], {}
    for name, setting in SETTINGS[size].items():
        changes = {"learning_rate": 1e-3, "micro_batch_size": 4, "batch_size": 8, "steps": 4} | setting
        model = tiny.model()
        expected[name] = train(tiny.spec(tiny.config(**changes), weight_norm=True), model, lambda _: dataset), model
        paths = {"store": str(tmp_path / name), "output": f"{tmp_path / name}-out"}
        arguments.append({"dataset": str(dataset), "changes": changes, "fused": name in FUSED} | paths)
    run_workers(arguments, size)
    results = {}
    for name, (single, model) in expected.items():
        setting = SETTINGS[size][name]
        rounded = 1000 if "precision" in setting else 1
        results[name] = assert_same_run(Path(f"{tmp_path / name}-out"), single, model, rounded)
        group = setting.get("shard_processes")
        assert results[name]["mesh"] == ({1: []}.get(group, [size // group, group]) if group else [size])
    if size == 2:  # weights are rounded before they are sent
        assert results["narrow"]["history"] != results["wide"]["history"]
        # Where gradients are added up once a step, so are weights gathered for the forward passes.
        assert results["last"]["whole"] == 4 * [False, True, True, True]
        assert not any(results["each"]["whole"])
        # Of sharded matrices a rank has whole rows alone, and of copies the columns too.
        assert (results["last"]["fused_axes"], results["copies"]["fused_axes"]) == ([1], [0, 1])


def test_gradients_are_added_up_after_the_last_micro_batch_or_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = tiny.fetching(tiny.write_dataset(tmp_path / "dataset"))
    for when, expected in (("last", [False, False, True]), ("each", [True, True, True])):
        seen: list[bool] = []
        monkeypatch.setattr(step, "add_up_gradients", lambda model, now, seen=seen: seen.append(now))
        train(
            tiny.spec(tiny.config(steps=1, batch_size=6, micro_batch_size=2, gradient_sync=when)), tiny.model(), fetch
        )
        assert seen == expected


def test_settings_that_the_processes_cannot_keep_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shard_processes is 3 and 4 processes .*: make it a divisor of 4"):
        tiny.spec(tiny.config(shard_processes=3)).check_ranks(4)
    counted = {"micro_batch_per_process": True, "micro_batch_size": 2, "batch_size": 4}
    with pytest.raises(ValueError, match=r"batch_size is 4 and each of 4 processes passes 2 .* multiple of 8"):
        tiny.spec(tiny.config(**counted)).check_ranks(4)
    stages = [{"from_step": 2, "batch_size": 8, "micro_batch_size": 1}, {"from_step": 4, "micro_batch_size": 0}]
    shapes = tiny.config(**counted, stages=stages).for_processes(2).batch_shapes
    assert [shape.micro_batch_size for shape in shapes] == [4, 2, 8]
    with pytest.raises(ValidationError, match="gather_dtype is 'bfloat16' and precision 'float32'"):
        tiny.config(gather_dtype="bfloat16", precision="float32")


@pytest.mark.parametrize("size, shard_processes", [(2, 1), (4, 2)])
def test_a_checkpoint_of_two_copies_continues_on_one_process(size: int, shard_processes: int, tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset")
    changes = CHANGES | {"shard_processes": shard_processes, "micro_batch_size": size}
    expected = train(tiny.spec(tiny.config(**changes), weight_norm=True), tiny.model(), tiny.fetching(dataset))
    call = {"dataset": str(dataset), "store": str(tmp_path / "store"), "output": "", "changes": changes}
    run_workers([call | {"signals": {4: "SIGTERM"}}], size=size, code=143)
    store = tiny.DirectoryStore(tmp_path / "store")
    resumed = train(tiny.spec(tiny.config(**changes), weight_norm=True), tiny.model(), tiny.fetching(dataset), store)
    assert resumed.resumed_from_step == 4
    for alone, row in zip(expected.history, resumed.history, strict=True):
        assert row["train/loss_nats"] == pytest.approx(alone["train/loss_nats"], abs=1e-5)


@pytest.fixture
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of four, whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=4)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("rank", range(4), indirect=True)
def test_of_sharded_copies_each_stores_its_share(rank: int) -> None:
    """Ranks 0 and 1 hold one copy together, 2 and 3 the other; what is not sharded, each rank holds."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    sharded = {
        name: DTensor.from_local(torch.zeros(size), mesh, [Replicate(), Shard(0)], run_check=False)
        for name, size in (("a", 3), ("b", 2), ("c", 1))
    }
    plain = {f"step of {name}": torch.zeros(()) for name in "abcd"}
    shares = {0: {"a", "step of a"}, 1: {"a", "step of b"}, 2: {"b", "c", "step of c"}, 3: {"b", "c", "step of d"}}
    assert own_share(sharded | plain).keys() == shares[rank]
    assert own_share({"all": DTensor.from_local(torch.zeros(1), mesh["shard"], [Shard(0)], run_check=False)})


def test_a_checkpoint_of_two_ranks_continues_on_one(tmp_path: Path) -> None:
    check_a_checkpoint_of_two_ranks_continues_on_one(tmp_path, CHANGES)


def test_without_torchrun_the_world_is_one() -> None:
    assert current_world() == World(rank=0, size=1) and World().is_main
    assert any_rank(True) and not any_rank(False)
