"""Whether this machine's kernels have right gradients: each against its naive backend in fp32, on the device.

`flashslm doctor --gpu`, the GPU tests and every training on a GPU call this one check. Sets of versions exist whose
kernels run and train on wrong gradients; the known ones are refused by name before anything is measured. A verdict is
kept beside the compiled kernels of the same GPU and versions, so that a training that starts on them pays for a look.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.ops.bad_sets import known_problems
from flashslm.ops.gradient_cases import OPERATIONS, CaseMaker, GradientCase, Op, operations_of
from flashslm.ops.kernel_cache import cache_directory, cache_facts
from flashslm.ops.kernels import BACKENDS, chosen

TOLERANCE = 0.01  # of ||gradient - naive gradient|| / ||naive gradient||, the largest of an operation's inputs
FLOOR = 1e-2  # of the norm that is divided by: where nothing is expected the error itself counts


class WrongGradient(RuntimeError):
    """Kernels of this set of versions train on wrong gradients here; the message names the set and the operations."""


class GradientError(NamedTuple):
    """`relative` is infinite where the kernel did not run; `problem` then says why."""

    operation: str
    relative: float
    time_ms: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.relative <= TOLERANCE


def every_operation() -> tuple[str, ...]:
    return operations_of("".join(OPERATIONS))


def check_gradients(
    operations: Sequence[str] | None = None, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> list[GradientError]:
    """Measure operations (None: every one) in the backends that a training on this device takes.

    A known bad set is not measured. Compiles kernels where they are not cached. The random numbers of the caller go on
    as if nothing had been drawn.
    """
    operations = operations or every_operation()
    known = known_problems(_fused(operations, device, dtype), cache_facts())
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        maker = CaseMaker(device, dtype)
        return [
            GradientError(operation, math.inf, 0.0, known[operation])
            if operation in known
            else _measure(operation, maker.case(operation))
            for operation in operations
        ]


def require_right_gradients(operators: str, device: str, dtype: torch.dtype) -> None:
    """Raise WrongGradient if a fused kernel that training these operators calls is known or measured to be wrong.

    Does nothing where all of them run in plain torch, as on a CPU.
    """
    fused = _fused(operations_of(operators), device, dtype)
    known = known_problems(fused, cache_facts())
    verdicts = {operation: _verdict_file(operation, dtype) for operation in fused}
    unsettled = [name for name in fused if name in known or not verdicts[name].exists()]
    if not unsettled:
        return
    errors = check_gradients(unsettled, device, dtype)
    for error in errors:
        if error.passed:
            _keep(error, verdicts[error.operation])
    wrong = {e.operation: e.problem or f"its gradient is {e.relative:.1%} off" for e in errors if not e.passed}
    if wrong:
        raise WrongGradient(_message(wrong))


def _fused(operations: Sequence[str], device: str, dtype: torch.dtype) -> list[str]:
    """Those whose backend is not plain torch."""
    name = str(dtype).removeprefix("torch.")
    return [operation for operation in operations if chosen(operation, device, name) == BACKENDS[operation][1]]


def _message(problems: Mapping[str, str]) -> str:
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in cache_facts().items())
    found = "; ".join(f"{operation}: {what}" for operation, what in problems.items())
    settings = ", ".join(f"kernels.{operation}={BACKENDS[operation][0]}" for operation in problems)
    return f"{found} (found: {versions}): install other versions, or train without these kernels: {settings}"


def _verdict_file(operation: str, dtype: torch.dtype) -> Path:
    return cache_directory() / "gradients" / f"{operation}.{str(dtype).removeprefix('torch.')}.json"


def _keep(error: GradientError, file: Path) -> None:
    """Whole or not at all: the ranks of a training measure at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(error._asdict()), encoding="utf-8")
    partial.replace(file)


def _measure(operation: str, case: GradientCase) -> GradientError:
    started = time.perf_counter()
    try:
        found = _gradients(case.op, case.inputs)
    except Exception as error:  # whatever the library raises is what is to be reported
        problem = f"does not run: {type(error).__name__}: {error}"
        return GradientError(operation, math.inf, 1e3 * (time.perf_counter() - started), problem)
    expected = _gradients(case.naive, [x.float() for x in case.inputs])
    # Each input counts alike: a wrong gradient of a small tensor must not hide behind a large one.
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    return GradientError(operation, max(errors), 1e3 * (time.perf_counter() - started))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; infinite for anything that is not a number."""
    error = float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=FLOOR))
    return error if math.isfinite(error) else math.inf


def _gradients(op: Op, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = op(*leaves)
    generator = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=generator, device=output.device).bfloat16().float()
    return list(torch.autograd.grad((output.float() * weight).sum(), leaves))
