import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.delta_rule import (
    DeltaRuleInputs,
    DeltaRuleToken,
    delta_rule_chunked,
    delta_rule_naive,
    delta_rule_step,
)

LENGTHS = (1, 7, 63, 64, 65, 130)
GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def make_inputs(
    length: int, key_size: int, value_size: int, gated: bool = False, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q, k, v, beta, with `gated` the log decay, and the initial state that all sequences share."""
    batch, heads = 2, 3
    q, k = torch.randn(2, batch, length, heads, key_size, dtype=dtype)
    v = torch.randn(batch, length, heads, value_size, dtype=dtype)
    beta = torch.rand(batch, length, heads, dtype=dtype)
    log_decay = [-0.3 * torch.randn(batch, length, heads, dtype=dtype).exp()] if gated else []
    state = torch.randn(1, heads, key_size, value_size, dtype=dtype)
    return [q, F.normalize(k, dim=-1), v, beta, *log_decay, state]


def ordered(op):
    """`op` on inputs in the order of `make_inputs`."""

    def call(q, k, v, beta, *rest, documents_BT=None, **options):
        *log_decay, state = rest
        return op(DeltaRuleInputs(q, k, v, beta, state, documents_BT, *log_decay), **options)

    return call


NAIVE, CHUNKED = ordered(delta_rule_naive), ordered(delta_rule_chunked)


@GATED
@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_is_naive_with_gradients(length, with_state, packed, gated, assert_same, random_documents):
    *inputs, state = make_inputs(length, 8, 6, gated)
    documents_BT = random_documents(2, length) if packed else None
    assert_same(NAIVE, CHUNKED, [*inputs, state if with_state else None], documents_BT, 1e-10)


@GATED
@pytest.mark.parametrize("key_size, value_size", [(4, 32), (32, 32), (64, 16)])
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
def test_chunked_is_naive_for_sizes(key_size, value_size, chunk_size, gated, assert_same, random_documents):
    def chunked(*inputs, documents_BT):
        return CHUNKED(*inputs, documents_BT=documents_BT, chunk_size=chunk_size)

    inputs = make_inputs(50, key_size, value_size, gated)
    assert_same(NAIVE, chunked, inputs, random_documents(2, 50), 1e-10)


@GATED
def test_chunked_is_naive_in_fp32(gated, assert_same):
    assert_same(NAIVE, CHUNKED, make_inputs(200, 32, 32, gated, torch.float32), None, 1e-4)


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
def test_strong_decay_stays_finite(packed, assert_same, random_documents):
    """exp(-total) overflows fp32 within a chunk here: only differences below the diagonal may be exponentiated."""
    inputs = make_inputs(130, 8, 6, True, torch.float32)
    inputs[4] = inputs[4] * 100
    assert_same(NAIVE, CHUNKED, inputs, random_documents(2, 130) if packed else None, 1e-4)


@pytest.mark.parametrize("op", [delta_rule_naive, delta_rule_chunked])
def test_no_decay_is_the_plain_rule(op):
    *inputs, state = make_inputs(40, 8, 6)
    state = state.repeat(2, 1, 1, 1)
    gated = op(DeltaRuleInputs(*inputs, state, None, torch.zeros_like(inputs[3])))
    torch.testing.assert_close(gated, op(DeltaRuleInputs(*inputs, state)))


@GATED
def test_steps_are_chunked(gated):
    q, k, v, beta, *log_decay, state = make_inputs(70, 8, 6, gated)
    expected, last = CHUNKED(q, k, v, beta, *log_decay, state.expand(2, -1, -1, -1))
    state = state.repeat(2, 1, 1, 1)
    outputs = [
        delta_rule_step(DeltaRuleToken(q[:, t], k[:, t], v[:, t], beta[:, t], state, *(g[:, t] for g in log_decay)))
        for t in range(70)
    ]
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
    torch.testing.assert_close(state, last)


@GATED
def test_beta_one_recalls_what_was_written(gated):
    """With beta = 1 and a unit key, the state returns the value just written, whatever was there before."""
    _, k, v, _, *log_decay, state = make_inputs(9, 8, 6, gated)
    ones = torch.ones(2, 9, 3, dtype=torch.float64)
    output, _ = NAIVE(k, k, v, ones, *log_decay, state.expand(2, -1, -1, -1))
    torch.testing.assert_close(output, v)


def test_the_decay_comes_before_the_update():
    """One token by hand: (1 - beta k k^T) exp(g) S + beta k v^T (Yang et al. 2024, arXiv 2412.06464, equation 10)."""
    q, k, v, beta, log_decay, state = make_inputs(1, 8, 6, gated=True)
    output, last = NAIVE(q, k, v, beta, log_decay, state.expand(2, -1, -1, -1))
    k, v, b = k[0, 0, 0], v[0, 0, 0], beta[0, 0, 0]
    erased = torch.eye(8, dtype=torch.float64) - b * torch.outer(k, k)
    expected = erased @ (log_decay[0, 0, 0].exp() * state[0, 0]) + b * torch.outer(k, v)
    torch.testing.assert_close(last[0, 0], expected)
    torch.testing.assert_close(output[0, 0, 0], expected.T @ q[0, 0, 0])


@GATED
@pytest.mark.parametrize("op", [NAIVE, CHUNKED], ids=["naive", "chunked"])
def test_packed_documents_are_separate_documents(op, gated):
    *sequence, state = make_inputs(100, 8, 6, gated)
    state = state.repeat(2, 1, 1, 1)
    lengths = [1, 31, 32, 36]
    documents_BT = torch.repeat_interleave(torch.tensor([3, 4, 7, 9]), torch.tensor(lengths)).expand(2, 100)
    packed, last = op(*sequence, state, documents_BT=documents_BT)
    pieces = [op(*parts, state) for parts in zip(*(x.split(lengths, dim=1) for x in sequence), strict=True)]
    torch.testing.assert_close(packed, torch.cat([output for output, _ in pieces], dim=1))
    torch.testing.assert_close(last, pieces[-1][1])


@GATED
def test_state_is_fp32_under_autocast(gated):
    *inputs, _ = make_inputs(40, 8, 6, gated, torch.float32)
    expected, expected_state = CHUNKED(*(x.bfloat16().float() for x in inputs), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = CHUNKED(*(x.bfloat16() for x in inputs), None)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected.bfloat16())
