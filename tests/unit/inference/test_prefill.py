"""Prefill reads prompts in chunks, and begins again whenever it is asked to."""

import pytest
import torch

from flashslm.inference.prefill import GRAPH_TOKENS, PREFILL_CHUNK, Prefill, padded_length
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM


@pytest.fixture
def prefill(model: HybridLM) -> Prefill:
    cache = Cache.allocate(model.architecture, 2, 40, dtype=torch.float64)
    return Prefill(model, cache, model.prefix_states())


def test_padded_lengths_waste_little_and_are_few() -> None:
    lengths = range(1, GRAPH_TOKENS + 1)
    assert all(length <= padded_length(length) < max(1.25 * length, length + 64) for length in lengths)
    assert len({padded_length(length) for length in lengths}) <= 28


def test_chunk_by_chunk(prefill: Prefill, model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is left in its middle does not matter to the next one."""
    monkeypatch.setitem(PREFILL_CHUNK, "cpu", 4)
    tokens_BT = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(4))
    prefill.begin(tokens_BT.flip(1))
    assert not prefill.advance()
    prefill.begin(tokens_BT)
    assert [prefill.advance() for _ in range(3)] == [False, False, True]
    with torch.no_grad():
        expected_BV = model.logits(model(tokens_BT)[:, -1])
    torch.testing.assert_close(prefill.logits_BV, expected_BV)
    torch.testing.assert_close(prefill(tokens_BT), expected_BV)
    assert prefill.cache.lengths_B.tolist() == [6 + 11] * 2


def test_a_cpu_has_no_graphs(prefill: Prefill) -> None:
    assert not prefill.uses_graphs and not prefill.graphs
