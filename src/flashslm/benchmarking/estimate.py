"""About how long a benchmark takes on a CPU, so that a person knows before minutes have passed."""

import time
from collections.abc import Callable

import torch

from flashslm.benchmarking.case import Case
from flashslm.benchmarking.training_steps import TrainingCase
from flashslm.models.accounting import parameters

WORTH_A_WORD_S = 60.0
WARM_UP_STEPS = 3  # of each variant of a training
_ROWS = 1024  # and columns of the matrices whose product is timed
_COPIED_BYTES = 1 << 27


def warning(case: Case | TrainingCase) -> str:
    """A sentence for a case that will take more than a minute on this machine's CPU; "" for any other."""
    if case.device != "cpu":
        return ""
    precision = case.precision if isinstance(case, TrainingCase) else case.dtype
    flops = flops_per_s(torch.float32 if precision == "float32" else torch.bfloat16)
    estimate_s = training_s(case, flops) if isinstance(case, TrainingCase) else decode_s(case, flops, bytes_per_s())
    if estimate_s < WORTH_A_WORD_S:
        return ""
    size = f"{parameters(case.architecture)['total'] / 1e6:,.0f} million parameters"
    return (
        f"on this CPU a benchmark of {size} takes about {max(2, round(estimate_s / 60)):,} minutes: a GPU, a smaller "
        "model or fewer steps take less"
    )


def decode_s(case: Case, flops_per_s: float, bytes_per_s: float) -> float:
    """A step reads all it must move once, a prompt takes 2 FLOP per weight and token; one run more warms up."""
    weights = parameters(case.architecture)["total"]
    step_s = max(case.bytes_per_token / bytes_per_s, 2 * weights * case.batch / flops_per_s)
    prompt_s = 2 * weights * case.batch * case.context / flops_per_s
    return (case.repeats + 1) * (case.new_tokens * step_s + prompt_s)


def training_s(case: TrainingCase, flops_per_s: float) -> float:
    """Of both variants, without and with weight normalisation."""
    return 2 * (case.steps + WARM_UP_STEPS) * case.tokens * case.flops_per_token / flops_per_s


def flops_per_s(dtype: torch.dtype) -> float:
    """Of a matrix product on this CPU."""
    left = torch.ones(_ROWS, _ROWS, dtype=dtype)
    return 2 * _ROWS**3 / _second_run_s(lambda: left @ left)


def bytes_per_s() -> float:
    """That this CPU copies."""
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
    return _COPIED_BYTES / _second_run_s(source.clone)


def _second_run_s(work: Callable[[], object]) -> float:
    """The first one allocates."""
    work()
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s
