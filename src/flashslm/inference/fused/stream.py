"""The residual stream of a decode step. No Triton here: it runs on a CPU too."""

from typing import NamedTuple

from torch import Tensor

from flashslm.models.hybrid import Layer
from flashslm.models.states import DecodePosition, State


class Stream(NamedTuple):
    """The residual stream [B, D], fp32, and a rounded copy of it, which the next operator reads."""

    exact: Tensor
    rounded: Tensor

    def add(self, y_BD: Tensor) -> None:
        """Add an operator's output to the exact stream and round the sum for the next reader."""
        self.exact.add_(y_BD)
        self.rounded.copy_(self.exact)


def step_unfused(layer: Layer, stream: Stream, state: State, position: DecodePosition) -> None:
    """Run a layer that has no fused kernels; like those it reads the rounded stream."""
    stream.add(layer.operator.step(layer.norm(stream.rounded), state, position))
