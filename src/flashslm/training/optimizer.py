"""AdamW with weight decay on matrices alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flashslm.config import TrainingConfig

NO_DECAY = ("meta_tokens",)  # two-dimensional, yet a learned prefix rather than a weight matrix
FUSED_DEVICES = ("cuda", "cpu")


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW in two groups: norms, biases, other one-dimensional parameters and meta tokens are not decayed.

    One fused kernel per step where the device has it.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim < 2 or name in NO_DECAY else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    fused = next(model.parameters()).device.type in FUSED_DEVICES
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def keep_rate_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make the learning rate an fp32 tensor, which a recorded step reads."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


@contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """torch records a step only where this is set, and warns of steps that run otherwise while it is."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False
