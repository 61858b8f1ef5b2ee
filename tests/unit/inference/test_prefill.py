"""Prefill reads prompts in chunks, and begins again whenever it is asked to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


@pytest.fixture
def recording(prefill: Prefill, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A prefill that records graphs, in which recording fails at its end; the streams that are set."""
    streams: list[str] = []

    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: capture failed\nmore lines")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "own")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    prefill.uses_graphs, prefill.pool = True, (0, 0)
    prefill.tokens = torch.zeros(GRAPH_TOKENS, dtype=torch.int64)
    prefill.length = torch.ones(1, dtype=torch.int64)
    return streams


def read_right(prefill: Prefill, model: HybridLM, lengths: Sequence[int]) -> None:
    for length in lengths:
        tokens_BT = torch.randint(50, (2, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected_BV = model.logits(model(tokens_BT)[:, -1])
        torch.testing.assert_close(prefill(tokens_BT), expected_BV)
        assert prefill.cache.lengths_B.tolist() == [6 + length] * 2


def test_prompts_are_read_without_graphs_once_recording_has_failed(
    prefill: Prefill, model: HybridLM, recording: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    read_right(prefill, model, [9, 11, 30])
    assert recording == ["own"] and not prefill.graphs
    (record,) = caplog.records
    assert record.getMessage().endswith("nor any more: CUDA error: capture failed")


@pytest.mark.usefixtures("recording")
def test_prompts_are_read_in_chunks_where_memory_runs_out(
    prefill: Prefill, model: HybridLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lack(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prefill, "_read_padded", lack)
    monkeypatch.setitem(PREFILL_CHUNK, "cpu", 4)
    read_right(prefill, model, [11, 3])
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("recording")
def test_a_graph_that_was_recorded_stays_in_use(prefill: Prefill, model: HybridLM) -> None:
    replayed = []

    class Recorded:
        def replay(self) -> None:
            replayed.append(prefill.length.item())
            with torch.inference_mode():
                prefill._read_padded(40)

    read_right(prefill, model, [9])
    prefill.graphs[40] = Recorded()  # type: ignore[assignment]
    read_right(prefill, model, [9, 30])
    assert replayed == [9, 30]
