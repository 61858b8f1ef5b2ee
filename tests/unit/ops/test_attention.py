import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.attention import AttentionInputs, attention_naive, attention_sdpa, attention_step
from tests.op_calls import of_tensors

NAIVE, SDPA = of_tensors(AttentionInputs, attention_naive), of_tensors(AttentionInputs, attention_sdpa)


def make_inputs(length: int, prefix: int, heads: int = 4, groups: int = 2, size: int = 8) -> list[Tensor]:
    q = torch.randn(2, length, heads, size, dtype=torch.float64)
    k, v = torch.randn(2, 2, prefix + length, groups, size, dtype=torch.float64)
    return [q, k, v]


@pytest.mark.parametrize("window", [None, 2, 4, 13])
@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("length, prefix", [(1, 0), (1, 9), (7, 0), (7, 5), (65, 3)])
def test_sdpa_is_naive_with_gradients(length, prefix, heads, groups, packed, window, assert_same, random_documents):
    def wrap(op):
        return lambda *inputs, documents_BT: (op(*inputs[:3], documents_BT, window=window),)

    inputs = [*make_inputs(length, prefix, heads, groups), None]
    documents_BT = random_documents(2, length) if packed else None
    assert_same(wrap(NAIVE), wrap(SDPA), inputs, documents_BT, 1e-10)


def test_naive_weights_by_hand():
    """Two queries, one head: the first sees one key, the second weighs both by exp(q·k / sqrt(K))."""
    q, k, v = make_inputs(2, 0, heads=1, groups=1, size=4)
    output = NAIVE(q, k, v)[:, :, 0]
    scores = (q[:, 1, 0, None] * k[:, :, 0]).sum(-1) / math.sqrt(4)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(output[:, 0], v[:, 0, 0])
    torch.testing.assert_close(output[:, 1], (weights[..., None] * v[:, :, 0]).sum(1))


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("prefix", [0, 5])
def test_a_window_sees_itself_and_the_keys_before_it(prefix, window):
    """Query t stands at position prefix + t: attention over the window's positions up to there, one query by one."""
    q, k, v = make_inputs(9, prefix)
    output = NAIVE(q, k, v, window=window)
    for t in range(9):
        seen = slice(max(0, prefix + t - window + 1), prefix + t + 1)
        expected = F.scaled_dot_product_attention(
            q[:, t, :, None], *(x[:, seen].transpose(1, 2) for x in (k, v)), enable_gqa=True
        )
        torch.testing.assert_close(output[:, t], expected[:, :, 0])


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("op", [NAIVE, SDPA])
def test_packed_documents_are_separate_documents_after_the_prefix(op, window):
    q, k, v = make_inputs(20, 5)
    lengths = [1, 8, 11]
    documents_BT = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, 20)
    packed = op(q, k, v, documents_BT, window)
    pieces = [
        op(q_i, torch.cat([k[:, :5], k_i], dim=1), torch.cat([v[:, :5], v_i], dim=1), window=window)
        for q_i, k_i, v_i in zip(*(x[:, -20:].split(lengths, dim=1) for x in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(pieces, dim=1))


def test_steps_are_naive_at_different_lengths():
    """Each sequence attends up to its own length; what lies beyond it in the cache has no influence."""
    q, k, v = make_inputs(12, 0)
    expected = NAIVE(q, k, v)
    lengths_B = torch.tensor([0, 4])
    keys, values = (torch.full((2, 2, 16, 8), 1e3, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    keys[1, :4], values[1, :4] = k[1, :4], v[1, :4]
    rows = torch.arange(2)
    for _ in range(8):
        output = attention_step(q[rows, lengths_B], k[rows, lengths_B], v[rows, lengths_B], keys, values, lengths_B)
        torch.testing.assert_close(output, expected[rows, lengths_B])
        lengths_B += 1
    torch.testing.assert_close(keys[1, :12], k[1])


@pytest.mark.parametrize("slots", [5, 8, 40])
def test_steps_on_a_ring_are_naive_with_a_window(slots):
    """Sequences of different lengths on a ring that overflows, is larger than the window, or holds every position."""
    q, k, v = make_inputs(30, 0)
    expected = NAIVE(q, k, v, window=5)
    keys, values = (torch.full((2, 2, slots, 8), 1e3, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    lengths_B, rows = torch.tensor([0, 3]), torch.arange(2)
    keys[1, :3], values[1, :3] = k[1, :3], v[1, :3]
    for _ in range(27):
        token = (x[rows, lengths_B] for x in (q, k, v))
        output = attention_step(*token, keys, values, lengths_B, window=5)
        torch.testing.assert_close(output, expected[rows, lengths_B])
        lengths_B += 1
