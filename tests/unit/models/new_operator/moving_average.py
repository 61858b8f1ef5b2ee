"""A toy token mixer: a learned combination of the token and an exponential moving average of those before it."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, State

DECAY = 0.9


class MovingAverageState(NamedTuple):
    average: Tensor  # [B, D]


class MovingAverage(Operator):
    state_type = MovingAverageState

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.in_proj = nn.Linear(architecture.hidden_size, architecture.hidden_size, bias=False)
        self.out_proj = nn.Linear(architecture.hidden_size, architecture.hidden_size, bias=False)

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        return (self.in_proj(x),)

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        (y_BTD,) = projected
        before_BD = torch.zeros_like(y_BTD[:, 0]) if state is None else cast(MovingAverageState, state).average
        average_BD, averages, documents_BT = before_BD, [], sequence.documents_BT
        for t, y_BD in enumerate(y_BTD.unbind(dim=1)):
            if documents_BT is not None and t:
                begins_B1 = (documents_BT[:, t] != documents_BT[:, t - 1])[:, None]
                average_BD = torch.where(begins_B1, before_BD, average_BD)
            average_BD = DECAY * average_BD + (1 - DECAY) * y_BD
            averages.append(average_BD)
        return (torch.stack(averages, dim=1),), MovingAverageState(average_BD)

    def output(self, mixed: Parts) -> Tensor:
        output: Tensor = self.out_proj(mixed[0])
        return output

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        average_BD = cast(MovingAverageState, state).average
        average_BD.mul_(DECAY).add_(self.in_proj(x_BD), alpha=1 - DECAY)
        output: Tensor = self.out_proj(average_BD.to(x_BD.dtype))
        return output
