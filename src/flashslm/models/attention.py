"""Causal grouped-query attention with rotary positions; no query-key norm, no window."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.cache import AttentionState, DecodePosition, State
from flashslm.models.interface import Operator, Sequence
from flashslm.models.rope import Rotary, rotate
from flashslm.ops.attention import attention_sdpa, attention_step


class Attention(Operator):
    reads: ClassVar = ("q_proj", "k_proj", "v_proj")
    writes: ClassVar = ("o_proj",)

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, kv_size = architecture.hidden_size, architecture.num_kv_heads * architecture.head_dim
        self.head_dim = architecture.head_dim
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        q, k, v = self._project(x_BTD, sequence.angles)
        if state is not None:
            prefix = cast(AttentionState, state)
            k = torch.cat([prefix.keys.to(k.dtype), k], dim=1)
            v = torch.cat([prefix.values.to(v.dtype), v], dim=1)
        o = attention_sdpa(q, k, v, sequence.documents_BT)
        return self.o_proj(o.flatten(-2)), AttentionState(k, v)

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        q, k, v = self._project(x_BD, position.angles)
        o = attention_step(q, k, v, *cast(AttentionState, state), position.lengths_B)
        output: Tensor = self.o_proj(o.flatten(-2))
        return output

    def _project(self, x: Tensor, angles: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, angles), rotate(k, angles), v
