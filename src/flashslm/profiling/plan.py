"""What a latency table measures, and how often each entry's layer is repeated in one call. Arithmetic, no torch.

An operator must find its weights as cold as inside a model: a GPU runs copies of a layer in a row until their weights
exceed its L2 cache, as one layer alone would stay there. The row is passed over several times in a call, so that the
start of a call, which a model pays once, does not count as the layers'.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.hardware import DeviceKind, pick_device, pick_dtype
from flashslm.inference.fused.tilings import MAX_BATCH
from flashslm.models.accounting import kv_bytes_per_sequence, operator_parameters, parameters, state_bytes
from flashslm.models.architecture import Architecture, InfeasibleArchitecture, build_architecture
from flashslm.models.operator_spec import FFN, LM_HEAD, OPERATOR_SPECS, SIZE_FIELDS, depends_on_context
from flashslm.profiling.latency_table import EntryKey, LeftOut

SMALL_VOCABULARY = 16  # kernels are compiled for multiples of 16 and for others: the head's are used again
L2_MULTIPLE = 2  # the copies' weights exceed the L2 cache by this factor
MIN_COPIES = 6  # recurrent states are to find as much of the L2 taken by others as in a model
MAX_COPIES = 48  # of one kind no model has more, so small weights may stay in the cache as they do there
LAYERS_A_CALL = 48
COPIES_BYTES = 8 << 30  # a row that is larger than the L2 by so much needs no more copies
CALL_BYTES = 4 << 30  # about a millisecond, of which the start of a call is nothing


class Repetition(NamedTuple):
    """How many layers with weights of their own one call runs, and how often."""

    copies: int = 1
    passes: int = 1


@dataclass(frozen=True)
class ProfilingPlan:
    """What is measured: a recipe's profiling section, and the sizes and vocabulary that all models share."""

    profiling: ProfilingConfig
    sizes: ModelConfig
    vocab_size: int

    def changed(self, **profiling: Any) -> "ProfilingPlan":
        """The plan with these values in its profiling section."""
        return replace(self, profiling=self.profiling.model_copy(update=profiling))

    @property
    def device(self) -> DeviceKind:
        return pick_device(self.profiling.device)

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight."""
        return {"float32": 4, "bfloat16": 2}[pick_dtype(self.profiling.dtype, self.device)]

    @property
    def int8(self) -> bool:
        """Whether fused steps have copies of the weights in 8 bits."""
        return self.profiling.weights == "int8" and self.device == "cuda"

    def resident_bytes(self, architecture: Architecture, context: int, batch: int) -> int:
        """Memory of a decode step of this plan."""
        return resident_bytes(architecture, context, batch, self.value_bytes, self.int8)

    def architecture(self, operators: str, width: int) -> Architecture:
        """Raises InfeasibleArchitecture as `build_architecture` does."""
        return build_architecture(operators, width, self.sizes, self.vocab_size)

    def layer(self, key: EntryKey) -> Architecture:
        """A model of one layer of the entry; the head is a model without layers."""
        layer = self._layers(key.operator, key.width)[key.size]
        # An operator's step is a model without a head: it needs no embedding of its own in memory.
        return layer if key.operator == LM_HEAD else layer.model_copy(update={"vocab_size": SMALL_VOCABULARY})

    def entry_keys(self) -> list[EntryKey]:
        """Every entry that is measured: one that does not depend on the context only at the smallest, an operator at
        those further sizes that are possible at the width.
        """
        contexts = sorted(set(self.profiling.contexts))
        return [
            EntryKey(operator, width, context, batch, size)
            for width in sorted(set(self.profiling.widths))
            for batch in sorted(set(self.profiling.batches))
            for operator in (*self.profiling.operators, LM_HEAD)
            for size in self._layers(operator, width)
            for context in (contexts if depends_on_context(operator) else contexts[:1])
        ]

    def _layers(self, operator: str, width: int) -> dict[int | None, Architecture]:
        """One layer of the recipe's own size (None), and one of each further size that is another at this width."""
        if operator == LM_HEAD:
            return {None: self.architecture(FFN, width).model_copy(update={"operators": ""})}
        own, name = self.architecture(operator, width), OPERATOR_SPECS[operator].sized_by
        found: dict[int | None, Architecture] = {None: own}
        for value in getattr(self.profiling.sizes, name) if name else ():
            with suppress(InfeasibleArchitecture):
                sizes = self.sizes.model_copy(update={name: value})
                other = build_architecture(operator, width, sizes, self.vocab_size)
                size = getattr(other, SIZE_FIELDS[name])
                if size != getattr(own, SIZE_FIELDS[name]):
                    found.setdefault(size, other)
        return found

    def recorded_contexts(self, key: EntryKey) -> list[int]:
        """The contexts that a measured entry stands for."""
        return [key.context] if depends_on_context(key.operator) else sorted(set(self.profiling.contexts))

    def split_by_memory(self, available_bytes: float) -> tuple[list[EntryKey], list[LeftOut]]:
        """The entries whose layer fits in memory, and those left out with the reason."""
        kept, left_out = [], []
        for key in self.entry_keys():
            needed = self.resident_bytes(self.layer(key), key.context, key.batch)
            if needed <= available_bytes:
                kept.append(key)
            else:
                reason = f"needs {needed / 1e9:.1f} GB of memory, {available_bytes / 1e9:.1f} GB are free"
                left_out.append(LeftOut.model_validate(key._asdict() | {"reason": reason}))
        return kept, left_out


def resident_bytes(architecture: Architecture, context: int, batch: int, value_bytes: int, int8: bool = False) -> int:
    """Memory of a decode step: weights, states and keys of `batch` sequences of `context` text tokens, logits.

    With `int8` there is a copy of each weight in 8 bits.
    """
    a = architecture
    per_sequence = kv_bytes_per_sequence(a, context + a.num_meta_tokens, value_bytes) + state_bytes(a, 4, value_bytes)
    return parameters(a)["total"] * (value_bytes + int8) + batch * (per_sequence + 2 * 4 * a.vocab_size)


def repetition(key: EntryKey, layer: Architecture, l2_bytes: int, value_bytes: int, int8: bool = False) -> Repetition:
    """Copies and passes of an entry on a GPU with this L2 cache; `layer` is the plan's.

    Weights in `int8` fill the cache less, where a step reads them so.
    """
    layer_bytes = resident_bytes(layer, key.context, key.batch, value_bytes, int8)
    read_bytes = 1 if int8 and key.batch <= MAX_BATCH else value_bytes
    if key.operator == LM_HEAD:
        copies = math.ceil(L2_MULTIPLE * l2_bytes / (parameters(layer)["embedding"] * read_bytes))
        return Repetition(_between(1, copies, min(MAX_COPIES, COPIES_BYTES // layer_bytes)))
    cold = math.ceil(L2_MULTIPLE * l2_bytes / (operator_parameters(layer, key.operator) * read_bytes))
    copies = _between(MIN_COPIES, cold, MAX_COPIES)
    copies = _between(1, copies, COPIES_BYTES // layer_bytes)
    layers = _between(1, LAYERS_A_CALL, CALL_BYTES // layer_bytes)
    return Repetition(copies, math.ceil(layers / copies))


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
