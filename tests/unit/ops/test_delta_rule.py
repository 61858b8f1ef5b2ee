import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.delta_rule import delta_rule_chunked, delta_rule_naive, delta_rule_step

LENGTHS = (1, 7, 63, 64, 65, 130)


def make_inputs(length: int, key_size: int, value_size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    batch, heads = 2, 3
    q, k = torch.randn(2, batch, length, heads, key_size, dtype=dtype)
    v = torch.randn(batch, length, heads, value_size, dtype=dtype)
    beta = torch.rand(batch, length, heads, dtype=dtype)
    return [q, F.normalize(k, dim=-1), v, beta, torch.randn(1, heads, key_size, value_size, dtype=dtype)]


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_is_naive_with_gradients(length, with_state, packed, assert_same, random_documents):
    inputs = make_inputs(length, key_size=8, value_size=6)
    documents_BT = random_documents(2, length) if packed else None
    assert_same(
        delta_rule_naive, delta_rule_chunked, inputs if with_state else [*inputs[:4], None], documents_BT, 1e-10
    )


@pytest.mark.parametrize("key_size, value_size", [(4, 32), (32, 32), (64, 16)])
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
def test_chunked_is_naive_for_sizes(key_size, value_size, chunk_size, assert_same, random_documents):
    def chunked(*inputs, documents_BT):
        return delta_rule_chunked(*inputs, documents_BT=documents_BT, chunk_size=chunk_size)

    inputs = make_inputs(50, key_size, value_size)
    assert_same(delta_rule_naive, chunked, inputs, random_documents(2, 50), 1e-10)


def test_chunked_is_naive_in_fp32(assert_same):
    assert_same(delta_rule_naive, delta_rule_chunked, make_inputs(200, 32, 32, torch.float32), None, 1e-4)


def test_steps_are_chunked():
    q, k, v, beta, state = make_inputs(70, 8, 6)
    expected, last = delta_rule_chunked(q, k, v, beta, state.expand(2, -1, -1, -1))
    state = state.repeat(2, 1, 1, 1)
    outputs = [delta_rule_step(q[:, t], k[:, t], v[:, t], beta[:, t], state) for t in range(70)]
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
    torch.testing.assert_close(state, last)


def test_beta_one_recalls_what_was_written():
    """With beta = 1 and a unit key, the state returns the value just written, whatever was there before."""
    _, k, v, _, state = make_inputs(9, 8, 6)
    output, _ = delta_rule_naive(k, k, v, torch.ones(2, 9, 3, dtype=torch.float64), state.expand(2, -1, -1, -1))
    torch.testing.assert_close(output, v)


@pytest.mark.parametrize("op", [delta_rule_naive, delta_rule_chunked])
def test_packed_documents_are_separate_documents(op):
    *sequence, state = make_inputs(100, 8, 6)
    state = state.repeat(2, 1, 1, 1)
    lengths = [1, 31, 32, 36]
    documents_BT = torch.repeat_interleave(torch.tensor([3, 4, 7, 9]), torch.tensor(lengths)).expand(2, 100)
    packed, last = op(*sequence, state, documents_BT)
    pieces = [op(*parts, state) for parts in zip(*(x.split(lengths, dim=1) for x in sequence), strict=True)]
    torch.testing.assert_close(packed, torch.cat([output for output, _ in pieces], dim=1))
    torch.testing.assert_close(last, pieces[-1][1])


def test_state_is_fp32_under_autocast():
    inputs = make_inputs(40, 8, 6, torch.float32)[:4]
    expected, expected_state = delta_rule_chunked(*(x.bfloat16().float() for x in inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = delta_rule_chunked(*(x.bfloat16() for x in inputs))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected.bfloat16())
