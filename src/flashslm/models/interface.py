"""The interface of an operator: what a residual layer wraps."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, NoState, State

Parts = tuple[Tensor, ...]  # of a token's features; an operator's own order


class Sequence(NamedTuple):
    """What an operator must know of the tokens it is given besides their features."""

    angles: Rotary  # of their positions
    documents_BT: Tensor | None = None  # int, non-decreasing along T; None: one document per row
    length: Tensor | None = None  # int64 [1]: tokens of every row that count, those behind them are padding; None: all

    def without_padding(self, x: Tensor, value: float) -> Tensor:
        """x [B, T, H] with `value` in place of what padding gives."""
        if self.length is None:
            return x
        padding_T = torch.arange(x.shape[1], device=x.device) >= self.length
        return x.masked_fill(padding_T[:, None], value)


class Operator(nn.Module):
    """A token mixer or an FFN. It sees normalised features and returns what is added to the stream.

    It has three parts: `project` and `output` treat every token by itself, `mix` alone carries something from token to
    token. The first two are what a compiler can fuse; the third calls the kernels of `ops`.
    """

    state_type: ClassVar[type[State]] = NoState
    takes_padding: ClassVar[bool] = False  # whether tokens behind `Sequence.length` leave no trace in the state

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        """Run T tokens from `state` (None: nothing came before). Returns the output and the state after them."""
        mixed, state = self.mix(self.project(x_BTD, sequence.angles), state, sequence)
        return self.output(mixed), state

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        """What `mix` and `output` need of each token, from its features [..., D] and the angles of its position."""
        raise NotImplementedError

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        """Mix T tokens from `state`. Returns what `output` takes, and the state after them."""
        raise NotImplementedError

    def output(self, mixed: Parts) -> Tensor:
        """What is added to the stream, [..., D]."""
        raise NotImplementedError

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        """Run one token; `state` is static and updated in place."""
        raise NotImplementedError
