"""Gated linear attention: every key channel has its own decay (Yang et al. 2023, arXiv 2312.06635)."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.linear import project_each
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.operator_spec import GLA_GATE_RANK
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, GLAState, State
from flashslm.ops.dispatch import gla
from flashslm.ops.gla import GLAInputs, gla_step
from flashslm.ops.precision import at_least_fp32

GATE_TEMPERATURE = 16.0  # the paper's tau: it divides the log decay, so that a fresh layer forgets slowly


class GLA(Operator):
    """q and k have half a head's channels (scale 1/sqrt(K) on q), v all of them; no convolution, no positions.

    The decay's logarithm is logsigmoid(decay_up(decay_down x)) / 16, with rank 16 and a bias; the output is
    o_proj(RMSNorm(o) * silu(g_proj x)), the norm over each head (section 4.4).
    """

    state_type = GLAState

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, heads_size = architecture.hidden_size, architecture.heads_size
        self.heads, self.key_dim = architecture.num_heads, architecture.gla_key_dim
        key_size = self.heads * self.key_dim
        self.q_proj = nn.Linear(hidden, key_size, bias=False)
        self.k_proj = nn.Linear(hidden, key_size, bias=False)
        self.v_proj = nn.Linear(hidden, heads_size, bias=False)
        self.g_proj = nn.Linear(hidden, heads_size, bias=False)
        self.decay_down = nn.Linear(hidden, GLA_GATE_RANK, bias=False)
        self.decay_up = nn.Linear(GLA_GATE_RANK, key_size)
        self.o_norm = RMSNorm(architecture.head_dim, INNER_NORM_EPS)
        self.o_proj = nn.Linear(heads_size, hidden, bias=False)

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        """Heads of q, k, v and of the decay's logarithm, and the gate."""
        log_decay = F.logsigmoid(at_least_fp32(self.decay_up(self.decay_down(x)))) / GATE_TEMPERATURE
        q, k, v, gate = project_each(x, self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        q, k, v, log_decay = (y.unflatten(-1, (self.heads, -1)) for y in (q * self.key_dim**-0.5, k, v, log_decay))
        return q, k, v, log_decay, gate

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        q, k, v, log_decay, gate = projected
        before = None if state is None else cast(GLAState, state).memory
        o, memory = gla(GLAInputs(q, k, v, log_decay, before, sequence.documents_BT))
        return (o, gate), GLAState(memory)

    def output(self, mixed: Parts) -> Tensor:
        o, gate = mixed
        output: Tensor = self.o_proj(self.o_norm(o).flatten(-2) * F.silu(gate))
        return output

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        q, k, v, log_decay, gate = self.project(x_BD, position.angles)
        return self.output((gla_step(q, k, v, log_decay, cast(GLAState, state).memory), gate))
