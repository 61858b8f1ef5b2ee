"""What a layer remembers of earlier tokens: one NamedTuple of tensors per kind of state.

In training a state is a value: the one after the meta tokens goes in, the one after the last token comes out. In a
`cache.Cache` the same tuples hold preallocated tensors at fixed addresses.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from torch import Tensor

from flashslm.models.rope import Rotary


class AttentionState(NamedTuple):
    keys: Tensor  # [B, S, G, K], rotated
    values: Tensor  # [B, S, G, K]


class WindowState(NamedTuple):
    """The keys and values of the last `window` tokens, in their order; in a `Cache` position p is in slot p mod S."""

    keys: Tensor  # [B, S <= window, G, K], rotated
    values: Tensor  # [B, S <= window, G, K]


class DeltaNetState(NamedTuple):
    """The state of DeltaNet and of Gated DeltaNet."""

    conv: Tensor  # [B, 3·H·K, CONV_SIZE - 1], of q, k and v
    delta: Tensor  # [B, H, K, V], at least fp32


class Mamba2State(NamedTuple):
    conv: Tensor  # [B, channels, CONV_SIZE - 1]
    ssm: Tensor  # [B, H, P, N], at least fp32


class GLAState(NamedTuple):
    memory: Tensor  # [B, H, K, V], at least fp32


class DecodePosition(NamedTuple):
    """The positions of a decode step's tokens in their sequences."""

    angles: Rotary
    lengths_B: Tensor  # int64: tokens before them


class NoState(NamedTuple):
    """An FFN keeps nothing."""


State = tuple[Tensor, ...]  # always one of the NamedTuples above, or that of another operator


def expand_state(state: State, batch: int) -> State:
    """Give a batch-1 state to `batch` sequences without a copy; its gradient is the sum over them."""
    return make_state(type(state), (tensor.expand(batch, *tensor.shape[1:]) for tensor in state))


def make_state(kind: type[State], tensors: Iterable[Tensor]) -> State:
    """The state of a kind (a NamedTuple) with these tensors."""
    return cast(State, cast(Any, kind)._make(tensors))
