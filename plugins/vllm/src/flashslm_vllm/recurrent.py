"""DeltaNet and Mamba-2 as vLLM layers: their states lie in vLLM's cache, in a group of blocks for each."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fla.ops import (
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule_packed_decode,
)
from vllm.model_executor.layers.fla.ops.utils import FLA_CHUNK_SIZE
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.mamba.mamba_utils import (
    MambaStateDtypeCalculator,
    MambaStateShapeCalculator,
    is_conv_state_dim_first,
)
from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)
from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from flashslm.models.architecture import Architecture
from flashslm.models.norm import INNER_NORM_EPS
from flashslm.models.operator_spec import CONV_SIZE
from flashslm.models.rope import Rotary
from flashslm_vllm.names import DELTA_RULE_OP


class Mamba2(MambaMixer2):
    """vLLM's own layer: one group, gate before the norm."""

    def __init__(self, a: Architecture, vllm_config: Any, prefix: str) -> None:
        super().__init__(
            hidden_size=a.hidden_size,
            ssm_state_size=a.mamba_state,
            conv_kernel_size=CONV_SIZE,
            intermediate_size=a.mamba_inner,
            use_conv_bias=True,
            use_bias=False,
            n_groups=1,
            num_heads=a.mamba_heads,
            head_dim=a.mamba_head_dim,
            rms_norm_eps=INNER_NORM_EPS,
            activation="silu",
            model_config=vllm_config.model_config,
            cache_config=vllm_config.cache_config,
            prefix=prefix,
        )

    def forward(self, x_TD: Tensor, angles: Rotary) -> Tensor:
        return super().forward(x_TD)


