"""The device's memory: how fast it copies, how much is free, how much was used."""

import gc
import os
import resource

import numpy as np
import torch

from flashslm.benchmarking.clock import step_times_ms
from flashslm.hardware import DeviceKind

COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}  # far beyond any cache on the device
COPIES = 20


def copy_bytes_per_s(device: DeviceKind) -> float:
    """Memory bandwidth of a copy, median of `COPIES`; a byte counts when it is read and when it is written."""
    source = torch.full((COPIED_BYTES[device],), 7, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    median_ms = float(np.median(step_times_ms(lambda: target.copy_(source), COPIES, device)))
    return 2 * source.nbytes / (median_ms * 1e-3)


def reset_peak(device: DeviceKind) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: DeviceKind) -> int:
    """On CUDA the most that tensors took since the reset; on a CPU the process's largest resident memory so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_bytes(device: DeviceKind) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
