"""Measure with the engine that ships: its operator steps for the latency table, its whole decode step for models."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.hardware import DeviceKind, device_fingerprint, pick_device, pick_dtype
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.operator_step import build_head_step, build_operator_step
from flashslm.models.accounting import operator_parameters, parameters
from flashslm.models.architecture import EXPORTABLE_OPERATORS, Architecture, build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.profiling.latency_table import HEAD, LatencyEntry, LatencyTable
from flashslm.profiling.timing import Step, Timing, cpu_threads, measure_rounds

# An operator must find its weights and code as cold as inside a model. On a GPU that many layers, each with weights of
# its own, are timed in a row, since one alone would stay in the L2 cache. On a CPU three instances of every operator
# run in turns, each timed apart: a row of one kind of operator was 18 % faster there than the same layers in a model.
GPU_COPIES = 12
CPU_INSTANCES = 3
KEPT_PARAMETERS = 250_000_000  # up to 1 GB of fp32 weights stay in memory for the whole measurement
CONTEXT_DEPENDENT = ("A",)


class EntryKey(NamedTuple):
    """What identifies a measured entry of the table."""

    operator: str
    width: int
    context: int
    batch: int


class ModelPoint(NamedTuple):
    """A whole model's decode step to be timed."""

    architecture: Architecture
    context: int
    batch: int


class _Group(NamedTuple):
    """Steps that are built together and run in turns."""

    build: Callable[[], Sequence[tuple[Hashable, Step]]]
    parameters: int


def measure_latency_table(config: ProfilingConfig, sizes: ModelConfig, vocab_size: int) -> LatencyTable:
    """Measure every operator at every width, context and batch of the recipe on the present device.

    DeltaNet, Mamba-2, FFN and the head do not depend on the context: measured at the smallest, recorded at all.
    """
    table, _ = measure_together(config, sizes, vocab_size, ())
    return table


def measure_models(points: Sequence[ModelPoint], config: ProfilingConfig) -> list[Timing]:
    """Time the engine's whole decode step, with random weights, at a fixed context (text tokens in the cache)."""
    bench = _Bench(config)
    timings = bench.time(bench.model_groups(points))
    return [timings[point] for point in points]


def measure_together(
    config: ProfilingConfig, sizes: ModelConfig, vocab_size: int, points: Sequence[ModelPoint]
) -> tuple[LatencyTable, list[Timing]]:
    """A latency table and whole models, interleaved so that both meet the machine in the same state."""
    bench = _Bench(config)
    timings = bench.time([*bench.table_groups(sizes, vocab_size), *bench.model_groups(points)])
    table = LatencyTable(
        device=device_fingerprint(bench.device),
        dtype=pick_dtype(config.dtype, bench.device),
        threads=config.threads,
        warmup=config.warmup,
        repeats=config.repeats,
        sizes=sizes,
        vocab_size=vocab_size,
        entries=tuple(e for key in bench.entry_keys() for e in bench.entries(key, timings[key])),
    )
    return table, [timings[point] for point in points]


@dataclass(frozen=True)
class _Bench:
    """Builds what a profiling section asks for and times it."""

    config: ProfilingConfig

    @property
    def device(self) -> DeviceKind:
        return pick_device(self.config.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[pick_dtype(self.config.dtype, self.device)]

    @property
    def contexts(self) -> list[int]:
        return sorted(set(self.config.contexts))

    def time(self, groups: Iterable[_Group]) -> dict[Hashable, Timing]:
        numbered = dict(enumerate(groups))
        keep = sum(group.parameters for group in numbered.values()) <= KEPT_PARAMETERS
        builds = {number: group.build for number, group in numbered.items()}
        with cpu_threads(self.config.threads):
            return measure_rounds(builds, self.config.warmup, self.config.repeats, self.device, keep=keep)

    def entry_keys(self) -> list[EntryKey]:
        return [
            EntryKey(operator, width, context, batch)
            for width in sorted(set(self.config.widths))
            for batch in sorted(set(self.config.batches))
            for operator in (*EXPORTABLE_OPERATORS, HEAD)
            for context in (self.contexts if operator in CONTEXT_DEPENDENT else self.contexts[:1])
        ]

    def table_groups(self, sizes: ModelConfig, vocab_size: int) -> list[_Group]:
        """On a CPU all entries of a width and batch together, several instances of each operator; on a GPU one each."""
        together: dict[Hashable, list[EntryKey]] = {}
        for key in self.entry_keys():
            instances = CPU_INSTANCES if self.device == "cpu" and key.operator != HEAD else 1
            group = (key.width, key.batch) if self.device == "cpu" else key
            together.setdefault(group, []).extend([key] * instances)
        return [self._table_group(keys, sizes, vocab_size) for keys in together.values()]

    def model_groups(self, points: Iterable[ModelPoint]) -> list[_Group]:
        return [
            _Group(partial(self._build_model, point), parameters(point.architecture)["total"])
            for point in dict.fromkeys(points)
        ]

    def entries(self, key: EntryKey, timing: Timing) -> list[LatencyEntry]:
        """The entry of one measurement, at every context if it depends on none."""
        recorded = [key.context] if key.operator in CONTEXT_DEPENDENT else self.contexts
        copies = self._copies(key)
        times = {name: getattr(timing, name) / copies for name in ("median_ms", "p10_ms", "p90_ms")}
        return [LatencyEntry.model_validate(key._asdict() | times | {"context": context}) for context in recorded]

    def _copies(self, key: EntryKey) -> int:
        """Layers that one call of the entry's step runs."""
        return GPU_COPIES if self.device == "cuda" and key.operator != HEAD else 1

    def _table_group(self, keys: list[EntryKey], sizes: ModelConfig, vocab_size: int) -> _Group:
        architecture = build_architecture(EXPORTABLE_OPERATORS, keys[0].width, sizes, vocab_size)

        def build() -> list[tuple[Hashable, Step]]:
            return [(key, self._build_entry(key, architecture)) for key in keys]

        sizes_of = {operator: operator_parameters(architecture, operator) for operator in EXPORTABLE_OPERATORS}
        sizes_of[HEAD] = parameters(architecture)["embedding"]
        return _Group(build, sum(sizes_of[key.operator] for key in keys))

    def _build_entry(self, key: EntryKey, architecture: Architecture) -> Step:
        if key.operator == HEAD:
            return build_head_step(architecture, key.batch, self.device, self.torch_dtype)
        # An operator's step is a model without a head: it needs no embedding of its own in memory.
        without_head = architecture.model_copy(update={"vocab_size": 2})
        copies = self._copies(key)
        return build_operator_step(
            without_head, key.operator, key.batch, key.context, self.device, self.torch_dtype, copies
        )

    def _build_model(self, point: ModelPoint) -> list[tuple[Hashable, Step]]:
        """The engine's decode step on a cache filled up to `point.context`, which does not advance."""
        model = HybridLM.build(point.architecture, self.device, self.torch_dtype)
        engine = DecodeEngine(model, point.batch, point.context + 1)
        for tensor in (tensor for state in engine.cache.layers for tensor in state):
            tensor.normal_()
        length = engine.cache.slots - 1

        @torch.inference_mode()
        def step() -> None:
            engine.cache.lengths_B.fill_(length)
            engine.advance()

        return [(point, step)]
