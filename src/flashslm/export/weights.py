"""The weights of an export: written in shards, read back one by one, and the row norms of the output table."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flashslm.export.files import INDEX_FILE, WEIGHT_FILE, StoredTensor, stored_tensors, write_json
from flashslm.export.names import EMBEDDING, exported_names, exported_shapes
from flashslm.models.accounting import parameters
from flashslm.models.hybrid import HybridLM

UNIT_NORM_TOLERANCE = 5e-3  # rounding a unit row to bfloat16 moves its norm by at most 2e-3


def exported_tensors(model: HybridLM, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Exported name and tensor (CPU, contiguous, `dtype`), one at a time, in the order of `exported_shapes`."""
    names, shapes = exported_names(model.architecture), exported_shapes(model.architecture)
    state = model.state_dict()
    if set(state) != set(names):
        raise RuntimeError(f"HybridLM's parameters and the export table differ: {sorted(set(state) ^ set(names))}")
    for ours, theirs in names.items():
        yield theirs, state[ours].detach().to("cpu", dtype).reshape(shapes[theirs]).contiguous()


def write_weights(model: HybridLM, directory: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    """model.safetensors, or shards of at most `max_shard_bytes` (a larger tensor has its own) with their index."""
    shards = _plan_shards(exported_shapes(model.architecture), dtype.itemsize, max_shard_bytes)
    count = len(shards)
    files = [f"model-{i:05d}-of-{count:05d}.safetensors" if count > 1 else WEIGHT_FILE for i in range(1, count + 1)]
    tensors = exported_tensors(model, dtype)
    for file, names in zip(files, shards, strict=True):
        save_file(dict(next(tensors) for _ in names), directory / file, metadata={"format": "pt"})
    if count > 1:
        total_bytes = parameters(model.architecture)["total"] * dtype.itemsize
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def read_tensor(stored: StoredTensor, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, on the CPU."""
    with safe_open(stored.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def output_row_norms(directory: Path) -> tuple[float, float]:
    """Smallest and largest L2 norm of a row of an export's output table, which is its embedding."""
    return row_norm_range(read_tensor(stored_tensors(directory)[EMBEDDING], EMBEDDING))


def row_norm_range(weight_VD: torch.Tensor) -> tuple[float, float]:
    norms_V = torch.linalg.vector_norm(weight_VD, dim=1, dtype=torch.float32)
    return norms_V.min().item(), norms_V.max().item()


def has_unit_rows(row_norm_min: float, row_norm_max: float) -> bool:
    """Whether dividing logits by the rows' norms, as the published models' own code does, changes only rounding."""
    return max(abs(row_norm_min - 1), abs(row_norm_max - 1)) <= UNIT_NORM_TOLERANCE


def _plan_shards(shapes: dict[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled_bytes = 0
    for name, shape in shapes.items():
        size_bytes = itemsize * torch.Size(shape).numel()
        if shards[-1] and filled_bytes + size_bytes > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(name)
        filled_bytes += size_bytes
    return shards
