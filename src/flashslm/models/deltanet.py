"""DeltaNet: linear attention with the delta rule (Yang et al. 2024, arXiv 2406.06484); no decay, no output gate."""

from typing import cast

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.linear import project_together
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.operator_spec import CONV_SIZE
from flashslm.models.rope import Rotary
from flashslm.models.states import DecodePosition, DeltaNetState, State
from flashslm.ops.causal_conv import ConvInputs, causal_conv_step
from flashslm.ops.delta_rule import DeltaRuleInputs, DeltaRuleToken, normalise_heads
from flashslm.ops.dispatch import causal_conv, delta_rule, delta_rule_step
from flashslm.ops.precision import at_least_fp32


class Convolution(nn.Module):
    """The weight [D, CONV_SIZE] of a causal depthwise convolution without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, CONV_SIZE))


class DeltaNet(Operator):
    """q, k, v: projection to heads_size, short convolution, SiLU; q and k of unit length; beta = sigmoid(b_proj x)."""

    state_type = DeltaNetState
    takes_padding = True

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

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        """q, k, v and beta's logits behind each other; what is behind those is not read."""
        return (project_together(x, self.q_proj, self.k_proj, self.v_proj, self.b_proj, aligned=True),)

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        conv_before, delta_before = (None, None) if state is None else cast(DeltaNetState, state)
        qkvb, *decay_and_gate = projected
        documents, log_decay = sequence.documents_BT, decay_and_gate[0] if decay_and_gate else None
        log_decay = None if log_decay is None else sequence.without_padding(log_decay, 0.0)
        convolved = ConvInputs(qkvb, self._conv_weight(), None, conv_before, documents, sequence.length)
        (*parts, b), conv = causal_conv(convolved, [self.q_proj.out_features] * 3)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        beta = sequence.without_padding(self._beta(b), 0.0)  # writes nothing
        inputs = DeltaRuleInputs(q, k, v, beta, delta_before, documents, log_decay)
        o, delta = delta_rule(inputs, normalise=True)
        return (o, *decay_and_gate[1:]), DeltaNetState(conv, delta)

    def output(self, mixed: Parts) -> Tensor:
        """Normalise each head, project."""
        output: Tensor = self.o_proj(self.o_norm(mixed[0]).flatten(-2))
        return output

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        before = cast(DeltaNetState, state)
        qkvb, *decay_and_gate = self.project(x_BD, position.angles)
        log_decay = decay_and_gate[0] if decay_and_gate else None
        qkv, b = qkvb.tensor_split([3 * self.q_proj.out_features], dim=-1)
        convolved = causal_conv_step(qkv, self._conv_weight(), None, before.conv)
        q, k, v = convolved.unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        q, k = normalise_heads(q, k)
        beta = self._beta(b)
        o = delta_rule_step(DeltaRuleToken(q, k, v, beta, before.delta, log_decay))
        return self.output((o, *decay_and_gate[1:]))

    def _beta(self, b: Tensor) -> Tensor:
        """Of each head, at least fp32, from the channels behind those of q, k and v."""
        return at_least_fp32(b[..., : self.b_proj.out_features]).sigmoid()

    def _conv_weight(self) -> Tensor:
        """One convolution over the channels of q, k and v: a third of the calls."""
        return torch.cat([self.q_conv.weight, self.k_conv.weight, self.v_conv.weight])
