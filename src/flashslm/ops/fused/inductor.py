"""torch.compile as this project uses it: static shapes, no graph breaks, many variants, right gradients."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import _dynamo, _inductor

# One for each operator, width, length and direction; a search sees many widths in one process.
VARIANTS = 1024


# In torch 2.13 what one thread sets of a configuration another one does not see, as with a variable of a context.
_limits_are_raised = ContextVar("_limits_are_raised", default=False)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for each shape that it meets, to be called in this thread."""
    if not _limits_are_raised.get():
        _limits_are_raised.set(True)
        limits = _dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, VARIANTS)
    return _compiled(function)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, fullgraph=True, options=_right_gradients())


def _right_gradients() -> dict[str, Any] | None:
    """Options of a compilation, not settings: they hold in the backward pass too, whichever thread compiles it."""
    if not hasattr(_inductor.config.triton, "mix_order_reduction"):
        return None
    # Wrong gradients of norm weights since torch 2.10 (pytorch issue 193061).
    return {"triton.mix_order_reduction": False}
