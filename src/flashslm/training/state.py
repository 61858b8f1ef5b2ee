"""What a training run carries from step to step: named tensors, sharded or not, and random number generators."""

import base64
from typing import Any

import torch
from torch import Tensor, nn

from flashslm.training.distributed import local_tensor


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and the optimizer's state by name; they share the memory of both."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def begin_optimizer_state_(optimizer: torch.optim.AdamW) -> None:
    """AdamW's state before its first step, which a checkpoint then fills."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


class HostCopy:
    """Copies of tensors on the host, sharded as they are. From a GPU they go to pinned memory that is used again."""

    def __init__(self) -> None:
        self.from_gpu = False
        self._stager: Any = None

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Valid until the next call."""
        self.from_gpu = any(local_tensor(tensor).is_cuda for tensor in tensors.values())
        if not self.from_gpu:
            return {name: tensor.detach().clone() for name, tensor in tensors.items()}
        if self._stager is None:
            from torch.distributed.checkpoint.staging import BlockingAsyncStager

            self._stager = BlockingAsyncStager(cache_staged_state_dict=True)
        copy: dict[str, Tensor] = self._stager.stage(tensors)
        return copy


def random_states() -> dict[str, str]:
    """The generators' states as JSON values, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: base64.b64encode(state.numpy().tobytes()).decode() for device, state in states.items()}


def restore_random_states(states: dict[str, str]) -> None:
    """Those of devices that are here."""
    tensors = {name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for name, text in states.items()}
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
