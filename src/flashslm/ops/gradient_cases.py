"""What a gradient check calls: every operation of training as the layers call it, and its naive twin.

Sizes are small and odd where kernels allow it; values are drawn from torch's generator.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops import dispatch
from flashslm.ops.attention import AttentionInputs, attention_naive
from flashslm.ops.causal_conv import ConvInputs, causal_conv_naive
from flashslm.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_naive
from flashslm.ops.delta_rule import DeltaRuleInputs, delta_rule_naive, normalise_heads
from flashslm.ops.gla import GLAInputs, gla_naive
from flashslm.ops.kernels import backend_of
from flashslm.ops.rotary import HeadNorm, HeadsInputs, attention_heads_naive
from flashslm.ops.ssd import RawScan, SSDInputs, ssd_naive

BATCH, LENGTH, HEADS, SIZE = 2, 192, 4, 128
COMMON = ("cross_entropy", "elementwise")  # of every model
OPERATIONS = {  # of the operators, by letter
    "D": ("delta_rule", "causal_conv"),
    "G": ("gated_delta_rule", "causal_conv"),
    "L": ("gla",),
    "M": ("ssd", "causal_conv"),
    "A": ("rotary", "attention"),
    "W": ("rotary", "attention"),
}

Op = Callable[..., Tensor]


class GradientCase(NamedTuple):
    """`op` and `naive` take the tensors `inputs` and return one tensor."""

    op: Op
    naive: Op
    inputs: list[Tensor]


def operations_of(operators: str) -> tuple[str, ...]:
    """What training a model of these operators calls."""
    found = [name for letter in operators for name in OPERATIONS.get(letter, ())]
    return tuple(dict.fromkeys((*found, *COMMON)))


class CaseMaker:
    """Makes cases whose activations have one dtype; parameters that stay fp32 in training are fp32."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def case(self, operation: str) -> GradientCase:
        make: Callable[[], GradientCase] = getattr(self, f"_{operation}")
        return make()

    def _normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype or self.dtype)

    def _uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.rand(*shape, device=self.device).to(dtype or self.dtype)

    def _delta_rule(self, log_decay: Tensor | None = None) -> GradientCase:
        heads = [self._normal(BATCH, LENGTH, HEADS, SIZE) for _ in range(3)]
        inputs = [*heads, self._uniform(BATCH, LENGTH, HEADS)] + ([] if log_decay is None else [log_decay])

        def op(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
            return dispatch.delta_rule(DeltaRuleInputs(q, k, v, beta, log_decay_BTH=decay), normalise=True)[0]

        def naive(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
            return delta_rule_naive(DeltaRuleInputs(*normalise_heads(q, k), v, beta, log_decay_BTH=decay))[0]

        return GradientCase(op, naive, inputs)

    def _gated_delta_rule(self) -> GradientCase:
        return self._delta_rule(-0.1 * self._uniform(BATCH, LENGTH, HEADS, dtype=torch.float32))

    def _gla(self) -> GradientCase:
        q, k = (self._normal(BATCH, LENGTH, HEADS, SIZE // 2) for _ in range(2))
        decay = F.logsigmoid(self._normal(BATCH, LENGTH, HEADS, SIZE // 2, dtype=torch.float32)) / 16
        inputs = [q * (SIZE // 2) ** -0.5, k, self._normal(BATCH, LENGTH, HEADS, SIZE), decay]
        return GradientCase(
            lambda *given: dispatch.gla(GLAInputs(*given))[0], lambda *given: gla_naive(GLAInputs(*given))[0], inputs
        )

    def _ssd(self) -> GradientCase:
        x, dt = self._normal(BATCH, LENGTH, HEADS, SIZE // 2), self._normal(BATCH, LENGTH, HEADS)
        b, c = (self._normal(BATCH, LENGTH, SIZE) for _ in range(2))
        a, bias = -self._uniform(HEADS, dtype=torch.float32) - 0.5, self._normal(HEADS, dtype=torch.float32) - 2
        inputs = [x, dt, b * SIZE**-0.5, c, a, bias, torch.ones(HEADS, device=self.device)]

        def op(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
            return dispatch.ssd(SSDInputs(x, dt, a, b, c), RawScan(bias, skip))[0]

        def naive(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
            raw = RawScan(bias, skip)
            return raw.add_skip(ssd_naive(SSDInputs(x, raw.step_size(dt), a, b, c))[0], x)

        return GradientCase(op, naive, inputs)

    def _causal_conv(self) -> GradientCase:
        channels = HEADS * SIZE
        inputs = [self._normal(BATCH, LENGTH, channels), self._normal(channels, 4), self._normal(channels)]
        inputs.append(self._normal(BATCH, channels, 3))
        return GradientCase(
            lambda *given: dispatch.causal_conv(ConvInputs(*given), [channels])[0][0],
            lambda *given: causal_conv_naive(ConvInputs(*given))[0],
            inputs,
        )

    def _rotary(self) -> GradientCase:
        angles = torch.randn(LENGTH, 1, SIZE // 2, device=self.device)
        weights = [self._normal(SIZE, dtype=torch.float32) for _ in range(2)]

        def with_norm(form: Callable[[HeadsInputs], tuple[Tensor, ...]]) -> Op:
            def heads(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
                norm = HeadNorm(q_weight, k_weight, 1e-5, 1e-5)
                parts = form(HeadsInputs(qkv, angles.cos(), angles.sin(), (HEADS, HEADS // 2), norm))
                return torch.cat([part.flatten(2) for part in parts], dim=-1)

            return heads

        inputs = [self._normal(BATCH, LENGTH, 2 * HEADS * SIZE), *weights]
        return GradientCase(with_norm(dispatch.attention_heads), with_norm(attention_heads_naive), inputs)

    def _attention(self) -> GradientCase:
        keys_and_values = [self._normal(BATCH, LENGTH, HEADS // 2, SIZE) for _ in range(2)]
        return GradientCase(
            lambda *given: dispatch.attention(AttentionInputs(*given)),
            lambda *given: attention_naive(AttentionInputs(*given)),
            [self._normal(BATCH, LENGTH, HEADS, SIZE), *keys_and_values],
        )

    def _cross_entropy(self) -> GradientCase:
        targets = torch.randint(1000, (BATCH * LENGTH,), device=self.device)
        inputs = [self._normal(BATCH * LENGTH, SIZE), self._normal(1000, SIZE) * SIZE**-0.5]
        return GradientCase(
            lambda hidden, weight: linear_cross_entropy(hidden, weight, targets),
            lambda hidden, weight: linear_cross_entropy_naive(hidden, weight, targets),
            inputs,
        )

    def _elementwise(self) -> GradientCase:
        inputs = [self._normal(BATCH, LENGTH, HEADS * SIZE), self._normal(HEADS * SIZE, dtype=torch.float32)]
        return GradientCase(_compiled_norm, _norm, inputs)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, 1e-6).to(x.dtype)


def _compiled_norm(x: Tensor, weight: Tensor) -> Tensor:
    if backend_of("elementwise", x) != "inductor":
        return _norm(x, weight)
    from flashslm.ops.fused.inductor import compiled

    normed: Tensor = compiled(_norm)(x, weight)
    return normed
