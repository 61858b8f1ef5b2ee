"""The engine's thread without HTTP: its order, and what it does when the engine fails."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from flashslm.inference.continuous import ContinuousBatch
from flashslm.inference.prefill import PREFILL_CHUNK
from flashslm.inference.sampling import GREEDY
from flashslm.inference.stops import StopStrings, TextStream
from flashslm.serving.generation import Failed, Finished, Generation, GenerationEvent, TextPiece
from flashslm.serving.metrics import ServerMetrics
from flashslm.serving.scheduler import BatchScheduler, EngineFailed, QueueFull


class Letters:
    """A tokenizer of one character per token."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture
def batch(make_model: Any, architecture: Any) -> ContinuousBatch:
    return ContinuousBatch(make_model(architecture), 2, 200)


@pytest.fixture
def scheduler(batch: ContinuousBatch) -> Iterator[BatchScheduler]:
    made = BatchScheduler(batch, 1, ServerMetrics())
    yield made
    if made._thread.is_alive():
        made.close()


def request(new_tokens: int, prompt: int = 3) -> tuple[Generation, "SimpleQueue[GenerationEvent]"]:
    events: SimpleQueue[GenerationEvent] = SimpleQueue()
    stream = TextStream(StopStrings(Letters(), [], ()))
    return Generation([1] * prompt, new_tokens, GREEDY, stream, events.put), events


def hold(generation: Generation, events: "SimpleQueue[GenerationEvent]", until: threading.Event) -> None:
    """The engine waits with a piece of this text, so that its end does not come before what a test does to it."""
    generation.emit = lambda event: (events.put(event), until.wait(300))[0]


def all_of(events: "SimpleQueue[GenerationEvent]") -> list[GenerationEvent]:
    found = [events.get(timeout=300)]
    while isinstance(found[-1], TextPiece):
        found.append(events.get(timeout=300))
    return found


def test_requests_beyond_rows_and_queue_are_refused_and_none_is_lost(scheduler: BatchScheduler) -> None:
    accepted = [request(5) for _ in range(3)]
    for generation, _ in accepted:
        scheduler.submit(generation)
    with pytest.raises(QueueFull, match="try again in 1 s"):
        scheduler.submit(request(5)[0])
    scheduler.start()
    for _, events in accepted:
        *pieces, end = all_of(events)
        assert len(pieces) == 5 and end == Finished("length")
    assert scheduler.metrics.registry.get_sample_value("flashslm_generated_tokens_total") == 15
    scheduler.submit(request(1)[0])


def test_a_long_prompt_does_not_hold_up_the_texts_beside_it(
    scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PREFILL_CHUNK, "cpu", 10)
    order: list[str] = []
    short, long = request(40)[0], request(1, prompt=100)[0]
    short.emit = lambda event: order.append("short")
    ended: SimpleQueue[GenerationEvent] = SimpleQueue()
    long.emit = lambda event: (order.append("long"), ended.put(event))[1]
    scheduler.submit(short)
    scheduler.submit(long)
    scheduler.start()
    ended.get(timeout=300)
    assert order.index("long") >= 9  # a token of the short text with each chunk


def test_a_cancelled_request_leaves_queue_and_row(scheduler: BatchScheduler) -> None:
    requests, cancelled = [request(150), request(150), request(3)], threading.Event()
    hold(*requests[1], cancelled)
    for generation, _ in requests:
        scheduler.submit(generation)
    requests[0][0].cancel()
    scheduler.start()
    assert all_of(requests[0][1]) == [Failed("the request was cancelled")]
    assert isinstance(requests[1][1].get(timeout=300), TextPiece)
    requests[1][0].cancel()
    cancelled.set()
    assert isinstance(all_of(requests[1][1])[-1], Failed)
    assert all_of(requests[2][1])[-1] == Finished("length")
    assert scheduler.metrics.registry.get_sample_value("flashslm_requests_running") == 0


def test_an_error_of_the_engine_fails_every_request_and_the_next(
    scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(rows: Any) -> list[int]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(scheduler.batch, "advance", fail)
    monkeypatch.setattr(scheduler.batch, "free", fail)
    requests = [request(5) for _ in range(3)]
    for generation, _ in requests:
        scheduler.submit(generation)
    scheduler.start()
    for _, events in requests:
        assert all_of(events)[-1] == Failed("the engine failed: RuntimeError: out of order")
    with pytest.raises(EngineFailed, match="out of order"):
        scheduler.submit(request(5)[0])


def test_closing_fails_what_is_not_finished(scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    (generation, events), closing = request(150), threading.Event()
    hold(generation, events, closing)
    scheduler.submit(generation)
    scheduler.start()
    events.get(timeout=300)
    notify = scheduler._changed.notify
    monkeypatch.setattr(scheduler._changed, "notify", lambda: (closing.set(), notify()))
    scheduler.close()
    assert isinstance(all_of(events)[-1], Failed)
