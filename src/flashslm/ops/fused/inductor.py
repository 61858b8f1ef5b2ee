"""torch.compile as this project uses it: static shapes, no graph breaks, many variants, right gradients."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import _dynamo, _inductor

# One for each operator, width, length and direction; a search sees many widths in one process.
VARIANTS = 1024


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for each shape that it meets."""
    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, VARIANTS)
    _dynamo.config.accumulated_recompile_limit = max(_dynamo.config.accumulated_recompile_limit, VARIANTS)
    return torch.compile(function, dynamic=False, fullgraph=True, options=_right_gradients())


def _right_gradients() -> dict[str, Any] | None:
    """Options of a compilation, not settings: in torch 2.13 a thread does not see what another one has set."""
    if not hasattr(_inductor.config.triton, "mix_order_reduction"):
        return None
    # Wrong gradients of norm weights since torch 2.10 (pytorch issue 193061).
    return {"triton.mix_order_reduction": False}
