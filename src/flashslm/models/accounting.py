"""What an architecture costs: parameters, FLOP per token, bytes per decoded token, cache bytes. No torch here.

Closed forms, held equal to the built model by a test, so that profiler, search, MFU and MBU share one account. A
context is the tokens attended to, meta tokens included.
"""

import math

from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import CONV_SIZE, OPERATOR_SPECS


def operator_parameters(architecture: Architecture, operator: str) -> int:
    """Parameters of one operator with its input RMSNorm."""
    return OPERATOR_SPECS[operator].parameters(architecture) + architecture.hidden_size


def parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters by kind and in `total`; the embedding is counted once (it is also the head)."""
    a = architecture
    result = {
        spec.name: a.operators.count(letter) * operator_parameters(a, letter) for letter, spec in OPERATOR_SPECS.items()
    }
    result |= {
        "embedding": a.vocab_size * a.hidden_size,
        "meta_tokens": a.num_meta_tokens * a.hidden_size,
        "final_norm": a.hidden_size,
    }
    return result | {"total": sum(result.values())}


def forward_flops_per_token(architecture: Architecture, context: int) -> float:
    """Forward FLOP per token at a mean attended length of `context`; training costs three times as much.

    Two per matrix weight (head included), plus attention's scores and values, and the state updates and read-outs of
    the recurrent mixers in their recurrent form. Window attention is taken to attend to min(context, window) tokens.
    """
    a = architecture
    matrices = parameters(a)["total"] - a.num_meta_tokens * a.hidden_size
    mixing = sum(
        4 * _tokens_kept(a, o, context) * a.heads_size + OPERATOR_SPECS[o].state_flops * _recurrent_values(a, o)
        for o in a.operators
    )
    return 2.0 * matrices + mixing


def training_flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """Forward and backward FLOP per token at the mean causal reach of a window behind the meta tokens."""
    reach = architecture.num_meta_tokens + (sequence_length + 1) / 2
    return 3 * forward_flops_per_token(architecture, round(reach))


def prefill_flops(architecture: Architecture, tokens: int) -> float:
    """FLOP of reading `tokens` behind the meta tokens: a forward pass of each, but for the head, which the last meets.

    On average half of them are attended to, and all meta tokens; in window attention at most `window`.
    """
    a = architecture
    head = 2.0 * a.vocab_size * a.hidden_size
    return tokens * (forward_flops_per_token(a, a.num_meta_tokens + (tokens + 1) // 2) - head) + head


def kv_bytes_per_token(architecture: Architecture, bytes_per_value: int = 2) -> int:
    """KV-cache growth per token of context, all attention layers; window attention's ring does not grow."""
    growing = sum(OPERATOR_SPECS[operator].keys == "all" for operator in architecture.operators)
    return growing * _kv_bytes(architecture, bytes_per_value)


def kv_bytes_per_sequence(architecture: Architecture, context: int, bytes_per_value: int = 2) -> int:
    """KV cache of one sequence: `context` tokens in each attention layer, at most `window` in window attention."""
    a = architecture
    tokens = sum(_tokens_kept(a, operator, context) for operator in a.operators)
    return tokens * _kv_bytes(a, bytes_per_value)


def state_bytes(architecture: Architecture, state_bytes_per_value: int = 4, conv_bytes_per_value: int = 2) -> int:
    """Size of the recurrent and convolution states of one sequence, independent of its length."""
    a = architecture
    recurrent = sum(_recurrent_values(a, operator) for operator in a.operators)
    conv = (CONV_SIZE - 1) * sum(OPERATOR_SPECS[operator].conv_channels(a) for operator in a.operators)
    return recurrent * state_bytes_per_value + conv * conv_bytes_per_value


def decode_bytes_per_token(
    architecture: Architecture,
    context: int,
    batch: int = 1,
    bytes_per_value: int = 2,
    bytes_per_weight: int | None = None,
) -> float:
    """Bytes a decode step must move for one token of each of `batch` sequences.

    Weights are read once per step (meta tokens not at all), the KV cache once, recurrent and convolution states are
    read and written. A weight has `bytes_per_weight`, like other values if that is None; scales are not counted.
    """
    a = architecture
    weights = (parameters(a)["total"] - a.num_meta_tokens * a.hidden_size) * (bytes_per_weight or bytes_per_value)
    per_sequence = kv_bytes_per_sequence(a, context, bytes_per_value) + 2 * state_bytes(a, 4, bytes_per_value)
    return weights + batch * per_sequence


def _recurrent_values(a: Architecture, operator: str) -> int:
    """Values in the recurrent state of one operator and sequence."""
    return sum(math.prod(shape) for shape in OPERATOR_SPECS[operator].state_shapes(a).values())


def _tokens_kept(a: Architecture, operator: str, context: int) -> int:
    """Tokens whose keys and values a layer keeps at a context."""
    return {"none": 0, "window": min(context, a.window), "all": context}[OPERATOR_SPECS[operator].keys]


def _kv_bytes(a: Architecture, bytes_per_value: int) -> int:
    """A token's keys and values in one layer."""
    return 2 * a.num_kv_heads * a.head_dim * bytes_per_value