class DeltaNet(nn.Module, MambaBase):
    """The gated delta rule of vLLM with log gate 0: a state that does not decay.

    Attention metadata, blocks and decode graphs are those of vLLM's gated DeltaNet.
    """

    def __init__(self, a: Architecture, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.heads_size = a.num_heads, a.head_dim, a.heads_size
        self.model_config, self.cache_config = vllm_config.model_config, vllm_config.cache_config
        self.prefix, self.is_tuned = prefix, False
        self.in_proj = MergedColumnParallelLinear(
            a.hidden_size, [a.heads_size] * 3 + [a.num_heads], bias=False, prefix=f"{prefix}.in_proj"
        )
        self.conv_weight = nn.Parameter(torch.empty(3 * a.heads_size, CONV_SIZE), requires_grad=False)
        self.o_norm = RMSNorm(a.head_dim, eps=INNER_NORM_EPS)
        self.o_proj = RowParallelLinear(a.heads_size, a.hidden_size, bias=False, prefix=f"{prefix}.o_proj")
        # The one-token kernel makes the log gate of these: -exp(-inf) * softplus(...) = 0.
        self.register_buffer("no_decay", torch.full((a.num_heads,), -torch.inf, dtype=torch.float32), persistent=False)
        self.register_buffer("no_bias", torch.zeros(a.num_heads, dtype=torch.float32), persistent=False)
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"duplicate layer name: {prefix}")
        layers[prefix] = self
        self.kv_cache = (torch.tensor([]), torch.tensor([]))

    def forward(self, x_TD: Tensor, angles: Rotary) -> Tensor:
        qkv, beta_logits = self.in_proj(x_TD)[0].split([3 * self.heads_size, self.num_heads], dim=-1)
        o_THK = torch.empty(x_TD.shape[0], self.num_heads, self.head_dim, dtype=x_TD.dtype, device=x_TD.device)
        operation = getattr(torch.ops.vllm, DELTA_RULE_OP)
        operation(qkv, beta_logits.float(), o_THK, _encode_layer_name(self.prefix))
        return self.o_proj(self.o_norm(o_THK).flatten(1))[0]

    def mix(self, qkv_TC: Tensor, beta_logits_TH: Tensor, o_THK: Tensor) -> None:
        """Convolve, apply the delta rule to every sequence of the batch, write to `o_THK`; states change in place."""
        batches = get_forward_context().attn_metadata
        if batches is None:  # the run that measures memory
            self._tune(qkv_TC)
            o_THK.zero_()
            return
        batch = batches[self.prefix]
        tokens = batch.num_actual_tokens
        step = self._prefill if batch.num_prefills else self._decode
        o_THK[tokens:].zero_()
        step(qkv_TC[:tokens], beta_logits_TH[:tokens], o_THK[:tokens], batch)

    def _prefill(self, qkv_TC: Tensor, beta_logits_TH: Tensor, o_THK: Tensor, batch: GDNAttentionMetadata) -> None:
        """Some sequences bring many tokens; those that bring one are taken along."""
        slots_B, begun_B = batch.non_spec_state_indices_tensor, batch.has_initial_state
        qkv_TC = causal_conv1d_fn(
            qkv_TC.transpose(0, 1),
            self.conv_weight,
            None,
            activation="silu",
            conv_states=self._conv_states(),
            has_initial_state=begun_B,
            cache_indices=slots_B,
            query_start_loc=batch.non_spec_query_start_loc,
            metadata=batch,
        ).transpose(0, 1)
        states = self.kv_cache[1]
        before = states[slots_B].contiguous()
        before[~begun_B] = 0
        o, after = self._chunked(
            qkv_TC,
            beta_logits_TH,
            before,
            batch.non_spec_query_start_loc,
            chunk_indices=batch.chunk_indices,
            chunk_offsets=batch.chunk_offsets,
        )
        states[slots_B] = after.to(states.dtype)
        o_THK.copy_(o)

    def _chunked(self, qkv_TC: Tensor, beta_logits_TH: Tensor, before: Tensor, starts: Tensor, **chunks: Any) -> Any:
        q, k, v = (part.reshape(1, -1, self.num_heads, self.head_dim) for part in qkv_TC.chunk(3, dim=-1))
        o, after = chunk_gated_delta_rule(
            q=q.contiguous(),
            k=k.contiguous(),
            v=v.contiguous(),
            g=torch.zeros_like(beta_logits_TH)[None],
            beta=beta_logits_TH.sigmoid()[None],
            initial_state=before,
            output_final_state=True,
            cu_seqlens=starts,
            use_qk_l2norm_in_kernel=True,
            **chunks,
        )
        return o[0], after

    def _decode(self, qkv_TC: Tensor, beta_logits_TH: Tensor, o_THK: Tensor, batch: GDNAttentionMetadata) -> None:
        """One token for each sequence; a slot of 0 is a row that fills up a graph."""
        slots_B = batch.non_spec_state_indices_tensor[: len(qkv_TC)]
        qkv_TC = causal_conv1d_update(
            qkv_TC, self._conv_states(), self.conv_weight, None, "silu", conv_state_indices=slots_B
        )
        fused_recurrent_gated_delta_rule_packed_decode(
            mixed_qkv=qkv_TC,
            a=beta_logits_TH,
            b=beta_logits_TH,
            A_log=self.no_decay,
            dt_bias=self.no_bias,
            scale=self.head_dim**-0.5,
            initial_state=self.kv_cache[1],
            out=o_THK[:, None],
            ssm_state_indices=slots_B,
            use_qk_l2norm_in_kernel=True,
        )

    def _conv_states(self) -> Tensor:
        """[slots, channels, taps - 1], which vLLM stores in either order."""
        return self.kv_cache[0] if is_conv_state_dim_first() else self.kv_cache[0].transpose(-1, -2)

    def _tune(self, qkv_TC: Tensor) -> None:
        """Tune the chunked kernels while memory is free: the cache takes the rest of it afterwards."""
        if self.is_tuned:
            return
        self.is_tuned = True
        state = qkv_TC.new_zeros(1, self.num_heads, self.head_dim, self.head_dim, dtype=self.get_state_dtype()[1])
        beta_logits = qkv_TC.new_zeros(FLA_CHUNK_SIZE, self.num_heads, dtype=torch.float32)
        starts = torch.tensor([0, FLA_CHUNK_SIZE], device=qkv_TC.device, dtype=torch.int32)
        self._chunked(qkv_TC.new_ones(FLA_CHUNK_SIZE, 3 * self.heads_size), beta_logits, state, starts)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.GDN_ATTN

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return MambaStateDtypeCalculator.gated_delta_net_state_dtype(
            self.model_config.dtype, self.cache_config.mamba_cache_dtype, self.cache_config.mamba_ssm_cache_dtype
        )

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return MambaStateShapeCalculator.gated_delta_net_state_shape(
            1, self.num_heads, self.num_heads, self.head_dim, self.head_dim, CONV_SIZE
        )


def _delta_rule(qkv: Tensor, beta_logits: Tensor, output: Tensor, layer_name: LayerNameType) -> None:
    layer = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    layer.mix(qkv, beta_logits, output)


def _no_delta_rule(qkv: Tensor, beta_logits: Tensor, output: Tensor, layer_name: LayerNameType) -> None:
    """What the compiler sees: `output` is written."""


direct_register_custom_op(op_name=DELTA_RULE_OP, op_func=_delta_rule, mutates_args=["output"], fake_impl=_no_delta_rule)
