"""Projections that read the same input as one matrix."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def pack_rows(module: nn.Module, names: tuple[str, ...]) -> Tensor:
    """Stack the weights of linear layers by rows. Their parameters become views: no memory is held twice.

    Weights that already lie one behind the other are taken as they are.
    """
    parameters = [module.get_parameter(f"{name}.weight") for name in names]
    rows, size = sum(p.shape[0] for p in parameters), parameters[0].shape[1]
    step_bytes = size * parameters[0].element_size()
    address, storage = parameters[0].data_ptr(), parameters[0].untyped_storage().data_ptr()
    adjacent = True
    for p in parameters:
        adjacent = adjacent and p.data_ptr() == address and p.untyped_storage().data_ptr() == storage
        address += p.shape[0] * step_bytes
    if adjacent and parameters[0].is_contiguous():
        return parameters[0].detach().as_strided((rows, size), (size, 1))
    packed = torch.cat([p.detach() for p in parameters])
    for parameter, view in zip(parameters, packed.split([p.shape[0] for p in parameters]), strict=True):
        parameter.data = view
    return packed
