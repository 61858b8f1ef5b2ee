"""Whether this machine's kernels have right gradients: each against its naive backend in fp32, on the device.

Sets of versions exist whose kernels run and train on wrong gradients: flash-linear-attention before 0.6.0 on Hopper
(the delta rule's dk, 54 % off), the gated delta rule with Triton 3.4 to 3.7.0, and inductor's norms since torch 2.10
unless its mixed-order reduction is off. The check measures and does not trust a list; the list says why.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.attention import AttentionInputs, attention_naive
from flashslm.ops.causal_conv import ConvInputs, causal_conv_naive
from flashslm.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_naive
from flashslm.ops.delta_rule import DeltaRuleInputs, delta_rule_naive, normalise_heads
from flashslm.ops.kernel_cache import cache_facts
from flashslm.ops.rotary import HeadNorm, HeadsInputs, attention_heads_naive
from flashslm.ops.ssd import RawScan, SSDInputs, ssd_naive

TOLERANCE = 0.01  # of ||gradient - naive gradient|| / ||naive gradient||, the largest of an operation's inputs
BATCH, LENGTH, HEADS, SIZE = 2, 192, 4, 128

Op = Callable[..., Tensor]


class WrongGradient(RuntimeError):
    """Kernels of this set of versions train on wrong gradients here; the message names the set and the operations."""


class GradientError(NamedTuple):
    """`relative` is infinite where the kernel did not run; `problem` then says why."""

    operation: str
    relative: float
    time_ms: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.relative <= TOLERANCE


def check_gradients() -> list[GradientError]:
    """Measure every operation that training takes on CUDA. Needs a GPU; compiles kernels where they are not cached."""
    torch.manual_seed(0)
    return [_measure(*case) for case in _cases()]


def require_right_gradients() -> None:
    """Raise WrongGradient if one of them is off by more than `TOLERANCE`."""
    wrong = [error for error in check_gradients() if not error.passed]
    if wrong:
        versions = ", ".join(f"{name} {version or 'absent'}" for name, version in cache_facts().items())
        found = "; ".join(f"{e.operation} {e.problem or f'is off by {e.relative:.1%}'}" for e in wrong)
        raise WrongGradient(f"{found} with {versions}: take other versions, or torch's backends of these operations")


def _measure(operation: str, fused: Op, naive: Op, inputs: list[Tensor]) -> GradientError:
    started = time.perf_counter()
    try:
        found = _gradients(fused, inputs)
    except Exception as error:  # whatever the library raises is what is to be reported
        problem = f"does not run: {type(error).__name__}: {error}"
        return GradientError(operation, math.inf, 1e3 * (time.perf_counter() - started), problem)
    expected = _gradients(naive, [x.float() for x in inputs])
    # Each input counts alike: a wrong gradient of a small tensor must not hide behind a large one.
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    return GradientError(operation, max(errors), 1e3 * (time.perf_counter() - started))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; infinite for anything that is not a number."""
    error = float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6))
    return error if math.isfinite(error) else math.inf


def _gradients(op: Op, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = op(*leaves)
    generator = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=generator, device=output.device).bfloat16().float()
    return list(torch.autograd.grad((output.float() * weight).sum(), leaves))


def _cases() -> Iterator[tuple[str, Op, Op, list[Tensor]]]:
    yield _delta_rule(gated=False)
    yield _delta_rule(gated=True)
    yield _ssd()
    yield _causal_conv()
    yield _attention_heads()
    yield _attention()
    yield _loss()
    yield _compiled_norm()


