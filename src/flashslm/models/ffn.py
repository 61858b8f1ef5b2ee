"""Gated feed-forward network: down(silu(gate x) * up x)."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Sequence
from flashslm.models.states import DecodePosition, NoState, State


class FFN(Operator):
    reads: ClassVar = ("gate_proj", "up_proj")
    writes: ClassVar = ("down_proj",)

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, size = architecture.hidden_size, architecture.ffn_size
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=False)

    def forward(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        return self._transform(x_BTD), NoState()

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        return self._transform(x_BD)

    def _transform(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output
