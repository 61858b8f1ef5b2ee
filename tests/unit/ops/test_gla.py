import pytest
import torch
from torch import Tensor

from flashslm.ops.gla import GLAInputs, gla_chunked, gla_naive, gla_step
from tests.op_calls import of_tensors

NAIVE, CHUNKED = of_tensors(GLAInputs, gla_naive), of_tensors(GLAInputs, gla_chunked)

LENGTHS = (1, 2, 7, 63, 64, 65, 130)


def make_inputs(length: int, key_size: int, value_size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    batch, heads = 2, 3
    q, k = torch.randn(2, batch, length, heads, key_size, dtype=dtype)
    v = torch.randn(batch, length, heads, value_size, dtype=dtype)
    log_decay = -0.3 * torch.randn(batch, length, heads, key_size, dtype=dtype).exp()
    return [q, k, v, log_decay, torch.randn(1, heads, key_size, value_size, dtype=dtype)]


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_is_naive_with_gradients(length, with_state, packed, assert_same, random_documents):
    *inputs, state = make_inputs(length, key_size=5, value_size=6)
    documents_BT = random_documents(2, length) if packed else None
    assert_same(NAIVE, CHUNKED, [*inputs, state if with_state else None], documents_BT, 1e-10)


@pytest.mark.parametrize("key_size, value_size", [(4, 32), (32, 16), (1, 1)])
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
def test_chunked_is_naive_for_sizes(key_size, value_size, chunk_size, assert_same, random_documents):
    def chunked(*inputs, documents_BT):
        return CHUNKED(*inputs, documents_BT=documents_BT, chunk_size=chunk_size)

    assert_same(NAIVE, chunked, make_inputs(50, key_size, value_size), random_documents(2, 50), 1e-10)


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
def test_strong_decay_stays_finite(packed, assert_same, random_documents):
    """exp(-total) overflows fp32 within a chunk here: only differences of at most 0 may be exponentiated."""
    inputs = make_inputs(130, 5, 6, torch.float32)
    inputs[3] = inputs[3] * 100
    assert_same(NAIVE, CHUNKED, inputs, random_documents(2, 130) if packed else None, 1e-4)


def test_steps_are_chunked():
    q, k, v, log_decay, state = make_inputs(70, 5, 6)
    expected, last = CHUNKED(q, k, v, log_decay, state.expand(2, -1, -1, -1))
    state = state.repeat(2, 1, 1, 1)
    outputs = [gla_step(q[:, t], k[:, t], v[:, t], log_decay[:, t], state) for t in range(70)]
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("op", [NAIVE, CHUNKED])
def test_last_output_in_closed_form(op):
    """What the last of four tokens reads of each earlier one is decayed by the gates after it, not by its own."""
    q, k, v, log_decay, _ = make_inputs(4, 5, 6)
    output, _ = op(q, k, v, log_decay)
    expected = torch.zeros_like(output[:, 3])
    for j in range(4):
        left = log_decay[:, j + 1 :].sum(dim=1).exp()
        expected += (q[:, 3] * k[:, j] * left).sum(-1, keepdim=True) * v[:, j]
    torch.testing.assert_close(output[:, 3], expected)


@pytest.mark.parametrize("op", [NAIVE, CHUNKED])
def test_packed_documents_are_separate_documents(op):
    *sequence, state = make_inputs(100, 5, 6)
    state = state.repeat(2, 1, 1, 1)
    lengths = [1, 31, 32, 36]
    documents_BT = torch.repeat_interleave(torch.tensor([3, 4, 7, 9]), torch.tensor(lengths)).expand(2, 100)
    packed, last = op(*sequence, state, documents_BT)
    pieces = [op(*parts, state) for parts in zip(*(x.split(lengths, dim=1) for x in sequence), strict=True)]
    torch.testing.assert_close(packed, torch.cat([output for output, _ in pieces], dim=1))
    torch.testing.assert_close(last, pieces[-1][1])


def test_state_is_fp32_under_autocast():
    *inputs, _ = make_inputs(40, 8, 6, torch.float32)
    expected, expected_state = CHUNKED(*(x.bfloat16().float() for x in inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = CHUNKED(*(x.bfloat16() for x in inputs))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected.bfloat16())
