import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.causal_conv import ConvInputs, causal_conv_naive, causal_conv_shifted, causal_conv_step
from flashslm.ops.dispatch import causal_conv
from tests.op_calls import convolution_in_parts, interpreted, naive_convolution_of, of_tensors

NAIVE, SHIFTED = of_tensors(ConvInputs, causal_conv_naive), of_tensors(ConvInputs, causal_conv_shifted)


def make_inputs(length: int, channels: int = 10) -> list[Tensor]:
    x = torch.randn(2, length, channels, dtype=torch.float64)
    weight = torch.randn(channels, 4, dtype=torch.float64)
    bias = torch.randn(channels, dtype=torch.float64)
    return [x, weight, bias, torch.randn(1, channels, 3, dtype=torch.float64)]


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("length", (1, 2, 3, 4, 7, 65))
def test_fast_is_naive_with_gradients(length, with_bias, with_state, packed, assert_same, random_documents):
    x, weight, bias, state = make_inputs(length)
    inputs = [x, weight, bias if with_bias else None, state if with_state else None]
    assert_same(NAIVE, SHIFTED, inputs, random_documents(2, length) if packed else None, 1e-12)


@pytest.mark.parametrize("rest", [1, 3])
def test_channels_without_a_weight_are_handed_through(rest, assert_same, random_documents):
    x, weight, bias, state = make_inputs(7)
    inputs = [torch.cat([x, torch.randn(2, 7, rest, dtype=x.dtype)], dim=-1), weight, bias, state]
    in_parts = convolution_in_parts(causal_conv, [3, 5, 2])
    assert_same(naive_convolution_of(10), in_parts, inputs, random_documents(2, 7), 1e-12)


@interpreted
@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("channels, bias, rest", [(96, True, 5), (96, False, 16), (96, True, 8), (30, False, 0)])
@pytest.mark.parametrize("length", [1, 3, 130])
def test_the_fused_form_is_naive_under_the_interpreter(
    length, channels, bias, rest, packed, assert_same, random_documents
):
    """With rows that are multiples of 1, 2, 8 and 16 channels."""
    from flashslm.ops.fused.causal_conv import causal_conv_triton

    x, weight, biases, state = (value.float() for value in make_inputs(length, channels + rest))
    inputs = [x, weight[:channels], biases[:channels] if bias else None, state[:, :channels]]
    in_parts = convolution_in_parts(causal_conv_triton, [channels // 2, channels // 3, channels // 6])
    documents = random_documents(2, length) if packed else None
    assert_same(naive_convolution_of(channels), in_parts, inputs, documents, 1e-4)


def test_documents_shorter_than_the_window(assert_same):
    documents_BT = torch.tensor([[0, 1, 2, 2, 3, 3, 3, 4], [0, 0, 0, 1, 1, 2, 3, 3]])
    assert_same(NAIVE, SHIFTED, make_inputs(8), documents_BT, 1e-12)


def test_naive_is_a_padded_convolution():
    x, weight, bias, _ = make_inputs(20)
    expected = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=10)).mT
    output, state = NAIVE(x, weight, bias)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(state, x[:, -3:].mT)


def test_steps_are_the_sequence():
    x, weight, bias, state = make_inputs(11)
    expected, last = SHIFTED(x, weight, bias, state.expand(2, -1, -1))
    state = state.repeat(2, 1, 1)
    outputs = [causal_conv_step(x[:, t], weight, bias, state) for t in range(11)]
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
    torch.testing.assert_close(state, last)


def test_bf16_sums_in_fp32():
    x, weight, bias, _ = (v.bfloat16() for v in make_inputs(20))
    expected, _ = NAIVE(x.float(), weight.float(), bias.float())
    torch.testing.assert_close(SHIFTED(x, weight, bias)[0], expected.bfloat16())


@pytest.mark.parametrize("form", [causal_conv_naive, causal_conv_shifted])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("with_state", [False, True])
def test_the_state_behind_a_number_of_inputs(length, with_state, form):
    """Of nine inputs the first `length` count; their outputs are what they are without the others."""
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 4)
    before = torch.randn(2, 5, 3) if with_state else None
    y, state = form(ConvInputs(x, weight, None, before, length=torch.tensor([length])))
    expected_y, expected = form(ConvInputs(x[:, :length], weight, None, before))
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(y[:, :length], expected_y)
