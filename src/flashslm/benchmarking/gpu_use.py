"""How busy a GPU was: nvidia-smi's samples over a stretch of time, and their mean between two moments."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import NamedTuple

EVERY_S = 2
_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")


class GpuSample(NamedTuple):
    """`busy_percent` is the share of the time before the sample in which a kernel ran, as nvidia-smi reports it."""

    time_s: float  # POSIX
    busy_percent: float
    memory_mib: float


@contextmanager
def gpu_samples(every_s: int = EVERY_S) -> Iterator[list[GpuSample]]:
    """Samples of the GPU that processes of this environment see first, one per `every_s`, while the block runs.

    The list stays empty without nvidia-smi.
    """
    samples: list[GpuSample] = []
    try:
        command = [*_QUERY, f"--id={_first_visible()}", f"--loop={every_s}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield samples
        return
    reader = threading.Thread(target=_read, args=(process, samples), daemon=True)
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        reader.join()


def busy_share(samples: Sequence[GpuSample], begin_s: float, end_s: float) -> float | None:
    """Mean share of the samples from `begin_s` to `end_s`; None where there is none."""
    busy = [sample.busy_percent for sample in samples if begin_s <= sample.time_s <= end_s]
    return fmean(busy) / 100 if busy else None


def _first_visible() -> str:
    """An index or a UUID, as nvidia-smi takes them too."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def _read(process: subprocess.Popen[str], samples: list[GpuSample]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        try:
            busy, memory = map(float, line.split(","))
        except ValueError:  # "[N/A]", or a message in place of numbers
            continue
        samples.append(GpuSample(time.time(), busy, memory))
