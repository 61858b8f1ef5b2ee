"""Recurrences run in at least fp32, whatever autocast says: their errors add up along the sequence."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Args = ParamSpec("Args")
Returned = TypeVar("Returned")


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 input."""
    return torch.promote_types(x.dtype, torch.float32)


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in the dtype of such computations."""
    return x.to(compute_dtype(x))


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in autocast's dtype on CUDA: a residual stream in bf16 moves half the bytes of one in fp32.

    A CPU's stream stays fp32: it has no kernels to gain from.
    """
    return x.to(torch.get_autocast_dtype("cuda")) if x.is_cuda and torch.is_autocast_enabled("cuda") else x


def without_autocast(function: Callable[Args, Returned]) -> Callable[Args, Returned]:
    """Switch autocast off inside `function`, whose first argument is a tensor, or a tuple that begins with one."""

    @functools.wraps(function)
    def wrapper(*args: Args.args, **kwargs: Args.kwargs) -> Returned:
        first: Any = args[0]
        device_type = (first[0] if isinstance(first, tuple) else first).device.type
        if not torch.is_autocast_enabled(device_type):
            return function(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return function(*args, **kwargs)

    return wrapper
