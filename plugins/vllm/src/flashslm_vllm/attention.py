"""Attention and FFN as vLLM layers: its attention backends, its merged projections."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear

from flashslm.models.architecture import Architecture
from flashslm.models.norm import INNER_NORM_EPS
from flashslm.models.rope import Rotary


def rotate(x_THK: Tensor, angles: Rotary) -> Tensor:
    """Half-split rotation in float32, as in training; vLLM's own rounds cosines and sines to the model's dtype."""
    low, high = x_THK.float().chunk(2, dim=-1)
    rotated = torch.cat([low * angles.cos - high * angles.sin, high * angles.cos + low * angles.sin], dim=-1)
    return rotated.to(x_THK.dtype)


class GroupedQueryAttention(nn.Module):
    """Causal, over all earlier tokens, the meta tokens among them."""

    def __init__(self, a: Architecture, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.head_dim = a.head_dim
        self.sizes = [a.heads_size, a.num_kv_heads * a.head_dim, a.num_kv_heads * a.head_dim]
        self.qkv_proj = QKVParallelLinear(
            a.hidden_size, a.head_dim, a.num_heads, a.num_kv_heads, bias=False, prefix=f"{prefix}.qkv_proj"
        )
        self.o_proj = RowParallelLinear(a.heads_size, a.hidden_size, bias=False, prefix=f"{prefix}.o_proj")
        self.q_norm, self.k_norm = (
            RMSNorm(a.head_dim, eps=INNER_NORM_EPS) if a.qk_norm else nn.Identity() for _ in range(2)
        )
        self.attn = Attention(
            a.num_heads,
            a.head_dim,
            a.head_dim**-0.5,
            num_kv_heads=a.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, x_TD: Tensor, angles: Rotary) -> Tensor:
        q, k, v = self.qkv_proj(x_TD)[0].split(self.sizes, dim=-1)
        q, k = (
            rotate(norm(part.reshape(-1, part.shape[-1] // self.head_dim, self.head_dim)), angles).flatten(1)
            for norm, part in ((self.q_norm, q), (self.k_norm, k))
        )
        return self.o_proj(self.attn(q, k, v))[0]


class FeedForward(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, a: Architecture, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            a.hidden_size, [a.ffn_size] * 2, bias=False, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(a.ffn_size, a.hidden_size, bias=False, prefix=f"{prefix}.down_proj")
        self.activation = SiluAndMul()

    def forward(self, x_TD: Tensor, angles: Rotary) -> Tensor:
        return self.down_proj(self.activation(self.gate_up_proj(x_TD)[0]))[0]
