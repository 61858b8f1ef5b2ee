"""What a layer remembers of earlier tokens, and the static cache a decode step writes in place.

A state is a NamedTuple of tensors. In training it is a value: the state after the meta tokens goes in, the state after
the last token comes out. In a `Cache` the same tuples hold preallocated tensors at fixed addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.models.architecture import CONV_SIZE, Architecture
from flashslm.models.rope import Rotary, rotary


class AttentionState(NamedTuple):
    keys: Tensor  # [B, S, G, K], rotated
    values: Tensor  # [B, S, G, K]


class DeltaNetState(NamedTuple):
    conv: Tensor  # [B, 3·D, CONV_SIZE - 1], of q, k and v
    delta: Tensor  # [B, H, K, V], at least fp32


class Mamba2State(NamedTuple):
    conv: Tensor  # [B, channels, CONV_SIZE - 1]
    ssm: Tensor  # [B, H, P, N], at least fp32


class DecodePosition(NamedTuple):
    """Where in their sequences the tokens of a decode step stand."""

    angles: Rotary
    lengths_B: Tensor  # int64: tokens before them


class NoState(NamedTuple):
    """An FFN remembers nothing."""


State = AttentionState | DeltaNetState | Mamba2State | NoState


def expand_state(state: State, batch: int) -> State:
    """Give a batch-1 state to `batch` sequences without a copy; its gradient is the sum over them."""
    return type(state)._make(tensor.expand(batch, *tensor.shape[1:]) for tensor in state)


def empty_state(
    a: Architecture, operator: str, batch: int, slots: int, device: torch.device, dtype: torch.dtype
) -> State:
    """A zero state of one operator with `slots` places for keys; recurrent states are fp32 (fp64 for fp64)."""

    def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.zeros(batch, *shape, dtype=of, device=device)

    recurrent = torch.promote_types(dtype, torch.float32)
    match operator:
        case "A":
            # Stored as [B, G, S, K], so that one head's keys are one matrix.
            shape = (a.num_kv_heads, slots, a.head_dim)
            return AttentionState(zeros(*shape).transpose(1, 2), zeros(*shape).transpose(1, 2))
        case "D":
            delta = zeros(a.num_heads, a.head_dim, a.head_dim, of=recurrent)
            return DeltaNetState(zeros(3 * a.hidden_size, CONV_SIZE - 1), delta)
        case "M":
            ssm = zeros(a.mamba_heads, a.mamba_head_dim, a.mamba_state, of=recurrent)
            return Mamba2State(zeros(a.mamba_conv_channels, CONV_SIZE - 1), ssm)
    return NoState()


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

    def reset_from_prefix(self, prefix: list[State], length: int) -> None:
        """Start every sequence afresh after a prefix of `length` tokens, given by its batch-1 states."""
        for index, state in enumerate(prefix):
            self.store(index, state, 0)
        self.lengths_B.fill_(length)

    def state(self, index: int, length: int) -> State:
        """A layer's state after `length` tokens, without a copy."""
        layer = self.layers[index]
        if isinstance(layer, AttentionState):
            return AttentionState(layer.keys[:, :length], layer.values[:, :length])
        return layer

    def store(self, index: int, state: State, start: int) -> None:
        """Copy a state into a layer's tensors; keys and values before `start` are there already."""
        for target, source in zip(self.layers[index], state, strict=True):
            if isinstance(state, AttentionState):
                target[:, start : source.shape[1]].copy_(source[:, start:])
            else:
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
