"""Gated feed-forward network: down(silu(gate x) * up x)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.linear import project_together
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, NoState, State
from flashslm.ops.dispatch import swiglu


class FFN(Operator):
    takes_padding = True

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, size = architecture.hidden_size, architecture.ffn_size
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=False)

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        if x.is_cuda and not torch.is_grad_enabled():
            return (swiglu(project_together(x, self.gate_proj, self.up_proj)),)
        # Two products, not one as for q, k and v: the gradient of one would have to be joined from two halves.
        return (F.silu(self.gate_proj(x)) * self.up_proj(x),)

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        return projected, NoState()

    def output(self, mixed: Parts) -> Tensor:
        output: Tensor = self.down_proj(mixed[0])
        return output

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        return self.output(self.project(x_BD, position.angles))
