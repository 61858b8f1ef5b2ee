"""What a layer keeps of a sequence in vLLM's cache: shapes and bytes of a state. No torch and no vLLM here.

vLLM gives each kind of layer blocks of its own, all of one size in bytes: that of the largest state.
"""

from math import prod
from typing import NamedTuple

from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import CONV_SIZE, OPERATOR_SPECS, Shape


class MixerState(NamedTuple):
    """Shapes for one sequence: the convolution's last inputs [taps - 1, channels], and the recurrent state."""

    conv: Shape
    recurrent: Shape

    def num_bytes(self, conv_bytes_per_value: int, recurrent_bytes_per_value: int) -> int:
        return prod(self.conv) * conv_bytes_per_value + prod(self.recurrent) * recurrent_bytes_per_value


NO_STATE = MixerState((0,), (0,))


def mixer_state(operator: str, architecture: Architecture) -> MixerState:
    """The state of an operator by its letter; `NO_STATE` for attention and FFN."""
    spec = OPERATOR_SPECS[operator]
    shapes = spec.state_shapes(architecture)
    if not shapes:
        return NO_STATE
    (recurrent,) = shapes.values()
    return MixerState((CONV_SIZE - 1, spec.conv_channels(architecture)), recurrent)


def largest_state(architecture: Architecture, conv_bytes_per_value: int, recurrent_bytes_per_value: int) -> MixerState:
    """The state that decides the size of a block."""
    states = [mixer_state(operator, architecture) for operator in dict.fromkeys(architecture.operators)]
    return max(states, key=lambda state: state.num_bytes(conv_bytes_per_value, recurrent_bytes_per_value))
