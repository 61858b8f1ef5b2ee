"""Gated DeltaNet: the delta rule with a decay and an output gate (Yang et al. 2024, arXiv 2412.06464)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.deltanet import DeltaNet
from flashslm.models.interface import Parts
from flashslm.models.rope import Rotary
from flashslm.ops.precision import at_least_fp32


class GatedDeltaNet(DeltaNet):
    """DeltaNet whose state decays by exp(-exp(A_log)·softplus(a_proj x + dt_bias)) a token and head, as Mamba-2's does.

    The output is o_proj(RMSNorm(o) * silu(g_proj x)), the norm over each head. A_log and dt_bias stay fp32.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, heads = architecture.hidden_size, architecture.num_heads
        self.a_proj = nn.Linear(hidden, heads, bias=False)
        self.g_proj = nn.Linear(hidden, architecture.heads_size, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        (qkvb,) = super().project(x, angles)
        dt = F.softplus(at_least_fp32(self.a_proj(x)) + self.dt_bias)
        return qkvb, -at_least_fp32(self.A_log).exp() * dt, self.g_proj(x)

    def output(self, mixed: Parts) -> Tensor:
        o, gate = mixed
        output: Tensor = self.o_proj(self.o_norm(o).flatten(-2) * F.silu(gate))
        return output
