"""Measure with the engine that ships: its operator steps for the latency table, its whole decode step for models."""

import gc
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import NamedTuple

import torch

from flashslm.config import ProfilingConfig
from flashslm.hardware import DeviceKind, device_fingerprint, pick_device, pick_dtype
from flashslm.inference.operator_step import build_decode_steps, build_head_step, build_operator_step
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import LM_HEAD
from flashslm.profiling.latency_table import EntryKey, LatencyEntry, LatencyTable
from flashslm.profiling.plan import ProfilingPlan, Repetition, repetition
from flashslm.profiling.timing import TimedCall, Timing, cpu_threads, measure_rounds

# On a CPU three instances of every operator run in turns, each timed apart: a row of one kind of operator was 18 %
# faster there than the same layers in a model.
CPU_INSTANCES = 3
KEPT_PARAMETERS = 250_000_000  # up to 1 GB of fp32 weights stay in memory for the whole measurement
USABLE_MEMORY = 0.85  # of what is free on a GPU: the rest is for work space and what lies between blocks
TIMES = ("median_ms", "p10_ms", "p90_ms")
GROWTH = (0.125, 0.375, 0.625, 0.875)  # lengths of a growing context whose mean stands for all of them


class ModelPoint(NamedTuple):
    """A whole model's decode step to be timed, at a fixed context, or over one that grows from nothing to it."""

    architecture: Architecture
    context: int
    batch: int
    growing: bool = False


class _Group(NamedTuple):
    """Steps that are built together and run in turns."""

    build: Callable[[], Sequence[tuple[Hashable, TimedCall]]]
    parameters: int


def measure_latency_table(plan: ProfilingPlan) -> LatencyTable:
    """Measure every operator at every width, context and batch of the plan on the present device.

    What does not depend on the context is measured at the smallest and recorded at all. An entry that does
    not fit in memory is in `left_out` with the reason. `compile_ahead` before it saves time.
    """
    table, _ = measure_together(plan, ())
    return table


def measure_models(points: Sequence[ModelPoint], config: ProfilingConfig) -> list[Timing]:
    """Time the engine's whole decode step, with random weights (contexts are text tokens in the cache)."""
    bench = _Bench(config)
    timings = bench.time(bench.model_groups(points))
    return [_point_timing(point, timings) for point in points]


def build_model_step(point: ModelPoint, config: ProfilingConfig) -> TimedCall:
    """The engine's whole decode step at the point's context, to be timed by the caller."""
    ((_, step),) = _Bench(config).model_groups([point])[0].build()
    return step


def pick_profiling_device(config: ProfilingConfig) -> DeviceKind:
    """Where a profiling section measures."""
    return _Bench(config).device


def measure_together(plan: ProfilingPlan, points: Sequence[ModelPoint]) -> tuple[LatencyTable, list[Timing]]:
    """A latency table and whole models, interleaved so that both meet the machine in the same state."""
    config, bench = plan.profiling, _Bench(plan.profiling)
    keys, left_out = plan.split_by_memory(available_bytes(bench.device))
    timings = bench.time([*bench.table_groups(keys, plan), *bench.model_groups(points)])
    table = LatencyTable(
        device=device_fingerprint(bench.device),
        dtype=pick_dtype(config.dtype, bench.device),
        weights=config.weights,
        threads=config.threads,
        warmup=config.warmup,
        repeats=config.repeats,
        sizes=plan.sizes,
        vocab_size=plan.vocab_size,
        entries=tuple(entry for key in keys for entry in bench.entries(key, timings[key], plan)),
        left_out=tuple(left_out),
    )
    return table, [_point_timing(point, timings) for point in points]


def build_table_steps(plan: ProfilingPlan, memory_bytes: float) -> None:
    """Build one layer of every entry that takes at most this memory, and time nothing.

    What Triton compiles for this, another process finds on disk.
    """
    bench = _Bench(plan.profiling, rotate=False)
    keys, _ = plan.split_by_memory(memory_bytes)
    for group in bench.table_groups(keys, plan):
        group.build()


def available_bytes(device: DeviceKind) -> float:
    """Memory that a measurement may take; a CPU's is not limited here."""
    if device == "cpu":
        return float("inf")
    gc.collect()  # a decoder may refer to itself: the last one's cache can be most of the memory
    free_bytes, _ = torch.cuda.mem_get_info()
    unused_bytes = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return USABLE_MEMORY * (free_bytes + unused_bytes)


