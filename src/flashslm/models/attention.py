"""Causal grouped-query attention with rotary positions, over all earlier tokens (A) or a window of them (W)."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.linear import project_together
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.rope import Rotary, rotate
from flashslm.models.states import AttentionState, DecodePosition, State, WindowState
from flashslm.ops.attention import AttentionInputs, attention_step
from flashslm.ops.dispatch import attention, attention_heads
from flashslm.ops.rotary import HeadNorm, HeadsInputs


class Attention(Operator):
    """Query heads together are heads_size wide, key/value heads num_kv_heads·head_dim.

    With qk_norm every head of q and of k is normalised (RMSNorm, one weight for all heads) before the rotation.
    """

    window: int | None = None  # keys that a query sees, its own among them; None: all
    state_type: ClassVar[type[State]] = AttentionState
    takes_padding: ClassVar[bool] = True  # no query sees a later key, and a decode step overwrites those of padding

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        hidden, heads_size = architecture.hidden_size, architecture.heads_size
        kv_size = architecture.num_kv_heads * architecture.head_dim
        self.head_dim = architecture.head_dim
        self.heads = (architecture.num_heads, architecture.num_kv_heads)
        self.q_proj = nn.Linear(hidden, heads_size, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(heads_size, hidden, bias=False)
        self.q_norm, self.k_norm = (
            RMSNorm(self.head_dim, INNER_NORM_EPS) if architecture.qk_norm else nn.Identity() for _ in range(2)
        )

    def project(self, x: Tensor, angles: Rotary) -> Parts:
        return (project_together(x, self.q_proj, self.k_proj, self.v_proj),)

    def mix(self, projected: Parts, state: State | None, sequence: Sequence) -> tuple[Parts, State]:
        q, k, v = attention_heads(HeadsInputs(projected[0], *sequence.angles, self.heads, self._head_norm()))
        keys, values = (k[:, :0], v[:, :0]) if state is None else cast(AttentionState | WindowState, state)
        if keys.shape[1]:
            k = torch.cat([keys.to(k.dtype), k], dim=1)
            v = torch.cat([values.to(v.dtype), v], dim=1)
        return (attention(AttentionInputs(q, k, v, sequence.documents_BT, self.window)),), self._state(k, v)

    def output(self, mixed: Parts) -> Tensor:
        output: Tensor = self.o_proj(mixed[0].flatten(-2))
        return output

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        q, k, v = (p(x_BD).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), position.angles), rotate(self.k_norm(k), position.angles)
        keys, values = cast(AttentionState | WindowState, state)
        return self.output((attention_step(q, k, v, keys, values, position.lengths_B, self.window),))

    def _head_norm(self) -> HeadNorm | None:
        if not isinstance(self.q_norm, RMSNorm) or not isinstance(self.k_norm, RMSNorm):
            return None
        return HeadNorm(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.k_norm.eps)

    def _state(self, k: Tensor, v: Tensor) -> State:
        return AttentionState(k, v)


class WindowAttention(Attention):
    """Attention to the last `architecture.window` tokens, the present one included; older keys are dropped."""

    state_type = WindowState
    takes_padding = False
    window: int

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.window = architecture.window

    def _state(self, k: Tensor, v: Tensor) -> State:
        return WindowState(k[:, -self.window :], v[:, -self.window :])
