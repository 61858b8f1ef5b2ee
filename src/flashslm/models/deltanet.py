"""DeltaNet: linear attention with the delta rule (Yang et al. 2024, arXiv 2406.06484); no decay, no output gate."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Sequence
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.operator_spec import CONV_SIZE
from flashslm.models.states import DecodePosition, DeltaNetState, State
from flashslm.ops.causal_conv import causal_conv_step
from flashslm.ops.dispatch import causal_conv, delta_rule, delta_rule_step
from flashslm.ops.precision import at_least_fp32

L2_EPS = 1e-6  # added to the sum of squares


class Convolution(nn.Module):
    """The weight [D, CONV_SIZE] of a causal depthwise convolution without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, CONV_SIZE))


class DeltaNet(Operator):
    """q, k, v: projection to heads_size, short convolution, SiLU; q and k of unit length; beta = sigmoid(b_proj x)."""

    reads: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "b_proj")
    writes: ClassVar = ("o_proj",)
    state_type = DeltaNetState

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, heads_size = architecture.hidden_size, architecture.heads_size
        self.head_dim = architecture.head_dim
        self.q_proj = nn.Linear(hidden, heads_size, bias=False)
        self.k_proj = nn.Linear(hidden, heads_size, bias=False)
        self.v_proj = nn.Linear(hidden, heads_size, bias=False)
        self.b_proj = nn.Linear(hidden, architecture.num_heads, bias=False)
        self.o_proj = nn.Linear(heads_size, hidden, bias=False)
        self.q_conv, self.k_conv, self.v_conv = (Convolution(heads_size) for _ in range(3))
        self.o_norm = RMSNorm(self.head_dim, INNER_NORM_EPS)

    def forward(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        conv_before, delta_before = (None, None) if state is None else cast(DeltaNetState, state)
        documents = sequence.documents_BT
        convolved, conv = causal_conv(self._project(x_BTD), self._conv_weight(), None, conv_before, documents)
        q, k, v, beta, log_decay = (*self._heads(convolved), self._beta(x_BTD), self._log_decay(x_BTD))
        o, delta = delta_rule(q, k, v, beta, delta_before, documents, log_decay)
        return self._output(o, x_BTD), DeltaNetState(conv, delta)

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        before = cast(DeltaNetState, state)
        convolved = causal_conv_step(self._project(x_BD), self._conv_weight(), None, before.conv)
        q, k, v, beta, log_decay = (*self._heads(convolved), self._beta(x_BD), self._log_decay(x_BD))
        return self._output(delta_rule_step(q, k, v, beta, before.delta, log_decay), x_BD)

    def _project(self, x: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def _conv_weight(self) -> Tensor:
        """One convolution over the channels of q, k and v: a third of the calls."""
        return torch.cat([self.q_conv.weight, self.k_conv.weight, self.v_conv.weight])

    def _heads(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split into heads of q, k, v; q and k get unit length, q the scale 1/sqrt(K)."""
        q, k, v = convolved.unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        return _unit(q) * self.head_dim**-0.5, _unit(k), v

    def _beta(self, x: Tensor) -> Tensor:
        return at_least_fp32(self.b_proj(x)).sigmoid()

    def _log_decay(self, x: Tensor) -> Tensor | None:
        return None

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        """Normalise each head, project."""
        output: Tensor = self.o_proj(self.o_norm(o).flatten(-2))
        return output


def _unit(x: Tensor) -> Tensor:
    """L2-normalise the last dimension, in fp32."""
    x = at_least_fp32(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)
