"""Every fused form of an operation equals its naive twin: outputs, states and the gradients of all inputs."""

import pytest
import torch
import torch.nn.functional as F

from flashslm.ops.attention import AttentionInputs, attention_naive
from flashslm.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_naive
from flashslm.ops.delta_rule import DeltaRuleInputs, delta_rule_naive
from flashslm.ops.gla import GLAInputs, gla_naive
from flashslm.ops.ssd import SSDInputs, ssd_naive
from tests.gpu.conftest import LENGTHS, TOLERANCE
from tests.op_calls import convolution_in_parts, naive_convolution_of, of_tensors

pytestmark = pytest.mark.gpu
BF16, FP32 = torch.bfloat16, torch.float32
packed_or_not = pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
every_length = pytest.mark.parametrize("length", LENGTHS)


def normal(*shape, dtype=BF16):
    return torch.randn(*shape, device="cuda").to(dtype)


def delta_inputs(length, key_size, value_size, heads=2, batch=2):
    q = normal(batch, length, heads, key_size) * key_size**-0.5
    k = F.normalize(torch.randn(batch, length, heads, key_size, device="cuda"), dim=-1).to(BF16)
    v = normal(batch, length, heads, value_size)
    beta = torch.rand(batch, length, heads, device="cuda").to(BF16)
    return [q, k, v, beta, torch.randn(1, heads, key_size, value_size, device="cuda")]


@packed_or_not
@every_length
@pytest.mark.parametrize("size", [64, 128])
def test_delta_rule(size, length, packed, assert_close, random_documents):
    from flashslm.ops.fused.linear_attention import delta_rule_fla

    documents = random_documents(2, length) if packed else None
    inputs = delta_inputs(length, size, size)
    naive, fused = (of_tensors(DeltaRuleInputs, op) for op in (delta_rule_naive, delta_rule_fla))
    assert_close(naive, fused, inputs, TOLERANCE[BF16], documents_BT=documents)


@packed_or_not
@every_length
def test_gated_delta_rule_forward(length, packed, random_documents):
    from flashslm.ops.fused.linear_attention import delta_rule_fla
    from flashslm.ops.gradient_check import relative_error

    *inputs, state = delta_inputs(length, 64, 64)
    log_decay = -F.softplus(torch.randn(2, length, 2, device="cuda"))
    state = state.expand(2, -1, -1, -1)
    documents = random_documents(2, length) if packed else None
    with torch.no_grad():
        exact = [x.double() for x in (*inputs, state)]
        expected = delta_rule_naive(DeltaRuleInputs(*exact, documents, log_decay.double()))
        actual = delta_rule_fla(DeltaRuleInputs(*inputs, state, documents, log_decay))
    assert all(relative_error(a, e) < TOLERANCE[BF16] for a, e in zip(actual, expected, strict=True))


@packed_or_not
@every_length
def test_gla(length, packed, assert_close, random_documents):
    from flashslm.ops.fused.linear_attention import gla_fla

    log_decay = F.logsigmoid(torch.randn(2, length, 2, 64, device="cuda")) / 16
    q, k, v, _, state = delta_inputs(length, 64, 128)
    documents = random_documents(2, length) if packed else None
    naive, fused = of_tensors(GLAInputs, gla_naive), of_tensors(GLAInputs, gla_fla)
    assert_close(naive, fused, [q, k, v, log_decay, state], 2 * TOLERANCE[BF16], documents_BT=documents)


@packed_or_not
@every_length
@pytest.mark.parametrize(
    "dtype, size, state_size", [(BF16, 64, 128), (BF16, 32, 64), (FP32, 64, 128)], ids=["64x128", "32x64", "fp32"]
)
def test_ssd(dtype, size, state_size, length, packed, assert_close, random_documents):
    from flashslm.ops.fused.ssd import ssd_mamba

    heads = 4
    inputs = [
        normal(2, length, heads, size, dtype=dtype),
        F.softplus(torch.randn(2, length, heads, device="cuda") - 2),
        -torch.rand(heads, device="cuda") * 15 - 1,
        normal(2, length, state_size, dtype=dtype),
        normal(2, length, state_size, dtype=dtype),
        torch.randn(1, heads, size, state_size, device="cuda"),
    ]
    documents = random_documents(2, length) if packed else None
    # The gradient of a sums over all tokens, with cancellation.
    naive, fused = of_tensors(SSDInputs, ssd_naive), of_tensors(SSDInputs, ssd_mamba)
    assert_close(naive, fused, inputs, 3 * TOLERANCE[dtype], documents_BT=documents)


@packed_or_not
@every_length
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("channels, bias, rest", [(96, True, 5), (384, False, 0)], ids=["bias-rest", "no-bias"])
def test_causal_conv(channels, bias, rest, dtype, length, packed, assert_close, random_documents):
    from flashslm.ops.fused.causal_conv import causal_conv_triton

    x, weight, state = (
        normal(2, length, channels + rest, dtype=dtype),
        normal(channels, 4),
        normal(1, channels, 3, dtype=dtype),
    )
    inputs = [x, weight.to(dtype), normal(channels, dtype=dtype) if bias else None, state]
    documents = random_documents(2, length) if packed else None

    in_parts = convolution_in_parts(causal_conv_triton, [channels // 2, channels // 3, channels // 6])
    assert_close(naive_convolution_of(channels), in_parts, inputs, TOLERANCE[dtype], documents_BT=documents)


@packed_or_not
@pytest.mark.parametrize("window", [None, 48], ids=["full", "window"])
@pytest.mark.parametrize("prefix", [0, 17, 300])
@every_length
@pytest.mark.parametrize("sizes", [(4, 4, 64), (8, 2, 128)], ids=["heads64", "gqa128"])
def test_attention(sizes, length, prefix, window, packed, assert_close, random_documents):
    from flashslm.ops.fused.attention import attention_flash

    heads, groups, size = sizes
    q = normal(2, length, heads, size)
    k, v = normal(2, prefix + length, groups, size), normal(2, prefix + length, groups, size)
    documents = random_documents(2, length) if packed else None
    options = {"documents_BT": documents, "window": window}
    naive, fused = (of_tensors(AttentionInputs, op) for op in (attention_naive, attention_flash))
    assert_close(naive, fused, [q, k, v], TOLERANCE[BF16], state=False, **options)


@pytest.mark.parametrize("tokens, vocabulary", [(1, 7), (63, 513), (257, 4097), (130, 131_072)])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
def test_linear_cross_entropy(dtype, tokens, vocabulary, assert_close):
    targets = torch.randint(vocabulary, (tokens,), device="cuda")
    targets[::5] = -100
    hidden, weight = normal(tokens, 64, dtype=dtype), normal(vocabulary, 64, dtype=dtype) * 0.3
    assert_close(
        linear_cross_entropy_naive,
        linear_cross_entropy,
        [hidden, weight],
        TOLERANCE[dtype],
        state=False,
        targets_N=targets,
    )


def test_cross_entropy_without_targets_is_zero():
    hidden, weight = normal(5, 8).requires_grad_(), normal(11, 8).requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full((5,), -100, device="cuda"))
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not weight.grad.any()
