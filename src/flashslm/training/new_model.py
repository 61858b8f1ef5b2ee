"""The model that a training from drawn weights begins with."""

import torch

from flashslm.models.hybrid import HybridLM
from flashslm.training.spec import FromArchitecture


def new_model(
    start: FromArchitecture, device: torch.device | str, seed: int, *, init_on_device: bool = False
) -> HybridLM:
    """In fp32 on `device`; the seed is the run's, `init_on_device` as in `HybridLM.build`."""
    return HybridLM.build(
        start.architecture, device, seed=seed, init_on_device=init_on_device, output_init=start.output_init
    )
