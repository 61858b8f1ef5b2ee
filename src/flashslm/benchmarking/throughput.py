"""Throughput: as many sequences as fit into memory decode together at a long context."""

from dataclasses import replace
from functools import partial

import torch

from flashslm.benchmarking import clock, memory
from flashslm.benchmarking.case import Case
from flashslm.benchmarking.clock import StepTimes
from flashslm.benchmarking.result import BenchmarkResult, BenchmarkRun, measured
from flashslm.config import KernelsConfig
from flashslm.inference.engine import DecodeEngine
from flashslm.models.accounting import kv_bytes_per_sequence, state_bytes
from flashslm.models.hybrid import HybridLM
from flashslm.models.random_weights import random_model

USED_SHARE = 0.95  # of free memory for what grows with the batch; the rest is work space and fragments
STEP_DOWN = 0.9


class ThroughputResult(StepTimes, BenchmarkResult):
    """The last line of `flashslm bench throughput`.

    `context` is what a sequence has after the last of `new_tokens` steps; the caches are filled with random values.
    """

    largest: bool  # whether `batch` is the largest that fits
    cache_bytes: int


def steps_ending_at(context: int, new_tokens: int) -> int:
    """The context to begin with, so that the last step ends at `context`: 32k then fits a model of 32k positions."""
    if context <= new_tokens:
        raise ValueError(f"context is {context}: above the {new_tokens} steps that end there")
    return context - new_tokens


def bench_throughput(case: Case, setting: KernelsConfig, *, largest: bool) -> ThroughputResult:
    """Time decode steps at `case.batch`, or with `largest` at the largest batch that fits."""
    run, fields = measured(case, setting, partial(_run, largest=largest))
    fields |= {"context": case.last_context, "largest": largest}
    return ThroughputResult(**fields, cache_bytes=run.case.batch * cache_bytes_per_sequence(case))


def cache_bytes_per_sequence(case: Case) -> int:
    """KV cache of `capacity` text tokens after the meta tokens, and states."""
    a, value_bytes = case.architecture, case.torch_dtype.itemsize
    kv_bytes = kv_bytes_per_sequence(a, a.num_meta_tokens + case.capacity, value_bytes)
    return kv_bytes + state_bytes(a, 4, value_bytes)


def largest_batch(case: Case, free_bytes: int) -> int:
    """How many sequences fit by the account: caches, states, logits in fp32 and in the model's dtype.

    ValueError where not even one fits.
    """
    logits_bytes = case.architecture.vocab_size * (4 + case.torch_dtype.itemsize)
    sequence_bytes = cache_bytes_per_sequence(case) + logits_bytes
    batch = int(USED_SHARE * free_bytes) // sequence_bytes
    if batch < 1:
        raise ValueError(
            f"a sequence of {case.last_context} tokens takes {sequence_bytes:,} bytes and {free_bytes:,} are free: "
            "take a shorter context"
        )
    return batch


def build_engine(model: HybridLM, batch: int, max_context: int, *, step_down: bool) -> DecodeEngine:
    """An engine for `batch` sequences; with `step_down` for a tenth less as often as memory does not suffice."""
    while True:
        try:
            return DecodeEngine(model, batch, max_context)
        except torch.OutOfMemoryError:
            if batch == 1 or not step_down:
                raise
        batch = max(1, int(STEP_DOWN * batch))
        memory.release(model.embedding.weight.device.type)


def _run(case: Case, largest: bool) -> BenchmarkRun[StepTimes]:
    # A decode step sees no difference between meta tokens and as many text tokens, whose states need no prefill.
    meta = case.architecture.num_meta_tokens
    without_meta = case.architecture.model_copy(update={"num_meta_tokens": 0})
    model = random_model(without_meta, case.device, case.torch_dtype)
    batch = largest_batch(case, memory.free_bytes(case.device)) if largest else case.batch
    engine = build_engine(model, batch, meta + case.capacity, step_down=largest)
    fill(engine)
    rewind = partial(engine.cache.lengths_B.fill_, meta + case.context)
    case = replace(case, batch=engine.tokens_B.shape[0])
    times = clock.time_steps(rewind, engine.advance, case.new_tokens, case.repeats, case.device)
    return BenchmarkRun(case, engine.backend, times)


def fill(engine: DecodeEngine) -> None:
    """Random values in place of a prefill, which would take minutes for hundreds of long prompts."""
    for tensor in (tensor for state in engine.cache.layers for tensor in state):
        tensor.normal_()
