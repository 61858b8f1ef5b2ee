"""A decode step of a whole model by fused kernels, on the static cache that prefill filled.

Per operator and few sequences: DeltaNet and Mamba-2 take three kernels (norm + projection; convolution + state; norm +
projection + residual), attention three or four, an FFN two. Nothing waits for the host, no address changes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import flashslm.ops.fused  # noqa: F401  # so that Triton keeps these kernels too where steps and machines share them
from flashslm.inference.fused.attention import Rotation, Splits, attention_decode
from flashslm.inference.fused.batched import project_batch
from flashslm.inference.fused.mixers import delta_rule_decode, ssd_decode
from flashslm.inference.fused.projection import VALUES_PER_LOAD, Best, Norm, Product, Ring, project
from flashslm.inference.fused.size_limits import size_blockers
from flashslm.inference.fused.step_plan import StepPlan, usual_plan
from flashslm.inference.fused.stream import Stream, step_unfused
from flashslm.inference.fused.tiled import project_tiled
from flashslm.inference.fused.tokens import choose, embed
from flashslm.inference.fused.weights import pack_rows
from flashslm.models.attention import Attention
from flashslm.models.cache import Cache
from flashslm.models.deltanet import DeltaNet
from flashslm.models.ffn import FFN
from flashslm.models.hybrid import HybridLM, Layer
from flashslm.models.interface import Operator
from flashslm.models.mamba2 import Mamba2
from flashslm.models.norm import INNER_NORM_EPS, RMSNorm
from flashslm.models.operator_spec import CONV_SIZE, OPERATOR_SPECS
from flashslm.models.states import AttentionState, DeltaNetState, Mamba2State, NoState, State
from flashslm.ops.delta_rule import L2_EPS
from flashslm.ops.int8_weights import Int8Weight, quantise_rows
from flashslm.ops.kernels import MissingKernel, note

KernelCall = Callable[[], None]
CAPABILITIES = (9, 10)


def _too_small(device: torch.device) -> list[str]:
    """What a GPU lacks: kernels begin before the one ahead has ended, and blocks fill the shared memory of an SM."""
    major, minor = torch.cuda.get_device_capability(device)
    enough = major in CAPABILITIES
    return [] if enough else [f"the GPU has compute capability {major}.{minor}: 9.0 or 10.0 (H100, H200, B200)"]


class FusedDecoder:
    """Steps of `batch` sequences over `cache`. The model's projections become views of packed matrices.

    With `int8` vector products read copies of them in 8 bits. `plan` None: the usual one for so many sequences. Raises
    ValueError for a plan that they cannot have, and MissingKernel, which names the other backend, for sizes that the
    kernels cannot take.
    """

    def __init__(self, model: HybridLM, cache: Cache, int8: bool = False, plan: StepPlan | None = None) -> None:
        weight = model.embedding.weight
        if found := _too_small(weight.device) + size_blockers(model.architecture):
            raise MissingKernel(f"kernels.decode: backend 'fused' cannot run: {'; '.join(found)}; or set it to torch")
        self.model, self.cache, self.int8 = model, cache, int8
        batch, vocabulary = cache.lengths_B.shape[0], weight.shape[0]
        self.device, self.dtype, self.batch = weight.device, weight.dtype, batch
        self.plan = plan or usual_plan(batch)
        self.plan.check(batch)
        exact_BD = torch.zeros(batch, model.architecture.hidden_size, device=self.device)
        self.stream = Stream(exact_BD, exact_BD.to(self.dtype))
        self.logits_BV = torch.empty(batch, vocabulary, device=self.device)
        self.head = self._stored(weight)
        self.best = Best.allocate(batch, self.head) if self._few(weight) else None
        self.rings: list[tuple[Tensor, Tensor]] = []  # a convolution's state in the cache, and its ring
        layers = zip(model.architecture.operators, model.residual_layers, cache.layers, strict=True)
        self.steps = [step for letter, layer, state in layers for step in self._layer(letter, layer, state)]

    @torch.no_grad()
    def begin(self, row: int | None = None) -> None:
        """Take over the convolutions' states from the cache; to be called after a prefill, of one row or of all."""
        rows = slice(None) if row is None else slice(row, row + 1)
        lengths_B = self.cache.lengths_B[rows]
        for states_BCK, rings_B4C in self.rings:
            state_BCK, ring_B4C = states_BCK[rows], rings_B4C[rows]
            for back in range(1, CONV_SIZE):
                place_B1C = ((lengths_B - back) % CONV_SIZE)[:, None, None].expand(-1, 1, ring_B4C.shape[2])
                ring_B4C.scatter_(1, place_B1C, state_BCK[:, None, :, -back])

    def layers_step(self) -> None:
        """One token through all layers; the stream is read and updated in place."""
        for step in self.steps:
            step()

    def decode_step(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every sequence; logits [B, V], fp32, in a buffer that the next step overwrites."""
        embed(tokens_B, self.model.embedding.weight, self.stream)
        self.layers_step()
        norm = Norm(self.model.final_norm.weight, self.model.final_norm.eps)
        if self.best is not None:
            project(Product(self.stream.rounded, self.head, self.logits_BV, norm), self.best)
        else:
            self._form_for_many()(Product(self.stream.rounded, self.model.embedding.weight, self.logits_BV, norm))
        self.cache.lengths_B += 1
        return self.logits_BV

    def choose_greedily(self, tokens_B: Tensor) -> None:
        """The most likely next tokens after a `decode_step`, without another pass over the logits of few sequences."""
        if self.best is not None:
            choose(self.best, tokens_B)
        else:
            tokens_B.copy_(self.logits_BV.argmax(dim=-1))

    def _layer(self, letter: str, layer: Layer, state: State) -> list[KernelCall]:
        norm = Norm(layer.norm.weight, layer.norm.eps)
        fused: dict[type[Operator], Callable[..., list[KernelCall]]] = {
            DeltaNet: self._deltanet,
            Mamba2: self._mamba2,
            Attention: self._attention,
            FFN: self._ffn,
        }
        if build := fused.get(type(layer.operator)):
            return build(layer.operator, norm, state)
        note(f"decode of {OPERATOR_SPECS[letter].name}", "torch")
        return [partial(self._unfused, layer, state)]

    def _deltanet(self, operator: DeltaNet, norm: Norm, state: DeltaNetState) -> list[KernelCall]:
        packed = pack_rows(operator, ("q_proj", "k_proj", "v_proj", "b_proj"))
        taps = torch.cat([c.weight for c in (operator.q_conv, operator.k_conv, operator.v_conv)]).float()
        ring = self._ring(0, state.conv, taps)
        inputs, mixed = self._buffer(packed.shape[0]), self._buffer(operator.o_proj.weight.shape[1])
        inner = Norm(operator.o_norm.weight, INNER_NORM_EPS, operator.head_dim)
        out = operator.o_proj.weight
        return [
            self._project(self.stream.rounded, packed, inputs, norm, ring=ring),
            partial(delta_rule_decode, inputs, ring, state.delta, mixed, L2_EPS, convolved=not self._few(packed)),
            self._project(mixed, out, self.stream, inner),
        ]

    def _mamba2(self, operator: Mamba2, norm: Norm, state: Mamba2State) -> list[KernelCall]:
        inner = operator.out_proj.weight.shape[1]
        weight = operator.in_proj.weight
        ring = self._ring(inner, state.conv, operator.conv.weight.float(), operator.conv.bias.float())
        inputs, mixed = self._buffer(weight.shape[0]), self._buffer(inner)
        vectors = (operator.dt_bias.float(), operator.A_log.float(), operator.D.float())
        gated = Norm(operator.norm.weight, INNER_NORM_EPS)
        return [
            self._project(self.stream.rounded, weight, inputs, norm, ring=ring),
            partial(ssd_decode, inputs, ring, vectors, state.ssm, mixed, convolved=not self._few(weight)),
            self._project(mixed, operator.out_proj.weight, self.stream, gated),
        ]

    def _attention(self, operator: Attention, norm: Norm, state: AttentionState) -> list[KernelCall]:
        packed = pack_rows(operator, ("q_proj", "k_proj", "v_proj"))
        keys, values = state.keys.transpose(1, 2), state.values.transpose(1, 2)
        size = operator.o_proj.weight.shape[1]
        inputs, mixed = self._buffer(packed.shape[0]), self._buffer(size)
        cos, sin = (table[:, 0].contiguous() for table in self.cache.angles)
        norms = [n.weight if isinstance(n, RMSNorm) else None for n in (operator.q_norm, operator.k_norm)]
        rotation = Rotation(cos, sin, norms[0], norms[1], INNER_NORM_EPS)
        splits = Splits.allocate(self.plan.attention, size // keys.shape[3], keys)
        attend = partial(attention_decode, inputs, rotation, self.cache.lengths_B, keys, values, mixed, splits)
        return [
            self._project(self.stream.rounded, packed, inputs, norm),
            attend,
            self._project(mixed, operator.o_proj.weight, self.stream),
        ]

    def _ffn(self, operator: FFN, norm: Norm, _: NoState) -> list[KernelCall]:
        packed = pack_rows(operator, ("gate_proj", "up_proj"))
        hidden = self._buffer(packed.shape[0] // 2)
        return [
            self._project(self.stream.rounded, packed, hidden, norm, swiglu=True),
            self._project(hidden, operator.down_proj.weight, self.stream),
        ]

    def _unfused(self, layer: Layer, state: State) -> None:
        step_unfused(layer, self.stream, state, self.cache.next_position())

    def _few(self, weight_RD: Tensor) -> bool:
        """Whether the kernel for few inputs takes a product with this weight."""
        return self.plan.product == "vector" and weight_RD.shape[1] % VALUES_PER_LOAD == 0

    def _form_for_many(self) -> Callable[..., None]:
        """The form of a product that the kernel for few inputs does not take."""
        return partial(project_tiled, tile=self.plan.tile) if self.plan.product == "tiled" else project_batch

    def _project(self, x_BD: Tensor, weight_RD: Tensor, *arguments: Any, **options: Any) -> KernelCall:
        form = project if self._few(weight_RD) else self._form_for_many()
        return partial(form, Product(x_BD, self._stored(weight_RD), *arguments, **options))

    def _stored(self, weight_RD: Tensor) -> Tensor | Int8Weight:
        """A weight as the product with it reads it."""
        fits = self._few(weight_RD) and weight_RD.shape[1] % (2 * VALUES_PER_LOAD) == 0
        return quantise_rows(weight_RD) if self.int8 and fits else weight_RD

    def _ring(self, start: int, state_BCK: Tensor, taps_CK: Tensor, bias_C: Tensor | None = None) -> Ring:
        batch, channels, _ = state_BCK.shape
        inputs = torch.zeros(batch, CONV_SIZE, channels, dtype=self.dtype, device=self.device)
        self.rings.append((state_BCK, inputs))
        return Ring(inputs, start, self.cache.lengths_B, taps_CK, bias_C)

    def _buffer(self, size: int) -> Tensor:
        return torch.empty(self.batch, size, dtype=self.dtype, device=self.device)