def _normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def _delta_rule(gated: bool) -> tuple[str, Op, Op, list[Tensor]]:
    from flashslm.ops.fused.linear_attention import delta_rule_fla

    heads = [_normal(BATCH, LENGTH, HEADS, SIZE) for _ in range(3)]
    inputs = [*heads, torch.rand(BATCH, LENGTH, HEADS, device="cuda").bfloat16()]
    if gated:
        inputs.append(-0.1 * torch.rand(BATCH, LENGTH, HEADS, device="cuda"))

    def fused(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
        return delta_rule_fla(DeltaRuleInputs(q, k, v, beta, log_decay_BTH=decay), normalise=True)[0]

    def naive(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
        return delta_rule_naive(DeltaRuleInputs(*normalise_heads(q, k), v, beta, log_decay_BTH=decay))[0]

    return ("gated_delta_rule" if gated else "delta_rule"), fused, naive, inputs


def _ssd() -> tuple[str, Op, Op, list[Tensor]]:
    from flashslm.ops.fused.ssd import ssd_mamba

    size = SIZE // 2
    b, c = (_normal(BATCH, LENGTH, SIZE) for _ in range(2))
    inputs = [_normal(BATCH, LENGTH, HEADS, size), _normal(BATCH, LENGTH, HEADS), b * SIZE**-0.5, c]
    inputs += [
        -torch.rand(HEADS, device="cuda") - 0.5,
        _normal(HEADS, dtype=torch.float32) - 2,
        torch.ones_like(b[0, 0, :HEADS]).float(),
    ]

    def fused(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
        return ssd_mamba(SSDInputs(x, dt, a, b, c), RawScan(bias, skip))[0]

    def naive(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
        raw = RawScan(bias, skip)
        return raw.add_skip(ssd_naive(SSDInputs(x, raw.step_size(dt), a, b, c))[0], x)

    return "ssd", fused, naive, inputs


def _causal_conv() -> tuple[str, Op, Op, list[Tensor]]:
    from flashslm.ops.fused.causal_conv import causal_conv_triton

    channels = HEADS * SIZE
    inputs = [_normal(BATCH, LENGTH, channels), _normal(channels, 4), _normal(channels), _normal(BATCH, channels, 3)]

    def fused(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        return causal_conv_triton(ConvInputs(x, weight, bias, state))[0][0]

    def naive(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        return causal_conv_naive(ConvInputs(x, weight, bias, state))[0]

    return "causal_conv", fused, naive, inputs


def _attention_heads() -> tuple[str, Op, Op, list[Tensor]]:
    from flashslm.ops.fused.rotary import attention_heads_triton

    angles = torch.randn(LENGTH, 1, SIZE // 2, device="cuda")
    inputs = [_normal(BATCH, LENGTH, 2 * HEADS * SIZE), *(_normal(SIZE, dtype=torch.float32) for _ in range(2))]

    def op(form: Callable[..., tuple[Tensor, ...]]) -> Op:
        def heads(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
            norm = HeadNorm(q_weight, k_weight, 1e-5, 1e-5)
            parts = form(HeadsInputs(qkv, angles.cos(), angles.sin(), (HEADS, HEADS // 2), norm))
            return torch.cat([part.flatten(2) for part in parts], dim=-1)

        return heads

    return "rotary", op(attention_heads_triton), op(attention_heads_naive), inputs


def _attention() -> tuple[str, Op, Op, list[Tensor]]:
    from flashslm.ops.fused.attention import attention_flash

    inputs = [_normal(BATCH, LENGTH, HEADS, SIZE), *(_normal(BATCH, LENGTH, HEADS // 2, SIZE) for _ in range(2))]

    def op(form: Callable[[AttentionInputs], Tensor]) -> Op:
        return lambda q, k, v: form(AttentionInputs(q, k, v))

    return "attention", op(attention_flash), op(attention_naive), inputs


def _loss() -> tuple[str, Op, Op, list[Tensor]]:
    targets = torch.randint(1000, (BATCH * LENGTH,), device="cuda")
    inputs = [_normal(BATCH * LENGTH, SIZE), _normal(1000, SIZE) * SIZE**-0.5]

    def op(form: Op) -> Op:
        return lambda hidden, weight: form(hidden, weight, targets)

    return "cross_entropy", op(linear_cross_entropy), op(linear_cross_entropy_naive), inputs


def _compiled_norm() -> tuple[str, Op, Op, list[Tensor]]:
    from flashslm.ops.fused.inductor import compiled

    inputs = [_normal(BATCH, LENGTH, HEADS * SIZE), _normal(HEADS * SIZE, dtype=torch.float32)]
    return "elementwise", compiled(_norm), _norm, inputs


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, 1e-6).to(x.dtype)
