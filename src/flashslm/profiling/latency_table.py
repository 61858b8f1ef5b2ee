"""The latency table: decode time of every operator, measured one by one, summed to a whole model's time per token."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flashslm.config import ModelConfig, WeightFormat
from flashslm.hardware import DeviceFingerprint
from flashslm.inference.fused.tilings import MAX_BATCH
from flashslm.models.accounting import decode_bytes_per_token
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, LM_HEAD, OPERATOR_SPECS, SIZE_FIELDS
from flashslm.profiling.whole_model import CheckedModel, StepOverhead

OPERATOR_SIZES = ("num_heads", "num_kv_heads", "head_dim", "ffn_size", "mamba_state", "mamba_head_dim", "mamba_expand")


class EntryKey(NamedTuple):
    """What identifies an entry: an operator (its letter) or `head`, for one decoded token of each of `batch` rows.

    `size` is the operator's own field of the architecture (SIZE_FIELDS: an FFN's ffn_size, Mamba-2's mamba_state, a
    head's head_dim), where it is not that of the table's `sizes`.
    """

    operator: str
    width: int
    context: int
    batch: int
    size: int | None = None


class KeyedEntry(BaseModel):
    """An entry's key as fields of its JSON, which has a size only where the key does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: str
    width: int
    context: int
    batch: int
    size: int | None = Field(default=None, exclude_if=lambda size: size is None)

    @property
    def key(self) -> EntryKey:
        return EntryKey(self.operator, self.width, self.context, self.batch, self.size)


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


class LatencyTable(BaseModel):
    """Entries and what they depend on: device, versions, dtype, format of the weights, the recipe's own sizes. A table
    has weights of one format, and none is read for another (`require_weights`).

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
    calibration: tuple[CheckedModel, ...] = ()  # the whole models that the overheads were fitted on

    def predict_ms(self, architecture: Architecture, context: int, batch: int) -> float:
        """A decode step's time: `sum_ms` and the batch's overhead. ValueError as `sum_ms`."""
        total_ms = self.sum_ms(architecture, context, batch)
        for overhead in self.overheads:
            if overhead.batch == batch:
                step_mb = self.step_mb(architecture, context, batch)
                total_ms += overhead.total_ms(len(architecture.operators), step_mb)
        return total_ms

    def step_mb(self, architecture: Architecture, context: int, batch: int) -> float:
        """MB (1e6 bytes) that a decode step must move, of the table's dtype and format of the weights."""
        value_bytes = {"float32": 4, "bfloat16": 2}[self.dtype]
        in_8_bits = self.weights == "int8" and self.device.kind == "cuda" and batch <= MAX_BATCH
        tokens = context + architecture.num_meta_tokens
        return decode_bytes_per_token(architecture, tokens, batch, value_bytes, 1 if in_8_bits else None) / 1e6

    def without_overheads(self) -> "LatencyTable":
        """The table as it was before it was calibrated."""
        return self.model_copy(update={"overheads": (), "calibration": ()})

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
            width, size = architecture.hidden_size, self._size_of(operator, architecture)
            low = self._entry(EntryKey(operator, width, below, batch, size))
            high = self._entry(EntryKey(operator, width, above, batch, size))
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
        """Whether all these operators, of the recipe's sizes, and the head were measured just there."""
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
    def _further_sizes(self) -> dict[str, set[int]]:
        """Measured at some width besides the recipe's own, by the architecture's field."""
        found: dict[str, set[int]] = {field: set() for field in SIZE_FIELDS.values()}
        for entry in self.entries:
            if entry.size is not None:
                found[_size_field(entry.operator)].add(entry.size)
        return found

    @cached_property
    def _own_by_width(self) -> dict[int, dict[str, Any]]:
        """The sizes of the recipe's own architectures."""
        return {width: self._sizes_at(width, self.sizes.head_dim) for width in self.widths}

    def _sizes_at(self, width: int, head_dim: int) -> dict[str, Any]:
        sizes = self.sizes.model_copy(update={"head_dim": head_dim})
        return _operator_sizes(build_architecture(EXPORTABLE_OPERATORS, width, sizes, self.vocab_size))

    def _size_of(self, operator: str, architecture: Architecture) -> int | None:
        """As an entry has it."""
        if not (field := _size_field(operator)):
            return None
        size: int = getattr(architecture, field)
        return None if size == self._own_by_width[architecture.hidden_size][field] else size

    def _entry(self, key: EntryKey) -> LatencyEntry:
        entry = self._index.get(key)
        if entry is None:
            operator, width, context, batch, size = key
            of_size = "" if size is None else f" with {_size_field(operator)} {size}"
            reason = next((e.reason for e in self.left_out if e.key == key), "")
            raise ValueError(
                f"latency of {operator}{of_size} at width {width}, context {context}, batch {batch} was not measured"
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
        expected = self._own_by_width.get(architecture.hidden_size)
        if expected is None:
            raise ValueError(
                f"width {architecture.hidden_size} was not measured; {self._measured()}: "
                "choose one of these or add it to profiling.widths"
            )
        given, measured = _operator_sizes(architecture), self._further_sizes
        if given["head_dim"] in measured["head_dim"] and architecture.hidden_size % given["head_dim"] == 0:
            expected = self._sizes_at(architecture.hidden_size, given["head_dim"])
        expected = expected | {field: given[field] for field, sizes in measured.items() if given[field] in sizes}
        keeps_window = any(OPERATOR_SPECS[operator].keys == "window" for operator in architecture.operators)
        free = () if keeps_window else ("window",)
        different = [name for name in given if given[name] != expected[name] and name not in free]
        if different:
            pairs = ", ".join(f"{name} {given[name]} (table: {expected[name]})" for name in different)
            raise ValueError(f"the architecture's sizes differ from the table's: {pairs}: measure a table for these")

    def _measured(self) -> str:
        operators = "".join(o for o in dict.fromkeys(e.operator for e in self.entries) if o != LM_HEAD)
        further = "".join(f", {field} {sorted(sizes)} besides" for field, sizes in self._further_sizes.items() if sizes)
        return (
            f"measured: operators {operators}, widths {list(self.widths)}, contexts {list(self.contexts)}, "
            f"batches {list(self.batches)}{further}"
        )


def _size_field(operator: str) -> str:
    """Of an architecture: what the operator's time depends on besides the width; empty where that is nothing."""
    return "" if operator == LM_HEAD else SIZE_FIELDS.get(OPERATOR_SPECS[operator].sized_by, "")


def _operator_sizes(architecture: Architecture) -> dict[str, Any]:
    """All that decides an operator's time at a width; the window only matters to window attention."""
    return {name: getattr(architecture, name) for name in (*OPERATOR_SIZES, "vocab_size", "qk_norm", "window")}


def _distinct(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))
