"""What an architecture costs: parameters, FLOP a token, bytes a decoded token, cache bytes. No torch here.

Closed forms, held equal to the built model by a test, so that profiler, search, MFU and MBU share one account. A
context is the tokens attended to, meta tokens included.
"""

from flashslm.models.architecture import CONV_SIZE, GLA_GATE_RANK, OPERATOR_KINDS, Architecture

# FLOP on each value of the state a token: the decay 1, the update 2, the read-out 2, the delta rule's error 2 (with its
# step size Mamba-2 has 6).
_STATE_FLOPS = {"D": 6, "M": 6, "G": 7, "L": 5}


def operator_parameters(architecture: Architecture, operator: str) -> int:
    """Parameters of one operator with its input RMSNorm."""
    a = architecture
    h, heads_size, kv_size = a.hidden_size, a.heads_size, a.num_kv_heads * a.head_dim
    deltanet = 4 * h * heads_size + h * a.num_heads + 3 * heads_size * CONV_SIZE + a.head_dim
    match operator:
        case "A" | "W":
            size = 2 * h * heads_size + 2 * h * kv_size + (2 * a.head_dim if a.qk_norm else 0)
        case "D":
            size = deltanet
        case "G":
            size = deltanet + h * heads_size + (h + 2) * a.num_heads
        case "L":
            key_size = a.num_heads * a.gla_key_dim
            size = 3 * h * heads_size + 2 * h * key_size + GLA_GATE_RANK * (h + key_size) + key_size + a.head_dim
        case "M":
            conv = a.mamba_conv_channels * (CONV_SIZE + 1)
            size = a.mamba_projected_rows * h + conv + 3 * a.mamba_heads + a.mamba_inner + a.mamba_inner * h
        case "F":
            size = 3 * h * a.ffn_size
        case _:
            raise ValueError(f"unknown operator '{operator}'")
    return size + h


def parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters by kind and in `total`; the embedding is counted once (it is also the head)."""
    a = architecture
    result = {
        kind.name: a.operators.count(letter) * operator_parameters(a, letter) for letter, kind in OPERATOR_KINDS.items()
    }
    result |= {
        "embedding": a.vocab_size * a.hidden_size,
        "meta_tokens": a.num_meta_tokens * a.hidden_size,
        "final_norm": a.hidden_size,
    }
    return result | {"total": sum(result.values())}


def forward_flops_per_token(architecture: Architecture, context: int) -> float:
    """Forward FLOP a token at a mean attended length of `context`; training costs three times as much.

    Two per matrix weight (head included), plus attention's scores and values, and the state updates and read-outs of
    the recurrent mixers in their recurrent form. Window attention is taken to attend to min(context, window) tokens.
    """
    a = architecture
    matrices = parameters(a)["total"] - a.num_meta_tokens * a.hidden_size
    attended = {"A": context, "W": min(context, a.window)}
    mixing = sum(
        4 * attended[o] * a.heads_size if o in attended else _STATE_FLOPS.get(o, 0) * _recurrent_values(a, o)
        for o in a.operators
    )
    return 2.0 * matrices + mixing


def kv_bytes_per_token(architecture: Architecture, bytes_per_value: int = 2) -> int:
    """KV-cache growth per token of context, all attention layers; window attention's ring does not grow."""
    return architecture.operators.count("A") * _kv_bytes(architecture, bytes_per_value)


def kv_bytes_per_sequence(architecture: Architecture, context: int, bytes_per_value: int = 2) -> int:
    """KV cache of one sequence: `context` tokens in each attention layer, at most `window` in window attention."""
    a = architecture
    tokens = a.operators.count("A") * context + a.operators.count("W") * min(context, a.window)
    return tokens * _kv_bytes(a, bytes_per_value)


def state_bytes(architecture: Architecture, state_bytes_per_value: int = 4, conv_bytes_per_value: int = 2) -> int:
    """Size of the recurrent and convolution states of one sequence, independent of its length."""
    a = architecture
    recurrent = sum(_recurrent_values(a, operator) for operator in a.operators)
    channels = {"D": 3 * a.heads_size, "G": 3 * a.heads_size, "M": a.mamba_conv_channels}
    conv = (CONV_SIZE - 1) * sum(channels.get(operator, 0) for operator in a.operators)
    return recurrent * state_bytes_per_value + conv * conv_bytes_per_value


def decode_bytes_per_token(architecture: Architecture, context: int, batch: int = 1, bytes_per_value: int = 2) -> float:
    """Bytes a decode step must move for one token of each of `batch` sequences.

    Weights are read once a step (meta tokens not at all), the KV cache once, recurrent and convolution states are read
    and written.
    """
    a = architecture
    weights = (parameters(a)["total"] - a.num_meta_tokens * a.hidden_size) * bytes_per_value
    per_sequence = kv_bytes_per_sequence(a, context, bytes_per_value) + 2 * state_bytes(a, 4, bytes_per_value)
    return weights + batch * per_sequence


def _recurrent_values(a: Architecture, operator: str) -> int:
    """Values in the recurrent state of one operator and sequence."""
    head = {"D": a.head_dim, "G": a.head_dim, "L": a.gla_key_dim}
    return a.mamba_inner * a.mamba_state if operator == "M" else a.heads_size * head.get(operator, 0)


def _kv_bytes(a: Architecture, bytes_per_value: int) -> int:
    """A token's keys and values in one layer."""
    return 2 * a.num_kv_heads * a.head_dim * bytes_per_value
