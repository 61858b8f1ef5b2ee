"""The interface of an operator: what a residual layer wraps."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, NoState, State


class Sequence(NamedTuple):
    """What an operator must know of the tokens it is given besides their features."""

    angles: Rotary  # of their positions
    documents_BT: Tensor | None = None  # int, non-decreasing along T; None: one document per row


class Operator(nn.Module):
    """A token mixer or an FFN. It sees normalised features and returns what is added to the stream."""

    reads: ClassVar[tuple[str, ...]] = ()  # linear layers whose rows meet the stream
    writes: ClassVar[tuple[str, ...]] = ()  # linear layers whose columns are added to the stream
    state_type: ClassVar[type[State]] = NoState

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        """Run T tokens from `state` (None: nothing came before). Returns the output and the state after them."""
        raise NotImplementedError

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        """Run one token; `state` is static and updated in place."""
        raise NotImplementedError

    def weight_norm_axes(self) -> dict[str, int]:
        """Which dimension of which weight has unit norm under weight normalisation (Nemotron-Flash, section 3.3)."""
        return {f"{name}.weight": 1 for name in self.reads} | {f"{name}.weight": 0 for name in self.writes}
