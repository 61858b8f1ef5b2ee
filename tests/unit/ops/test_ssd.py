import pytest
import torch
from torch import Tensor

from flashslm.ops.ssd import SSDInputs, SSDToken, ssd_chunked, ssd_naive, ssd_step
from tests.op_calls import of_tensors

NAIVE, CHUNKED = of_tensors(SSDInputs, ssd_naive), of_tensors(SSDInputs, ssd_chunked)

LENGTHS = (1, 7, 63, 64, 65, 130)


def make_inputs(length: int, head_dim: int, state_size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    batch, heads = 2, 3
    x = torch.randn(batch, length, heads, head_dim, dtype=dtype)
    dt = torch.randn(batch, length, heads, dtype=dtype).exp() * 0.3
    a = -torch.randn(heads, dtype=dtype).exp()
    b, c = torch.randn(2, batch, length, state_size, dtype=dtype)
    return [x, dt, a, b, c, torch.randn(1, heads, head_dim, state_size, dtype=dtype)]


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_is_naive_with_gradients(length, with_state, packed, assert_same, random_documents):
    inputs = make_inputs(length, head_dim=6, state_size=5)
    documents_BT = random_documents(2, length) if packed else None
    assert_same(NAIVE, CHUNKED, inputs if with_state else [*inputs[:5], None], documents_BT, 1e-10)


@pytest.mark.parametrize("head_dim, state_size", [(4, 32), (32, 16), (1, 1)])
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
def test_chunked_is_naive_for_sizes(head_dim, state_size, chunk_size, assert_same, random_documents):
    def chunked(*inputs, documents_BT):
        return CHUNKED(*inputs, documents_BT=documents_BT, chunk_size=chunk_size)

    assert_same(NAIVE, chunked, make_inputs(50, head_dim, state_size), random_documents(2, 50), 1e-10)


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
def test_strong_decay_stays_finite(packed, assert_same, random_documents):
    """exp(-total) overflows fp32 within a chunk here: only differences below the diagonal may be exponentiated."""
    inputs = make_inputs(130, 6, 5, torch.float32)
    inputs[1] = inputs[1] * 100
    assert_same(NAIVE, CHUNKED, inputs, random_documents(2, 130) if packed else None, 1e-4)


def test_steps_are_chunked():
    x, dt, a, b, c, state = make_inputs(70, 6, 5)
    expected, last = CHUNKED(x, dt, a, b, c, state.expand(2, -1, -1, -1))
    state = state.repeat(2, 1, 1, 1)
    outputs = [ssd_step(SSDToken(x[:, t], dt[:, t], a, b[:, t], c[:, t], state)) for t in range(70)]
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
    torch.testing.assert_close(state, last)


def test_first_output_in_closed_form():
    x, dt, a, b, c, state = make_inputs(1, 6, 5)
    output, _ = NAIVE(x, dt, a, b, c, state.expand(2, -1, -1, -1))
    written = (dt[:, 0] * (b * c).sum(-1))[..., None] * x[:, 0]
    kept = torch.exp(dt[:, 0] * a)[..., None] * (state[0] @ c[:, 0, None, :, None])[..., 0]
    torch.testing.assert_close(output[:, 0], written + kept)


@pytest.mark.parametrize("op", [NAIVE, CHUNKED])
def test_packed_documents_are_separate_documents(op):
    x, dt, a, b, c, state = make_inputs(100, 6, 5)
    state = state.repeat(2, 1, 1, 1)
    lengths = [1, 31, 32, 36]
    documents_BT = torch.repeat_interleave(torch.tensor([3, 4, 7, 9]), torch.tensor(lengths)).expand(2, 100)
    packed, last = op(x, dt, a, b, c, state, documents_BT)
    cut = zip(*(v.split(lengths, dim=1) for v in (x, dt, b, c)), strict=True)
    pieces = [op(x_i, dt_i, a, b_i, c_i, state) for x_i, dt_i, b_i, c_i in cut]
    torch.testing.assert_close(packed, torch.cat([output for output, _ in pieces], dim=1))
    torch.testing.assert_close(last, pieces[-1][1])
