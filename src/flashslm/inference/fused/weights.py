"""Projections that read the same input as one matrix."""

import torch
from torch import Tensor, nn

from flashslm.models.linear import adjacent_rows


@torch.no_grad()
def pack_rows(module: nn.Module, names: tuple[str, ...]) -> Tensor:
    """Stack the weights of linear layers by rows. Their parameters become views: no memory is held twice.

    Weights that already lie one behind the other are taken as they are.
    """
    parameters = [module.get_parameter(f"{name}.weight") for name in names]
    if (packed := adjacent_rows(parameters)) is not None:
        return packed
    packed = torch.cat([p.detach() for p in parameters])
    for parameter, view in zip(parameters, packed.split([p.shape[0] for p in parameters]), strict=True):
        parameter.data = view
    return packed
