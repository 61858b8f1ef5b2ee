"""What a new model's parameters begin with."""

import math

import torch
from torch import Tensor

from flashslm.config import OutputInit

INIT_STD = 0.02
DT_RANGE = (1e-3, 1e-1)
A_RANGE = (1.0, 16.0)


def output_scale(output_init: OutputInit, layers: int) -> float:
    """What the drawn matrices that write to the residual stream are multiplied by, in a model of so many layers."""
    return {"normal": 1.0, "scaled": 1 / math.sqrt(2 * layers), "zero": 0.0}[output_init]


def initial_value(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Nemotron-Flash's initialisation (class defaults of the released models), fp32 on the generator's device."""
    device = generator.device
    uniform = torch.empty(shape, device=device)
    match name.split("."):
        case ["meta_tokens"]:
            return torch.randn(shape, generator=generator, device=device)
        case [*_, "dt_bias"]:
            low, high = (math.log(bound) for bound in DT_RANGE)
            dt = uniform.uniform_(low, high, generator=generator).exp()
            return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus
        case [*_, "A_log"]:
            return uniform.uniform_(*A_RANGE, generator=generator).log()
        case [*_, "D"] | [*_, "norm" | "o_norm" | "q_norm" | "k_norm" | "final_norm", "weight"]:
            return torch.ones(shape, device=device)
        case [*_, "bias"]:
            return torch.zeros(shape, device=device)
    return torch.randn(shape, generator=generator, device=device) * INIT_STD
