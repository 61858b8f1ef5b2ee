"""Mamba-2 with one group and gated normalisation, gate first (Dao and Gu 2024, arXiv 2405.21060)."""

from typing import cast

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.operator_spec import CONV_SIZE
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, Mamba2State, State
from flashslm.ops.causal_conv import ConvInputs, causal_conv_step
from flashslm.ops.dispatch import causal_conv, gated_norm, ssd, ssd_step
from flashslm.ops.precision import at_least_fp32
from flashslm.ops.ssd import RawScan, SSDInputs, SSDToken


class BiasedConvolution(nn.Module):
    """Weight [channels, CONV_SIZE] and bias of a causal depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, CONV_SIZE))
        self.bias = nn.Parameter(torch.empty(channels))


class Mamba2(Operator):
    state_type = Mamba2State
    takes_padding = True

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

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        """Gate z, the convolution's input, and dt before its bias and softplus."""
        z, conv_in, dt = self.in_proj(x).split(self.projected, dim=-1)
        return z, conv_in, dt

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        conv_before, ssm_before = (None, None) if state is None else cast(Mamba2State, state)
        z, conv_in, dt = projected
        documents = sequence.documents_BT
        dt = sequence.without_padding(dt, -torch.inf)  # a step of size 0
        convolved = ConvInputs(conv_in, self.conv.weight, self.conv.bias, conv_before, documents, sequence.length)
        (x, b, c), conv_state = causal_conv(convolved, self.convolved)
        x = x.unflatten(-1, (-1, self.head_dim))
        raw = RawScan(self.dt_bias, self.D)
        y, ssm_after = ssd(SSDInputs(x, dt, self._a(), b, c, ssm_before, documents), raw)
        return (y, z), Mamba2State(conv_state, ssm_after)

    def output(self, mixed: Parts) -> Tensor:
        """Gate by silu(z), normalise over all channels, project."""
        y, z = mixed
        output: Tensor = self.out_proj(gated_norm(y.flatten(-2), z, self.norm.weight, self.norm.eps))
        return output

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        before = cast(Mamba2State, state)
        z, conv_in, dt = self.project(x_BD, position.angles)
        convolved = causal_conv_step(conv_in, self.conv.weight, self.conv.bias, before.conv)
        x, b, c = convolved.split(self.convolved, dim=-1)
        x = x.unflatten(-1, (-1, self.head_dim))
        raw = RawScan(self.dt_bias, self.D)
        y = ssd_step(SSDToken(x, raw.step_size(dt), self._a(), b, c, before.ssm))
        return self.output((raw.add_skip(y, x), z))

    def _a(self) -> Tensor:
        return -at_least_fp32(self.A_log).exp()
