"""The latency table: decode time of every operator, measured one by one, summed to a whole model's time per token."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flashslm.config import ModelConfig, WeightFormat
from flashslm.hardware import DeviceFingerprint
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, LM_HEAD, OPERATOR_SPECS

OPERATOR_SIZES = ("num_heads", "num_kv_heads", "head_dim", "ffn_size", "mamba_state", "mamba_head_dim", "mamba_expand")


class EntryKey(NamedTuple):
    """What identifies an entry: an operator (its letter) or `head`, for one decoded token of each of `batch` rows."""

    operator: str
    width: int
    context: int
    batch: int


class KeyedEntry(BaseModel):
    """An entry's key as fields of its JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: str
    width: int
    context: int
    batch: int

    @property
    def key(self) -> EntryKey:
        return EntryKey(self.operator, self.width, self.context, self.batch)


class LatencyEntry(KeyedEntry):
    """Milliseconds that were measured."""

    median_ms: float = Field(gt=0)
    p10_ms: float
    p90_ms: float

    @field_validator("operator")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*OPERATOR_SPECS, LM_HEAD):
            raise ValueError(f"operator '{value}' is unknown: allowed are {', '.join(OPERATOR_SPECS)} and {LM_HEAD}")
        return value


class LeftOut(KeyedEntry):
    """An entry that could not be measured, and why."""

    reason: str


class StepOverhead(BaseModel):
    """What a step of a whole model takes beyond its entries' sum, at one batch: `step_ms` once, `layer_ms` a layer.

    Fitted on `models` whole models. Negative where a model's operators overlap more than copies of one do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int
    step_ms: float
    layer_ms: float
    models: int


class LatencyTable(BaseModel):
    """Entries and what they depend on: device, versions, dtype, format of the weights, the sizes all architectures of a
    run share. A table has weights of one format, and none is read for another (`require_weights`).

    An entry whose time does not depend on the context is measured once and recorded at every context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: DeviceFingerprint
    dtype: Literal["float32", "bfloat16"]
    weights: WeightFormat = "full"  # tables of earlier versions say nothing of it
    threads: int
    warmup: int
    repeats: int
    sizes: ModelConfig
    vocab_size: int
    entries: tuple[LatencyEntry, ...]
    left_out: tuple[LeftOut, ...] = ()
    overheads: tuple[StepOverhead, ...] = ()  # empty: the sum is the prediction

    def predict_ms(self, architecture: Architecture, context: int, batch: int) -> float:
        """A decode step's time: `sum_ms` and the batch's overhead. ValueError as `sum_ms`."""
        total_ms = self.sum_ms(architecture, context, batch)
        for overhead in self.overheads:
            if overhead.batch == batch:
                total_ms += overhead.step_ms + overhead.layer_ms * len(architecture.operators)
        return total_ms

    def sum_ms(self, architecture: Architecture, context: int, batch: int) -> float:
        """The sum over operators plus the head, linear in context between measured ones.

        Raises ValueError, naming what was measured, for a width, batch, context or operator size outside the table.
        """
        counts = Counter(architecture.operators) | Counter([LM_HEAD])
        each_ms = self.operator_ms(architecture, context, batch)
        return sum((count * each_ms[operator] for operator, count in counts.items()), 0.0)

    def operator_ms(self, architecture: Architecture, context: int, batch: int) -> dict[str, float]:
        """The time of one layer of each operator that the architecture has, and of the head. ValueError as `sum_ms`."""
        self._check_sizes(architecture)
        below, above, share = self._bracket(context)
        each_ms = {}
        for operator in Counter(architecture.operators) | Counter([LM_HEAD]):
            low = self._entry(operator, architecture.hidden_size, below, batch)
            high = self._entry(operator, architecture.hidden_size, above, batch)
            each_ms[operator] = low.median_ms + share * (high.median_ms - low.median_ms)
        return each_ms

    def require_weights(self, weights: WeightFormat) -> "LatencyTable":
        """The table. ValueError if it was measured with weights of another format."""
        if self.weights != weights:
            raise ValueError(
                f"the latency table was measured with weights in '{self.weights}', profiling.weights is '{weights}': "
                "measure a table with this recipe"
            )
        return self

    def covers(self, operators: str, width: int, context: int, batch: int) -> bool:
        """Whether all these operators and the head were measured just there."""
        return all(EntryKey(operator, width, context, batch) in self._index for operator in (*operators, LM_HEAD))

    @cached_property
    def contexts(self) -> tuple[int, ...]:
        return _distinct(e.context for e in self.entries)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        return _distinct(e.width for e in self.entries)

    @cached_property
    def batches(self) -> tuple[int, ...]:
        return _distinct(e.batch for e in self.entries)

    @cached_property
    def _index(self) -> dict[EntryKey, LatencyEntry]:
        return {entry.key: entry for entry in self.entries}

    @cached_property
    def _sizes_by_width(self) -> dict[int, dict[str, Any]]:
        built = {w: build_architecture(EXPORTABLE_OPERATORS, w, self.sizes, self.vocab_size) for w in self.widths}
        return {width: _operator_sizes(architecture) for width, architecture in built.items()}

    def _entry(self, operator: str, width: int, context: int, batch: int) -> LatencyEntry:
        key = EntryKey(operator, width, context, batch)
        entry = self._index.get(key)
        if entry is None:
            reason = next((e.reason for e in self.left_out if e.key == key), "")
            raise ValueError(
                f"latency of {operator} at width {width}, context {context}, batch {batch} was not measured"
                f"{f' (it {reason})' if reason else ''}; {self._measured()}: choose among these or add the value to "
                "the profiling section"
            )
        return entry

    def _bracket(self, context: int) -> tuple[int, int, float]:
        """The measured contexts on both sides and how far between them `context` lies (0 to 1)."""
        below = max((c for c in self.contexts if c <= context), default=None)
        above = min((c for c in self.contexts if c >= context), default=None)
        if below is None or above is None:
            raise ValueError(
                f"context {context} lies outside the measured range; {self._measured()}: "
                "add a larger or smaller one to profiling.contexts"
            )
        return below, above, (context - below) / (above - below) if above > below else 0.0

    def _check_sizes(self, architecture: Architecture) -> None:
        expected = self._sizes_by_width.get(architecture.hidden_size)
        if expected is None:
            raise ValueError(
                f"width {architecture.hidden_size} was not measured; {self._measured()}: "
                "choose one of these or add it to profiling.widths"
            )
        given = _operator_sizes(architecture)
        keeps_window = any(OPERATOR_SPECS[operator].keys == "window" for operator in architecture.operators)
        free = () if keeps_window else ("window",)
        different = [name for name in given if given[name] != expected[name] and name not in free]
        if different:
            pairs = ", ".join(f"{name} {given[name]} (table: {expected[name]})" for name in different)
            raise ValueError(f"the architecture's sizes differ from the table's: {pairs}: measure a table for these")

    def _measured(self) -> str:
        operators = "".join(o for o in dict.fromkeys(e.operator for e in self.entries) if o != LM_HEAD)
        return (
            f"measured: operators {operators}, widths {list(self.widths)}, contexts {list(self.contexts)}, "
            f"batches {list(self.batches)}"
        )


def _operator_sizes(architecture: Architecture) -> dict[str, Any]:
    """All that decides an operator's time at a width; the window only matters to window attention."""
    return {name: getattr(architecture, name) for name in (*OPERATOR_SIZES, "vocab_size", "qk_norm", "window")}


def _distinct(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))
