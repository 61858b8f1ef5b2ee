"""Joules per token, from the counter that NVIDIA GPUs keep of the energy they have taken (Volta and later)."""

import time
from collections.abc import Callable

from flashslm.hardware import DeviceKind
from flashslm.profiling.timing import TimedCall

SECONDS = 2.0  # the counter is renewed about ten times a second: short stretches would be rounded
CALLS_AT_A_TIME = 16


def joules_per_token(step: TimedCall, batch: int, device: DeviceKind) -> float | None:
    """Energy of the whole GPU for a decode step, by token; None on a CPU and where NVML has no counter.

    What else runs on the GPU is counted too. Raises nothing: a measurement without energy is still one.
    """
    read = _energy_counter_j() if device == "cuda" else None
    if read is None:
        return None
    step()
    before_j, calls = _synchronised(read), 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for _ in range(CALLS_AT_A_TIME):
            step()
        calls += CALLS_AT_A_TIME
        _synchronise()
    return (_synchronised(read) - before_j) / (calls * batch)


def _energy_counter_j() -> Callable[[], float] | None:
    """Reads the counter of the present GPU, in joules."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(_uuid())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # the package, the driver or the counter is not there
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def _uuid() -> str:
    """NVML numbers all GPUs of the machine, torch those that this process sees."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _synchronise() -> None:
    import torch

    torch.cuda.synchronize()


def _synchronised(read: Callable[[], float]) -> float:
    _synchronise()
    return read()