def l2_mb(device: DeviceKind) -> float:
    """Size of a GPU's L2 cache; 0 on a CPU, where the term is not used."""
    return torch.cuda.get_device_properties(0).L2_cache_size / 1e6 if device == "cuda" else 0.0


def _point_timing(point: ModelPoint, timings: dict[Hashable, Timing]) -> Timing:
    parts = [timings[point, context] for context in _contexts(point)]
    median_ms, p10_ms, p90_ms = (fmean(getattr(part, name) for part in parts) for name in TIMES)
    return Timing(median_ms, p10_ms, p90_ms, min(part.repeats for part in parts))


def _contexts(point: ModelPoint) -> list[int]:
    return [int(share * point.context) for share in GROWTH] if point.growing else [point.context]


@dataclass(frozen=True)
class _Bench:
    """Builds what a profiling section asks for and times it; `rotate`: with the copies that a GPU's L2 asks for."""

    config: ProfilingConfig
    rotate: bool = True

    @property
    def device(self) -> DeviceKind:
        return pick_device(self.config.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[pick_dtype(self.config.dtype, self.device)]

    def time(self, groups: Iterable[_Group]) -> dict[Hashable, Timing]:
        numbered = dict(enumerate(groups))
        keep = sum(group.parameters for group in numbered.values()) <= KEPT_PARAMETERS
        builds = {number: group.build for number, group in numbered.items()}
        with cpu_threads(self.config.threads):
            return measure_rounds(builds, self.config.warmup, self.config.repeats, self.device, keep=keep)

    def table_groups(self, keys: Sequence[EntryKey], plan: ProfilingPlan) -> list[_Group]:
        """On a CPU all entries of a width and batch together, several instances of each operator; on a GPU one each."""
        together: dict[Hashable, list[EntryKey]] = {}
        for key in keys:
            instances = CPU_INSTANCES if self.device == "cpu" and key.operator != LM_HEAD else 1
            group = (key.width, key.batch) if self.device == "cpu" else key
            together.setdefault(group, []).extend([key] * instances)
        return [self._table_group(group, plan) for group in together.values()]

    def model_groups(self, points: Iterable[ModelPoint]) -> list[_Group]:
        return [
            _Group(partial(self._build_model, point), parameters(point.architecture)["total"])
            for point in dict.fromkeys(points)
        ]

    def entries(self, key: EntryKey, timing: Timing, plan: ProfilingPlan) -> list[LatencyEntry]:
        """The entry of one measurement, at every context if it depends on none."""
        copies, passes = self._repetition(key, plan.layer(key))
        layers = 1 if key.operator == LM_HEAD else copies * passes
        times = {name: getattr(timing, name) / layers for name in TIMES}
        measured = key._asdict() | times
        return [LatencyEntry.model_validate(measured | {"context": c}) for c in plan.recorded_contexts(key)]

    def _repetition(self, key: EntryKey, layer: Architecture) -> Repetition:
        if self.device == "cpu" or not self.rotate:
            return Repetition()
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        return repetition(key, layer, l2_bytes, self.torch_dtype.itemsize, self.config.weights == "int8")

    def _table_group(self, keys: list[EntryKey], plan: ProfilingPlan) -> _Group:
        layers = [plan.layer(key) for key in keys]

        def build() -> list[tuple[Hashable, TimedCall]]:
            return [(key, self._build_entry(key, layer)) for key, layer in zip(keys, layers, strict=True)]

        return _Group(build, sum(parameters(layer)["total"] for layer in layers))

    def _build_entry(self, key: EntryKey, layer: Architecture) -> TimedCall:
        copies, passes = self._repetition(key, layer)
        weights, place = self.config.weights, (self.device, self.torch_dtype)
        if key.operator == LM_HEAD:
            return build_head_step(layer, key.batch, *place, copies=copies, weights=weights)
        return build_operator_step(layer, key.operator, key.batch, key.context, *place, copies, passes, weights)

    def _build_model(self, point: ModelPoint) -> list[tuple[Hashable, TimedCall]]:
        """The engine's decode step at the point's contexts, on one cache that holds the longest."""
        if self.device == "cuda":
            gc.collect()  # as in `available_bytes`
        contexts = _contexts(point)
        steps = build_decode_steps(
            point.architecture,
            contexts,
            point.batch,
            self.device,
            self.torch_dtype,
            max_context=point.context,
            weights=self.config.weights,
        )
        return [((point, context), step) for context, step in zip(contexts, steps, strict=True)]
