"""The thread that owns the engine: it takes requests as they arrive, decodes them in one batch and frees their rows."""

import logging
from collections import deque
from math import ceil
from threading import Condition, Thread
from time import perf_counter

from flashslm.inference.continuous import ContinuousBatch
from flashslm.serving.generation import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    GenerationEvent,
    TextPiece,
    TokenScore,
)
from flashslm.serving.metrics import ServerMetrics

logger = logging.getLogger(__name__)
_WEIGHT_OF_LAST = 0.2  # in the moving average of what a request takes


class QueueFull(Exception):
    """As many requests are waiting as may; `retry_after_s` is when a row is likely to be free."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"all rows are taken and the queue is full: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class EngineFailed(Exception):
    """The engine has raised an error and serves no more."""


class BatchScheduler:
    """Continuous batching by arrival, the first request first. A long prompt is prefilled by chunks between steps."""

    def __init__(self, batch: ContinuousBatch, max_waiting: int, metrics: ServerMetrics) -> None:
        self.batch, self.max_waiting, self.metrics = batch, max_waiting, metrics
        self.rows: list[Generation | None] = [None] * len(batch.tokens_B)
        self.waiting: deque[Generation] = deque()
        self.prefilling: Generation | None = None
        self.failure = ""
        self._request_s = 1.0  # moving average, from a request's acceptance to its end
        self._changed, self._is_closing = Condition(), False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; requests that are not finished fail."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, generation: Generation) -> None:
        """Raises QueueFull when no more may wait, EngineFailed when the engine is out of order."""
        with self._changed:
            if self.failure or self._is_closing:
                raise EngineFailed(self.failure or "the server is closing")
            if len(self._accepted()) >= len(self.rows) + self.max_waiting:
                raise QueueFull(ceil(max(1.0, self._request_s / len(self.rows))))
            self.waiting.append(generation)
            self._count()
            self._changed.notify()

    def _accepted(self) -> list[Generation]:
        """All requests that have not ended."""
        prefilling = [self.prefilling] if self.prefilling else []
        return [*self.waiting, *prefilling, *(row for row in self.rows if row)]

    def _count(self) -> None:
        self.metrics.waiting.set(len(self.waiting))
        self.metrics.running.set(len(self._accepted()) - len(self.waiting))

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._prefill()
                self._decode()
            failure = "the server was closed before the request was finished"
        except Exception as error:  # nothing but an end of the process can free a device's memory for certain
            logger.exception("the engine failed")
            failure = f"the engine failed: {type(error).__name__}: {error}"
        self._fail(failure)

    def _fail(self, failure: str) -> None:
        """End every request without the engine, which may be what has failed."""
        with self._changed:
            self.failure, accepted = failure, self._accepted()
            self.waiting.clear()
            self.rows, self.prefilling = [None] * len(self.rows), None
            self._count()
        for generation in accepted:
            self.metrics.ended.labels("failed").inc()
            generation.emit(Failed(failure))

    def _wait_for_work(self) -> bool:
        """Whether the thread is to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._accepted())
            return not self._is_closing

    def _drop_cancelled(self) -> None:
        with self._changed:
            for generation in [each for each in self._accepted() if each.is_cancelled]:
                self._end(generation, Failed("the request was cancelled"), "cancelled")

    def _prefill(self) -> None:
        """A chunk of the prompt that is being prefilled, or of the next one if there is a row for it."""
        if self.prefilling is None:
            with self._changed:
                if not self.waiting or None not in self.rows:
                    return
                self.prefilling = self.waiting.popleft()
                self._count()
            self.batch.begin_prefill(self.prefilling.prompt_ids)
        if not self.batch.prefill_chunk():
            return
        with self._changed:
            row, generation = self.rows.index(None), self.prefilling
            self.rows[row], self.prefilling = generation, None
        self.metrics.prompt_tokens.inc(len(generation.prompt_ids))
        self._take(row, generation, self.batch.place(row, generation.sampling))

    def _decode(self) -> None:
        occupied = [(row, generation) for row, generation in enumerate(self.rows) if generation]
        if not occupied:
            return
        tokens = self.batch.advance([row for row, _ in occupied])
        for (row, generation), token in zip(occupied, tokens, strict=True):
            self._take(row, generation, token)

    def _take(self, row: int, generation: Generation, token: int) -> None:
        """A token of a row's text: its piece, and the end if it is the last."""
        score = self._score(row, token, generation.most_likely)
        text = generation.stream.push(token)
        self._clock(generation)
        if generation.is_complete and not generation.stream.has_ended:
            text += generation.stream.rest()
        if token in generation.stream.stops.end_ids:
            score = None
        generation.emit(TextPiece(text, score))
        if generation.is_complete:
            reason: FinishReason = "stop" if generation.stream.has_ended else "length"
            with self._changed:
                self._end(generation, Finished(reason), reason)

    def _score(self, row: int, token: int, most_likely: int | None) -> TokenScore | None:
        if most_likely is None:
            return None
        scores_V = self.batch.logits_BV[row].float().log_softmax(dim=-1)
        best = scores_V.topk(min(most_likely, len(scores_V)))
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenScore(token, float(scores_V[token]), pairs)

    def _clock(self, generation: Generation) -> None:
        now = perf_counter()
        if len(generation.stream.ids) == 1:
            self.metrics.first_token_s.observe(now - generation.began)
        else:
            self.metrics.token_s.observe(now - generation.last_token_at)
        generation.last_token_at = now
        self.metrics.new_tokens.inc()

    def _end(self, generation: Generation, event: GenerationEvent, outcome: str) -> None:
        """Forget a request, wherever it is. The caller holds the lock."""
        if generation in self.rows:
            row = self.rows.index(generation)
            self.rows[row] = None
            self.batch.free(row)
        elif generation is self.prefilling:
            self.prefilling = None
        else:
            self.waiting.remove(generation)
        self._request_s += _WEIGHT_OF_LAST * (perf_counter() - generation.began - self._request_s)
        self._count()  # first: who sees that it has ended sees that it runs no more
        self.metrics.ended.labels(outcome).inc()
        generation.emit(event)
