"""One node, several processes under torchrun: process group, FSDP2 sharding, and the few collectives the loop needs.

Without torchrun's environment every function here is the identity, so the loop has one form. FSDP2 and DTensor are
imported where they are used: they add a second to the start of a process that does not need them.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flashslm.training.replicas import MeanGradients

Value = TypeVar("Value")
_TIMEOUT_S = 1800.0  # of a collective


@dataclass(frozen=True)
class World:
    """This process' place; `is_main` is the rank that logs and saves."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def current_world() -> World:
    """The initialised process group, or a world of one."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def world_from_environment(patience_s: float = 0.0) -> Iterator[World]:
    """Join the process group that torchrun's RANK, WORLD_SIZE and LOCAL_RANK describe, and leave it afterwards.

    The other ranks wait for rank 0 while that waits for an object store, up to `patience_s` longer than for anything
    else. Each rank takes the GPU of its local rank. Host-side collectives go over gloo, those of GPU tensors over NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=_TIMEOUT_S + patience_s))
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()


def shard_model(model: nn.Module, group: int = 0, gather_dtype: torch.dtype = torch.float32) -> None:
    """Shard parameters, gradients and so the optimizer state, a layer at a time (FSDP2), in place.

    Groups of `group` ranks (0: all) share a copy each; copies exchange gradients alone. In groups of one the parameters
    stay plain tensors. Parameters that are gathered as fp32 give a sharded run, also under autocast, what a single
    process computes. Gradients cross the ranks in fp32.
    """
    world = current_world()
    if world.size == 1:
        return
    if group == 1:
        model.mean_gradients = MeanGradients(model)  # type: ignore[assignment]
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    device = next(model.parameters()).device
    sizes = (world.size // group, group) if group else (world.size,)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])
    narrow = gather_dtype if gather_dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(narrow, torch.float32, cast_forward_inputs=False)  # angles stay fp32
    for layer in model.get_submodule("layers").children():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")


def add_up_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass of a sharded model ends with gradients that are the sum over ranks.

    If it does not, weights that are gathered for it stay until a pass that does: the next one needs no gathering.
    """
    if current_world().size == 1:
        return
    if isinstance(replicas := getattr(model, "mean_gradients", None), MeanGradients):
        replicas.begin(on=now)
        return
    model.set_requires_gradient_sync(now)  # type: ignore[operator]
    model.set_reshard_after_backward(now)  # type: ignore[operator]
    for layer in model.get_submodule("layers").children():  # the root's own weights stay between the passes anyway
        layer.set_reshard_after_forward(now)  # type: ignore[operator]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (a collective: every rank must call); any other tensor as it is."""
    if current_world().size == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    if current_world().size == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks hold the tensor together."""
    if current_world().size == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def first_row(tensor: Tensor) -> int:
    """Which row of the whole this rank's part of a tensor sharded by rows begins with; 0 of any other tensor."""
    if current_world().size == 1:
        return 0
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        return 0
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offsets[0]


def own_share(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this rank stores of a state: of each tensor one copy is stored, and of a sharded copy each rank its part.

    Every copy stores about as many bytes.
    """
    stored_bytes, own = dict[int, list[int]](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        mine, copies = _copy(tensor)
        by_copy = stored_bytes.setdefault(copies, [0] * copies)
        owner = by_copy.index(min(by_copy))
        by_copy[owner] += tensor.nbytes
        if owner == mine:
            own[name] = tensor
    return own


def _copy(tensor: Tensor) -> tuple[int, int]:
    """Which copy of a tensor this rank holds, or a part of, and how many copies there are."""
    world = current_world()
    if not is_sharded(tensor):
        return world.rank, world.size
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return (mesh.get_local_rank(0), mesh.size(0)) if mesh.ndim > 1 else (0, 1)


def gather_to_main(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors on rank 0's host, one at a time, and nothing on the other ranks (a collective)."""
    is_main, gathered = current_world().is_main, {}
    for name, tensor in tensors:
        whole = full_tensor(tensor.detach())
        if is_main:
            gathered[name] = whole.cpu()
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a plain tensor over all ranks."""
    if current_world().size > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_over_shards(tensor: Tensor, sharded: Tensor) -> Tensor:
    """Sum of a plain tensor over the ranks that hold `sharded` together, one copy of it."""
    if is_sharded(sharded):
        mesh = sharded.device_mesh  # type: ignore[attr-defined]
        dist.all_reduce(tensor, group=mesh.get_group(mesh.ndim - 1))
    return tensor


class HostGroup:
    """A gloo group of its own, for a thread beside the loop; `handle` is None in a world of one.

    The loop's collectives and the thread's would otherwise meet in one group in any order. Ranks wait for each other
    as long as one of them waits for the object store; torchrun ends them when a rank dies. Made by all ranks together.
    """

    def __init__(self) -> None:
        several = current_world().size > 1
        self.handle = dist.new_group(backend="gloo", timeout=timedelta(days=1)) if several else None

    def gather(self, value: Value) -> list[Value]:
        """Every rank's Python value, on every rank."""
        if self.handle is None:
            return [value]
        values: list[Any] = [None] * current_world().size
        dist.all_gather_object(values, value, group=self.handle)
        return values

    def broadcast(self, value: Value) -> Value:
        """Rank 0's Python value on every rank."""
        return self.gather(value)[0]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on some rank; never waits for a GPU."""
    return bool(sum_over_ranks(torch.tensor(int(flag))).item())
