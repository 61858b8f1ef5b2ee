"""The static cache that a decode step writes in place: every layer's state at fixed addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import CONV_SIZE, OPERATOR_SPECS
from flashslm.models.operators import layer_class
from flashslm.models.rope import Rotary, rotary
from flashslm.models.states import AttentionState, DecodePosition, State, WindowState, make_state


def empty_state(
    a: Architecture, operator: str, batch: int, slots: int, device: torch.device, dtype: torch.dtype
) -> State:
    """A zero state of one operator with `slots` places for keys; recurrent states are fp32 (fp64 for fp64)."""

    def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.zeros(batch, *shape, dtype=of, device=device)

    spec, fields = OPERATOR_SPECS[operator], {}
    if spec.keys != "none":
        places = slots if spec.keys == "all" else min(slots, a.window)
        # Stored as [B, G, S, K], so that one head's keys are one matrix.
        fields = {name: zeros(a.num_kv_heads, places, a.head_dim).transpose(1, 2) for name in ("keys", "values")}
    if channels := spec.conv_channels(a):
        fields["conv"] = zeros(channels, CONV_SIZE - 1)
    recurrent = torch.promote_types(dtype, torch.float32)
    fields |= {name: zeros(*shape, of=recurrent) for name, shape in spec.state_shapes(a).items()}
    return cast(State, cast(Any, layer_class(operator).state_type)(**fields))


@dataclass
class Cache:
    """The states of every layer for a batch of sequences, and how many tokens each has consumed."""

    layers: list[State]
    lengths_B: Tensor  # int64: tokens in the cache, meta tokens included; the next token's position
    angles: Rotary  # of every position

    @classmethod
    def allocate(
        cls,
        architecture: Architecture,
        batch: int,
        max_context: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Cache:
        """Room for `max_context` text tokens per sequence after the meta tokens."""
        device, slots = torch.device(device), architecture.num_meta_tokens + max_context
        layers = [empty_state(architecture, o, batch, slots, device, dtype) for o in architecture.operators]
        angles = rotary(torch.arange(slots, device=device), architecture.head_dim, architecture.rotary_theta)
        return cls(layers, torch.zeros(batch, dtype=torch.int64, device=device), angles)

    @property
    def slots(self) -> int:
        """Places for tokens per sequence, meta tokens included."""
        return self.angles.cos.shape[0]

    def first(self, batch: int) -> Cache:
        """The cache of the first `batch` sequences, without a copy."""
        layers = [make_state(type(state), (tensor[:batch] for tensor in state)) for state in self.layers]
        return Cache(layers, self.lengths_B[:batch], self.angles)

    def reset_from_prefix(self, prefix: list[State], length: int) -> None:
        """Restart every sequence after a prefix of `length` tokens, given by its batch-1 states."""
        for index, state in enumerate(prefix):
            self.store(index, state, 0, length)
        self.lengths_B.fill_(length)

    def copy_row(self, row: int, single: Cache) -> None:
        """Take over the one sequence of a cache with as many places (`single`) as sequence number `row`."""
        for layer, alone in zip(self.layers, single.layers, strict=True):
            for target, source in zip(layer, alone, strict=True):
                target[row].copy_(source[0])
        self.lengths_B[row] = single.lengths_B[0]

    def state(self, index: int, length: int) -> State:
        """A layer's state after `length` tokens, without a copy except of a window's keys and values."""
        layer = self.layers[index]
        match layer:
            case AttentionState(keys, values):
                return AttentionState(keys[:, :length], values[:, :length])
            case WindowState(keys, values):
                ordered = _ring_slots(keys, 0, length)
                return WindowState(keys[:, ordered], values[:, ordered])
        return layer

    def store(self, index: int, state: State, start: int, stop: int) -> None:
        """Copy a layer's state after `stop` tokens into its tensors; keys and values before `start` are there."""
        for target, source in zip(self.layers[index], state, strict=True):
            match state:
                case AttentionState():
                    _copy_heads(target[:, start:stop], source[:, start:])
                case WindowState():
                    slots = _ring_slots(target, start, stop)
                    target[:, slots] = source[:, source.shape[1] - len(slots) :].to(target.dtype)
                case _:
                    target.copy_(source)

    def angles_between(self, start: int, stop: int) -> Rotary:
        return Rotary(*(table[start:stop] for table in self.angles))

    def next_position(self) -> DecodePosition:
        """The position of the next token of every sequence."""
        angles = Rotary(*(table.index_select(0, self.lengths_B) for table in self.angles))
        return DecodePosition(angles, self.lengths_B)

    def common_length(self) -> int:
        """The length all sequences share (waits for the device). ValueError if they differ."""
        lengths = set(self.lengths_B.tolist())
        if len(lengths) > 1:
            raise ValueError(f"sequences have {sorted(lengths)} tokens: prefill needs equal lengths in a batch")
        return int(lengths.pop())


def _copy_heads(target: Tensor, source: Tensor) -> None:
    """Copy keys or values [B, T, G, K], in words of 8 bytes where they can be: between layouts it is faster so."""
    pair = (target, source.to(target.dtype))
    if all(_has_words(x) for x in pair):
        target, source = (x.view(torch.int64) for x in pair)
    target.copy_(source)


def _has_words(x: Tensor) -> bool:
    sizes = (x.storage_offset(), x.shape[-1], *x.stride()[:-1])
    return x.stride(-1) == 1 and all(size * x.element_size() % 8 == 0 for size in sizes)


def _ring_slots(ring: Tensor, start: int, stop: int) -> Tensor:
    """Where a ring [B, S, G, K] holds positions `start` to `stop` - 1, the last S of them."""
    slots = ring.shape[1]
    return torch.arange(max(start, stop - slots), stop, device=ring.device) % slots
