"""Mamba-2 with one group and gated normalisation, gate first (Dao and Gu 2024, arXiv 2405.21060)."""

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Sequence
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.operator_spec import CONV_SIZE
from flashslm.models.states import DecodePosition, Mamba2State, State
from flashslm.ops.causal_conv import causal_conv_step
from flashslm.ops.dispatch import causal_conv, ssd, ssd_step
from flashslm.ops.precision import at_least_fp32


class BiasedConvolution(nn.Module):
    """Weight [channels, CONV_SIZE] and bias of a causal depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, CONV_SIZE))
        self.bias = nn.Parameter(torch.empty(channels))


class Mamba2(Operator):
    reads: ClassVar = ("in_proj",)
    writes: ClassVar = ("out_proj",)
    state_type = Mamba2State

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        a = architecture
        self.head_dim = a.mamba_head_dim
        self.projected = [a.mamba_inner, a.mamba_conv_channels, a.mamba_heads]
        self.convolved = [a.mamba_inner, a.mamba_state, a.mamba_state]
        self.in_proj = nn.Linear(a.hidden_size, sum(self.projected), bias=False)
        self.conv = BiasedConvolution(a.mamba_conv_channels)
        self.dt_bias = nn.Parameter(torch.empty(a.mamba_heads))
        self.A_log = nn.Parameter(torch.empty(a.mamba_heads))
        self.D = nn.Parameter(torch.empty(a.mamba_heads))
        self.norm = RMSNorm(a.mamba_inner, INNER_NORM_EPS)
        self.out_proj = nn.Linear(a.mamba_inner, a.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        conv_before, ssm_before = (None, None) if state is None else cast(Mamba2State, state)
        documents = sequence.documents_BT
        z, conv_in, dt = self.in_proj(x_BTD).split(self.projected, dim=-1)
        conv_out, conv_state = causal_conv(conv_in, self.conv.weight, self.conv.bias, conv_before, documents)
        x, b, c = self._split(conv_out)
        y, ssm_after = ssd(x, self._dt(dt), self._a(), b, c, ssm_before, documents)
        return self._output(y, x, z), Mamba2State(conv_state, ssm_after)

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        before = cast(Mamba2State, state)
        z, conv_in, dt = self.in_proj(x_BD).split(self.projected, dim=-1)
        x, b, c = self._split(causal_conv_step(conv_in, self.conv.weight, self.conv.bias, before.conv))
        y = ssd_step(x, self._dt(dt), self._a(), b, c, before.ssm)
        return self._output(y, x, z)

    def _split(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, b, c = convolved.split(self.convolved, dim=-1)
        return x.unflatten(-1, (-1, self.head_dim)), b, c

    def _dt(self, dt: Tensor) -> Tensor:
        return F.softplus(at_least_fp32(dt) + self.dt_bias)

    def _a(self) -> Tensor:
        return -at_least_fp32(self.A_log).exp()

    def _output(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Add the skip D x, gate by silu(z), normalise over all channels, project."""
        skipped = (y + self.D[:, None] * x).flatten(-2)
        output: Tensor = self.out_proj(self.norm(skipped * F.silu(at_least_fp32(z))).to(z.dtype))
        return output
