"""What one measurement gives: where it was made, what ran, its times, the memory's part and each operator's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from flashslm.benchmarking import memory, operators
from flashslm.benchmarking.case import Case
from flashslm.benchmarking.clock import StepTimes
from flashslm.benchmarking.record import Mbu, ModelFacts, Provenance, memory_bandwidth_use, model_facts, provenance
from flashslm.config import KernelsConfig
from flashslm.hardware import device_fingerprint
from flashslm.ops import kernels

T = TypeVar("T", bound=StepTimes)


class BenchmarkResult(Mbu, Provenance, ModelFacts):
    """One JSON object. `operator_share` is of the median step; see `operators` for what its parts are."""

    tokens_per_s: float
    operator_ms: dict[str, float]
    operator_share: dict[str, float]
    peak_memory_bytes: int


class BenchmarkRun(NamedTuple, Generic[T]):
    """A run's times, what was run in the end, and the backend of its decode step."""

    case: Case
    backend: str
    times: T


def moved_bytes(case: Case, backend: str) -> float:
    """What a mean decode step of a backend must move: only fused steps read weights of 8 bits as such."""
    return (case if backend == "fused" else replace(case, weights="full")).bytes_per_token


def measured(
    case: Case, setting: KernelsConfig, run: Callable[[Case], BenchmarkRun[T]]
) -> tuple[BenchmarkRun[T], dict[str, Any]]:
    """Call `run`, which keeps nothing on the device, and give the fields of `BenchmarkResult` and of its times."""
    kernels.configure(setting)
    copied_bytes_per_s = memory.copy_bytes_per_s(case.device)
    memory.release(case.device)
    memory.reset_peak(case.device)
    done = run(case)
    peak_bytes = memory.peak_bytes(case.device)
    memory.release(case.device)
    operator_ms = operators.operator_times_ms(done.case)
    memory.release(case.device)
    step_ms = done.times.tpot_ms_median
    gpu = device_fingerprint(case.device).gpu
    return done, {
        **provenance(case.device),
        **model_facts(done.case, done.backend),
        **done.times.model_dump(),
        **memory_bandwidth_use(moved_bytes(done.case, done.backend), step_ms, gpu, copied_bytes_per_s).model_dump(),
        "tokens_per_s": 1e3 * done.case.batch / done.times.tpot_ms_mean,
        "operator_ms": operator_ms,
        "operator_share": operators.shares(operator_ms, step_ms),
        "peak_memory_bytes": peak_bytes,
    }
