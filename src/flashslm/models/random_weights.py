"""A model with random weights made on its device, for measuring: nothing is drawn on the host and copied."""

import torch

from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.initial_values import INIT_STD


class _Unfilled(HybridLM):
    """Its weights are what lay in memory."""

    def init_weights(self, seed: int, drawn_on: torch.device | str = "cpu") -> None:
        pass


@torch.no_grad()
def random_model(
    architecture: Architecture, device: torch.device | str, dtype: torch.dtype, std: float = INIT_STD
) -> HybridLM:
    """Normal weights of this spread, norms of one; no gradients. A_log, dt_bias and D are fp32 as `HybridLM.build`'s.

    The values come from the device's default generator. Use `HybridLM.build` where they must be the same everywhere.
    """
    model = _Unfilled.build(architecture, device, dtype).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=std)
    return model
