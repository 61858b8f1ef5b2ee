"""Capture and restore everything a training run carries from step to step, sharded or not."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flashslm.training.checkpoint import TrainingState
from flashslm.training.distributed import broadcast_value, copy_full_, gather_to_main


def capture(model: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> TrainingState:
    """Weights, optimizer state and random number generators, with the caller's JSON `values`.

    A collective; the state is whole on rank 0 alone.
    """
    tensors = gather_to_main(_named_tensors(model, optimizer))
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    return TrainingState(tensors, values)


def _named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield f"model/{name}", parameter
        for key, value in optimizer.state[parameter].items():
            yield f"optimizer/{name}/{key}", value


@torch.no_grad()
def restore_(model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState | None) -> dict[str, Any]:
    """Put a captured state back bit by bit and return its `values` (a collective: rank 0 has the state)."""
    tensors = state.tensors if state else {}
    small = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 0 or name.startswith("rng/")}
    values, names, small = broadcast_value((state.values if state else {}, list(tensors), small))
    for name, parameter in model.named_parameters():
        copy_full_(parameter, tensors.get(f"model/{name}"))
        prefix = f"optimizer/{name}/"
        for key in (n.removeprefix(prefix) for n in names if n.startswith(prefix)):
            optimizer.state[parameter][key] = _optimizer_tensor(parameter, prefix + key, tensors, small)
    torch.set_rng_state(small["rng/cpu"])
    if "rng/cuda" in small and torch.cuda.is_available():
        torch.cuda.set_rng_state(small["rng/cuda"])
    return values


def _optimizer_tensor(parameter: Tensor, name: str, tensors: dict[str, Tensor], small: dict[str, Tensor]) -> Tensor:
    """A scalar such as the step count is whole on every rank; a moment is sharded like its parameter."""
    if name in small:
        return small[name].to(parameter.device)
    moment = torch.zeros_like(parameter)
    copy_full_(moment, tensors.get(name))
    return moment
