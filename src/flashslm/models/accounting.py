"""What an architecture costs: parameters, FLOP a token, bytes a decoded token, cache bytes. No torch here.

Closed forms, held equal to the built model by a test, so that profiler, search, MFU and MBU share one account.
"""

from flashslm.models.architecture import CONV_SIZE, Architecture


def operator_parameters(architecture: Architecture, operator: str) -> int:
    """Parameters of one operator with its input RMSNorm."""
    a = architecture
    h, kv_size = a.hidden_size, a.num_kv_heads * a.head_dim
    match operator:
        case "A":
            size = 2 * h * h + 2 * h * kv_size
        case "D":
            size = 4 * h * h + h * a.num_heads + 3 * h * CONV_SIZE + a.head_dim
        case "M":
            in_rows = 2 * a.mamba_inner + 2 * a.mamba_state + a.mamba_heads
            conv = a.mamba_conv_channels * (CONV_SIZE + 1)
            size = in_rows * h + conv + 3 * a.mamba_heads + a.mamba_inner + a.mamba_inner * h
        case "F":
            size = 3 * h * a.ffn_size
        case _:
            raise ValueError(f"unknown operator '{operator}'")
    return size + h


def parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters by kind and in `total`; the embedding is counted once (it is also the head)."""
    a = architecture
    counts = {kind: 0 for kind in "DMAF"}
    for operator in a.operators:
        counts[operator] += operator_parameters(a, operator)
    result = {
        "deltanet": counts["D"],
        "mamba2": counts["M"],
        "attention": counts["A"],
        "ffn": counts["F"],
        "embedding": a.vocab_size * a.hidden_size,
        "meta_tokens": a.num_meta_tokens * a.hidden_size,
        "final_norm": a.hidden_size,
    }
    return result | {"total": sum(result.values())}


def forward_flops_per_token(architecture: Architecture, context: int) -> float:
    """Forward FLOP a token at a mean attended length of `context`; training costs three times as much.

    Two per matrix weight (head included), plus attention's scores and values, and the state updates and read-outs of
    the recurrent mixers in their recurrent form.
    """
    a = architecture
    matrices = parameters(a)["total"] - a.num_meta_tokens * a.hidden_size
    attention = 4 * context * a.hidden_size
    delta_state = 6 * a.hidden_size * a.head_dim
    mamba_state = 6 * a.mamba_inner * a.mamba_state
    mixing = sum({"A": attention, "D": delta_state, "M": mamba_state, "F": 0}[o] for o in a.operators)
    return 2.0 * matrices + mixing


def kv_bytes_per_token(architecture: Architecture, bytes_per_value: int = 2) -> int:
    """KV-cache growth per token of context, all attention layers."""
    a = architecture
    return a.operators.count("A") * 2 * a.num_kv_heads * a.head_dim * bytes_per_value


def state_bytes(architecture: Architecture, state_bytes_per_value: int = 4, conv_bytes_per_value: int = 2) -> int:
    """Size of the recurrent and convolution states of one sequence, independent of its length."""
    a = architecture
    delta, mamba = a.operators.count("D"), a.operators.count("M")
    recurrent = delta * a.hidden_size * a.head_dim + mamba * a.mamba_inner * a.mamba_state
    conv = (CONV_SIZE - 1) * (delta * 3 * a.hidden_size + mamba * a.mamba_conv_channels)
    return recurrent * state_bytes_per_value + conv * conv_bytes_per_value


def decode_bytes_per_token(architecture: Architecture, context: int, batch: int = 1, bytes_per_value: int = 2) -> float:
    """Bytes a decode step must move for one token of each of `batch` sequences.

    Weights are read once a step (meta tokens not at all), the KV cache once, recurrent and convolution states are read
    and written.
    """
    a = architecture
    weights = (parameters(a)["total"] - a.num_meta_tokens * a.hidden_size) * bytes_per_value
    per_sequence = context * kv_bytes_per_token(a, bytes_per_value) + 2 * state_bytes(a, 4, bytes_per_value)
    return weights + batch * per_sequence
