"""Where a decode step's time goes: one kind of operator at a time, and the head."""

import torch

from flashslm.benchmarking.case import Case
from flashslm.inference.operator_step import build_head_step, build_operator_step
from flashslm.models.accounting import decode_bytes_per_token
from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import LM_HEAD, OPERATOR_SPECS
from flashslm.profiling.timing import measure

RESIDUAL = "residual"
WARM_UP = 3
REPEATS = 30


def operator_times_ms(case: Case) -> dict[str, float]:
    """Milliseconds a step spends in all layers of each kind, by name, and in `head` (embedding, head, sampling).

    Each operator runs as a model of its layers alone, each with its own weights, at the mean context.
    """
    without_head = case.architecture.model_copy(update={"vocab_size": 2})
    counts = {letter: case.architecture.operators.count(letter) for letter in OPERATOR_SPECS}
    times = {}
    for letter, count in counts.items():
        if count:
            copies = count * _rounds(case, letter, count)
            step = build_operator_step(
                *(without_head, letter, case.batch, case.mean_context, case.device, case.torch_dtype),
                copies=copies,
                weights=case.weights,
            )
            median_ms = measure(step, WARM_UP, REPEATS, case.device).median_ms
            times[OPERATOR_SPECS[letter].name] = median_ms * count / copies
            del step
    head = build_head_step(case.architecture, case.batch, case.device, case.torch_dtype, weights=case.weights)
    return times | {LM_HEAD: measure(head, WARM_UP, REPEATS, case.device).median_ms}


def shares(times_ms: dict[str, float], step_ms: float) -> dict[str, float]:
    """Each kind's part of the whole step; `residual` is what is left, below 0 where kinds overlap in the whole step."""
    parts = {name: value / step_ms for name, value in times_ms.items()}
    return parts | {RESIDUAL: 1 - sum(parts.values())}


def _rounds(case: Case, letter: str, count: int) -> int:
    """How often over a kind's layers must be there so that a GPU's L2 does not keep them from call to call."""
    if case.device == "cpu":
        return 1
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    return -(-2 * l2_bytes // max(1, count * _layer_bytes(case.architecture, letter, case)))


def _layer_bytes(a: Architecture, letter: str, case: Case) -> int:
    """What a layer's step moves: weights, cache and states, without a head."""
    one = a.model_copy(update={"operators": letter, "vocab_size": 2, "num_meta_tokens": 0})
    bytes_per_weight = 1 if case.reads_int8 else None
    return int(decode_bytes_per_token(one, case.mean_context, case.batch, case.torch_dtype.itemsize, bytes_per_weight))
