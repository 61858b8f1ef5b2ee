"""The parts of a layer that treat each token by itself, compiled into fused kernels where a model trains on CUDA.

Norms, gates, rotations, additions and the rounding of weights become a few kernels between the matrix products; the
kernels of `ops`, which carry something from token to token, run between the parts as they are. Layers of one operator
and size share what is compiled.
"""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from flashslm.ops.kernels import backend_of

Args = ParamSpec("Args")
Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)
Part = Callable[Concatenate[Module, Tensor, Args], Result]


def compiled_in_training(part: Part[Module, Args, Result]) -> Part[Module, Args, Result]:
    """Compile a method whose first argument is the stream, for calls with gradients on CUDA; others run as they are."""

    @functools.wraps(part)
    def method(self: Module, x: Tensor, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        if torch.is_grad_enabled() and x.is_cuda and backend_of("elementwise", x) == "inductor":
            from flashslm.ops.fused.inductor import compiled

            return cast(Result, compiled(part)(self, x, *args, **kwargs))
        return part(self, x, *args, **kwargs)

    return cast(Part[Module, Args, Result], method)
