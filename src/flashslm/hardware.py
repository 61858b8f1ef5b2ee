"""Which machine this is: device choice, fingerprint, data-sheet peaks. No domain knowledge; torch only when called."""

import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from flashslm.config import digest

DeviceKind = Literal["cpu", "cuda"]


class Peak(NamedTuple):
    """Data-sheet peaks of one GPU: dense bfloat16 matrix FLOP/s (no sparsity) and memory bytes/s."""

    flops_per_s: float
    bytes_per_s: float


# Keyed by the driver's exact name: a MIG slice or an unlisted variant has another name, and so no peak.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 1.935e12),
    "NVIDIA H100 80GB HBM3": Peak(989.4e12, 3.35e12),
    "NVIDIA H100 NVL": Peak(835.5e12, 3.9e12),
    "NVIDIA H100 PCIe": Peak(756e12, 2.0e12),
    "NVIDIA H200": Peak(989.4e12, 4.8e12),
    "NVIDIA H200 NVL": Peak(835.5e12, 4.8e12),
    "NVIDIA B200": Peak(2250e12, 8.0e12),
}

SIDE_BY_SIDE = "FLASHSLM_SIDE_BY_SIDE"  # how many processes like this one share the machine
# Variables that say how many threads, and the most of them: inductor's own limit is 32.
_THREADS = {"OMP_NUM_THREADS": 2**16, "TORCHINDUCTOR_COMPILE_THREADS": 32}
_OWN = "FLASHSLM_OWN_THREADS"  # those of them that this project has set, and not the user

# In the texts of RuntimeErrors. The last is that of an allocation on a CPU.
_LACK_OF_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    "DefaultCPUAllocator: can't allocate memory",
)


class DeviceFingerprint(BaseModel):
    """Everything that a measured time depends on outside this project; an empty string is "not there"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: DeviceKind
    cpu: str
    cores: int
    gpu: str
    driver: str
    torch: str
    cuda: str

    @property
    def name(self) -> str:
        return self.gpu or f"{self.cpu} ({self.cores} cores)"

    @property
    def id(self) -> str:
        """Equal for equal hardware and versions, on any host."""
        return digest(self.model_dump())[:16]


def pick_device(device: Literal["auto", "cpu", "cuda"]) -> DeviceKind:
    """Resolve `auto` to CUDA where there is a GPU; ValueError when CUDA is asked for and absent."""
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ValueError("device is 'cuda' but this machine has no usable GPU: use 'auto' or 'cpu'")
    return "cpu"


def pick_dtype(dtype: Literal["auto", "float32", "bfloat16"], device: DeviceKind) -> Literal["float32", "bfloat16"]:
    """Resolve `auto`: bfloat16 on CUDA, float32 on CPU."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" else "float32"


@cache
def device_fingerprint(device: DeviceKind) -> DeviceFingerprint:
    """Describe the present process's first device of this kind."""
    import torch

    on_gpu = device == "cuda"
    return DeviceFingerprint(
        kind=device,
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name(0) if on_gpu else "",
        driver=_driver_version() if on_gpu else "",
        torch=torch.__version__,
        cuda=(torch.version.cuda or "") if on_gpu else "",
    )


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or its container's quota where that is less."""
    return math.ceil(min(_visible_cores(), max(_quota(cgroup), 1)))


def keep_threads_to_quota(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have libraries that are imported later, and child processes, start no more threads than there is quota for.

    A pod with a CPU limit sees all cores of its node: with a thread for each of them, all stand still for most of every
    period of the quota, and inductor's compile workers alone take gigabytes. What the user has set stays. Of several
    such processes on one machine (`SIDE_BY_SIDE`) each gets its share.
    """
    if usable_cores() < _visible_cores() or environ.get(SIDE_BY_SIDE, "1") != "1":
        environ.update(thread_shares(1, environ))


def thread_shares(processes: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables of each of so many processes that run side by side: its share of the usable cores, at least one.

    What the user has set stays; what `keep_threads_to_quota` has set for the parent alone is divided.
    """
    cores = max(1, usable_cores() // (processes * int(environ.get(SIDE_BY_SIDE, "1"))))
    own = environ.get(_OWN, "").split()
    names = [name for name in _THREADS if name not in environ or name in own]
    return {name: str(min(cores, _THREADS[name])) for name in names} | {_OWN: " ".join(names)}


@contextmanager
def threads_shared_by(processes: int) -> Iterator[None]:
    """So many child processes that start inside share the usable cores; this process keeps its threads."""
    with changed_environment(thread_shares(processes)):
        yield


@contextmanager
def changed_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process, and of children that start inside; afterwards they are what they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _visible_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _quota(cgroup: Path) -> float:
    """Cores per period by the second version of cgroups, or the first; infinite without a limit."""
    first = cgroup / "cpu"
    for files in ((cgroup / "cpu.max",), (first / "cpu.cfs_quota_us", first / "cpu.cfs_period_us")):
        try:
            limit, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
            return math.inf if limit in ("max", "-1") else int(limit) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return math.inf


def machine_digest() -> str:
    """A sha256 over processor, GPUs, driver and torch's version: for a cache key. Does not import torch."""
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = ""
    return digest([_cpu_model(), os.cpu_count(), _nvidia_smi("name,driver_version"), torch_version])


def peak(gpu: str) -> Peak | None:
    """Peaks of a GPU by its exact name; None for an unknown one (no number rather than a wrong one)."""
    return PEAKS.get(gpu)


def _cpu_model() -> str:
    """The CPU's marketing name where the system tells it, else its instruction set."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _driver_version() -> str:
    """The NVIDIA driver's version; torch does not tell it."""
    return next(iter(_nvidia_smi("driver_version")), "")


def _nvidia_smi(fields: str) -> list[str]:
    """A line of these fields for each GPU; nothing where the tool is absent or fails."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return found.strip().splitlines()


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch and its libraries report that by errors of several types."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in str(error) for sign in _LACK_OF_MEMORY
    )
