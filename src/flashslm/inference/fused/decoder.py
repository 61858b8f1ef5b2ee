"""A decode step of a whole model by fused kernels, on the static cache that prefill filled.

Per operator: DeltaNet and Mamba-2 take three kernels (norm + projection + convolution; state; norm + projection +
residual), attention three or four, an FFN two. Nothing waits for the host, no address changes.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from flashslm.inference.fused.attention import Rotation, Splits, attention_decode
from flashslm.inference.fused.batched import project_batch
from flashslm.inference.fused.mixers import delta_rule_decode, ssd_decode
from flashslm.inference.fused.projection import (
    MAX_BATCH,
    Best,
    Convolution,
    Norm,
    project,
    rows_per_program,
)
from flashslm.inference.fused.tokens import choose, embed
from flashslm.inference.fused.weights import pack_rows
from flashslm.models.attention import Attention
from flashslm.models.cache import AttentionState, Cache, DeltaNetState, Mamba2State, State
from flashslm.models.deltanet import L2_EPS, DeltaNet
from flashslm.models.ffn import FFN
from flashslm.models.hybrid import HybridLM, Layer
from flashslm.models.mamba2 import Mamba2
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm

Step = Callable[[], None]


class FusedDecoder:
    """Steps of `batch` sequences over `cache`. The model's projections become views of packed matrices."""

    def __init__(self, model: HybridLM, cache: Cache) -> None:
        self.model, self.cache = model, cache
        weight = model.embedding.weight
        batch, vocabulary = cache.lengths_B.shape[0], weight.shape[0]
        self.device, self.dtype, self.batch = weight.device, weight.dtype, batch
        self.project = project if batch <= MAX_BATCH else project_batch
        self.stream_BD = torch.zeros(batch, model.architecture.hidden_size, device=self.device)
        self.logits_BV = torch.empty(batch, vocabulary, device=self.device)
        self.best = self._best() if batch <= MAX_BATCH else None
        layers = zip(model.architecture.operators, model.residual_layers, cache.layers, strict=True)
        self.steps = [step for letter, layer, state in layers for step in self._layer(letter, layer, state)]

    def layers_step(self) -> None:
        """One token through all layers; the stream is read and updated in place."""
        for step in self.steps:
            step()

    def decode_step(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every sequence; logits [B, V], fp32, in a buffer that the next step overwrites."""
        embed(tokens_B, self.model.embedding.weight, self.stream_BD)
        self.layers_step()
        norm = Norm(self.model.final_norm.weight, self.model.final_norm.eps)
        weight = self.model.embedding.weight
        if self.best is not None:
            project(self.stream_BD, weight, self.logits_BV, norm, best=self.best)
        else:
            project_batch(self.stream_BD, weight, self.logits_BV, norm)
        self.cache.lengths_B += 1
        return self.logits_BV

    def choose_greedily(self, tokens_B: Tensor) -> None:
        """The most likely next tokens after a `decode_step`, without another pass over the logits of few sequences."""
        if self.best is not None:
            choose(self.best, tokens_B)
        else:
            tokens_B.copy_(self.logits_BV.argmax(dim=-1))

    def _best(self) -> Best:
        vocabulary, size = self.model.embedding.weight.shape
        programs = -(-vocabulary // rows_per_program(size, 1))
        shape = (self.batch, programs)
        return Best(torch.empty(shape, device=self.device), torch.empty(shape, dtype=torch.int32, device=self.device))

    def _layer(self, letter: str, layer: Layer, state: State) -> list[Step]:
        norm = Norm(layer.norm.weight, layer.norm.eps)
        match letter:
            case "D":
                return self._deltanet(cast(DeltaNet, layer.operator), norm, cast(DeltaNetState, state))
            case "M":
                return self._mamba2(cast(Mamba2, layer.operator), norm, cast(Mamba2State, state))
            case "A":
                return self._attention(cast(Attention, layer.operator), norm, cast(AttentionState, state))
            case "F":
                return self._ffn(cast(FFN, layer.operator), norm)
        return [partial(self._unfused, layer, state)]

    def _deltanet(self, operator: DeltaNet, norm: Norm, state: DeltaNetState) -> list[Step]:
        packed = pack_rows(operator, ("q_proj", "k_proj", "v_proj", "b_proj"))
        taps = torch.cat([c.weight for c in (operator.q_conv, operator.k_conv, operator.v_conv)]).float()
        conv = Convolution(0, taps, None, state.conv)
        inputs, mixed = self._buffer(packed.shape[0]), self._buffer(operator.o_proj.weight.shape[1])
        inner = Norm(operator.o_norm.weight, INNER_NORM_EPS, operator.head_dim)
        out = operator.o_proj.weight
        return [
            partial(self.project, self.stream_BD, packed, inputs, norm, conv=conv),
            partial(delta_rule_decode, inputs, state.delta, mixed, L2_EPS),
            partial(self.project, mixed, out, self.stream_BD, inner, residual=True),
        ]

    def _mamba2(self, operator: Mamba2, norm: Norm, state: Mamba2State) -> list[Step]:
        inner = operator.out_proj.weight.shape[1]
        conv = Convolution(inner, operator.conv.weight.float(), operator.conv.bias.float(), state.conv)
        inputs, mixed = self._buffer(operator.in_proj.weight.shape[0]), self._buffer(inner, torch.float32)
        vectors = (operator.dt_bias.float(), operator.A_log.float(), operator.D.float())
        gated = Norm(operator.norm.weight, INNER_NORM_EPS)
        return [
            partial(self.project, self.stream_BD, operator.in_proj.weight, inputs, norm, conv=conv),
            partial(ssd_decode, inputs, *vectors, state.ssm, mixed),
            partial(self.project, mixed, operator.out_proj.weight, self.stream_BD, gated, residual=True),
        ]

    def _attention(self, operator: Attention, norm: Norm, state: AttentionState) -> list[Step]:
        packed = pack_rows(operator, ("q_proj", "k_proj", "v_proj"))
        keys, values = state.keys.transpose(1, 2), state.values.transpose(1, 2)
        _, groups, slots, head = keys.shape
        size = operator.o_proj.weight.shape[1]
        inputs, mixed = self._buffer(packed.shape[0]), self._buffer(size)
        cos, sin = (table[:, 0].contiguous() for table in self.cache.angles)
        norms = [n.weight if isinstance(n, RMSNorm) else None for n in (operator.q_norm, operator.k_norm)]
        rotation = Rotation(cos, sin, norms[0], norms[1], INNER_NORM_EPS)
        splits = Splits.allocate(self.batch, size // head, groups, head, slots, self.device)
        attend = partial(attention_decode, inputs, rotation, self.cache.lengths_B, keys, values, mixed, splits)
        return [
            partial(self.project, self.stream_BD, packed, inputs, norm),
            attend,
            partial(self.project, mixed, operator.o_proj.weight, self.stream_BD, residual=True),
        ]

    def _ffn(self, operator: FFN, norm: Norm) -> list[Step]:
        packed = pack_rows(operator, ("gate_proj", "up_proj"))
        hidden = self._buffer(packed.shape[0] // 2)
        return [
            partial(self.project, self.stream_BD, packed, hidden, norm, swiglu=True),
            partial(self.project, hidden, operator.down_proj.weight, self.stream_BD, residual=True),
        ]

    def _unfused(self, layer: Layer, state: State) -> None:
        """An operator without fused kernels: by the forms of `ops.dispatch`, inside the same graph."""
        x_BD = self.stream_BD.to(self.dtype)
        self.stream_BD.copy_(layer.step(x_BD, state, self.cache.next_position()))

    def _buffer(self, size: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(self.batch, size, dtype=dtype or self.dtype, device=self.device)
