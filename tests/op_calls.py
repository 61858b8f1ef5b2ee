"""Operations as functions of single tensors, which is how tests take gradients of their inputs."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from flashslm.ops.causal_conv import ConvInputs, causal_conv_naive

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None,
    reason="set TRITON_INTERPRET=1 where Triton is installed: its interpreter then runs the kernel on the CPU",
)


def of_tensors(inputs_type: type[tuple[Any, ...]], op: Callable[..., Any]) -> Callable[..., Any]:
    """`op`, which takes a named tuple of this type, as a function of the tuple's fields and of its own options."""

    def call(*inputs: Any, **options: Any) -> Any:
        fields = {name: options.pop(name) for name in inputs_type._fields if name in options}  # type: ignore[attr-defined]
        return op(inputs_type(*inputs, **fields), **options)

    return call


def convolution_in_parts(op: Callable[..., Any], sizes: Sequence[int]) -> Callable[..., Any]:
    """A convolution whose output is cut into `sizes`, and into the channels behind them that it hands through."""

    def call(*given: Any, **options: Any) -> Any:
        parts, last = op(ConvInputs(*given, **options), sizes)
        rest = given[0].shape[-1] - sum(sizes)
        assert [part.shape[-1] for part in parts] == [*sizes, *([rest] if rest else [])]
        return torch.cat(parts, dim=-1), last

    return call


def naive_convolution_of(channels: int) -> Callable[..., Any]:
    """The naive convolution of the first channels; the others come behind its output."""

    def call(x: torch.Tensor, *given: Any, **options: Any) -> Any:
        output, last = causal_conv_naive(ConvInputs(x[..., :channels], *given, **options))
        return torch.cat([output, x[..., channels:]], dim=-1), last

    return call
