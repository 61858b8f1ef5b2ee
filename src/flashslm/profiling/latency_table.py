"""The latency table: decode time of every operator, measured one by one, summed to a whole model's time per token."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flashslm.config import ModelConfig
from flashslm.hardware import DeviceFingerprint
from flashslm.models.architecture import EXPORTABLE_OPERATORS, Architecture, build_architecture

HEAD = "head"  # token embedding, final norm, logits and sampling: once a step


class LatencyEntry(BaseModel):
    """Milliseconds of one operator (`D`, `M`, `A`, `F`) or of `head`, for one decoded token of each of `batch` rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: Literal["D", "M", "A", "F", "head"]
    width: int
    context: int
    batch: int
    median_ms: float = Field(gt=0)
    p10_ms: float
    p90_ms: float


class LatencyTable(BaseModel):
    """Entries and what they depend on: device, versions, dtype, the sizes all architectures of a run share.

    Only attention's time depends on the context; the other entries are measured once and recorded at every context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: DeviceFingerprint
    dtype: Literal["float32", "bfloat16"]
    threads: int
    warmup: int
    repeats: int
    sizes: ModelConfig
    vocab_size: int
    entries: tuple[LatencyEntry, ...]

    def predict_ms(self, architecture: Architecture, context: int, batch: int) -> float:
        """A decode step's time: the sum over operators plus the head, linear in context between measured ones.

        Raises ValueError, naming what was measured, for a width, batch, context or operator size outside the table.
        """
        self._check_sizes(architecture)
        below, above, share = self._bracket(context)
        counts = Counter(architecture.operators) | Counter([HEAD])
        total_ms = 0.0
        for operator, count in counts.items():
            low = self._entry(operator, architecture.hidden_size, below, batch)
            high = self._entry(operator, architecture.hidden_size, above, batch)
            total_ms += count * (low.median_ms + share * (high.median_ms - low.median_ms))
        return total_ms

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
    def _index(self) -> dict[tuple[str, int, int, int], LatencyEntry]:
        return {(e.operator, e.width, e.context, e.batch): e for e in self.entries}

    @cached_property
    def _sizes_by_width(self) -> dict[int, tuple[int, ...]]:
        built = {w: build_architecture(EXPORTABLE_OPERATORS, w, self.sizes, self.vocab_size) for w in self.widths}
        return {width: _operator_sizes(architecture) for width, architecture in built.items()}

    def _entry(self, operator: str, width: int, context: int, batch: int) -> LatencyEntry:
        entry = self._index.get((operator, width, context, batch))
        if entry is None:
            raise ValueError(
                f"latency of {operator} at width {width}, context {context}, batch {batch} was not measured; "
                f"{self._measured()}: choose among these or add the value to the profiling section"
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
        if expected != (given := _operator_sizes(architecture)):
            raise ValueError(
                f"the architecture's sizes {given} differ from the table's {expected} (heads, key/value heads, FFN "
                "width, Mamba-2 state, head size, expansion, vocabulary): measure a table for these sizes"
            )

    def _measured(self) -> str:
        return f"measured: widths {list(self.widths)}, contexts {list(self.contexts)}, batches {list(self.batches)}"


def _operator_sizes(a: Architecture) -> tuple[int, ...]:
    heads = (a.num_heads, a.num_kv_heads)
    return (*heads, a.ffn_size, a.mamba_state, a.mamba_head_dim, a.mamba_expand, a.vocab_size)


def _distinct(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))
