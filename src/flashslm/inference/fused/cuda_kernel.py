"""Kernels in CUDA C++: compiled for the device at hand, launched before the kernel ahead of them has ended."""

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from cuda.bindings import driver, nvrtc

from flashslm.config import digest
from flashslm.infra.state_files import write_whole
from flashslm.ops.kernel_cache import cache_directory

Attribute = driver.CUfunction_attribute
ALL_SHARED = 100  # per cent of an SM's memory that is not L1 cache


class Kernel(NamedTuple):
    """A compiled kernel, with the size of its blocks and the shared memory that they ask for."""

    name: str
    device: int
    function: Any
    threads: int
    shared_bytes: int
    spills: bool  # some of its registers live in memory

    def launch(self, blocks: int, arguments: ctypes.Structure) -> None:
        """Run on its device's present stream. The kernel itself waits for the one before it (programmatic launch)."""
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.shared_bytes
        config.hStream = driver.CUstream(torch.cuda.current_stream(self.device).cuda_stream)
        early = driver.CUlaunchAttribute()
        early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [early], 1
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        with torch.cuda.device(self.device):
            started = driver.cuLaunchKernelEx(config, self.function, ctypes.addressof(parameters), 0)
        _checked(started, f"launch of {self.name}, {blocks} blocks of {self.threads} threads")


def load(file: str, name: str, macros: Mapping[str, int], threads: int, shared_bytes: int, device: int) -> Kernel:
    """Kernel `name` of a source beside this module. RuntimeError with the compiler's or the driver's words."""
    what = f"{file} with {dict(macros)}"
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # the device's context is there and current
        return _load(file, name, macros, threads, shared_bytes, device, what)


def _load(
    file: str, name: str, macros: Mapping[str, int], threads: int, shared_bytes: int, device: int, what: str
) -> Kernel:
    major, minor = torch.cuda.get_device_capability(device)
    module = _module(file, f"sm_{major}{minor}", tuple(sorted(macros.items())), what)
    function = _checked(driver.cuModuleGetFunction(module, name.encode()), what)
    # An SM must be idle to split its memory differently: with one split, a kernel starts before the last ends.
    for attribute, value in (
        (Attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes),
        (Attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, ALL_SHARED),
    ):
        _checked(
            driver.cuFuncSetAttribute(function, attribute, value), f"{what}, {shared_bytes} bytes of shared memory"
        )
    spilt_bytes = _checked(driver.cuFuncGetAttribute(Attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function), what)
    return Kernel(what, device, function, threads, shared_bytes, spilt_bytes > 0)


def _module(file: str, architecture: str, macros: tuple[tuple[str, int], ...], what: str) -> Any:
    """The loaded binary; one on disk that does not load is damaged, and is compiled again."""
    kept = _compiled(file, architecture, macros)
    try:
        return _checked(driver.cuModuleLoadData(kept), what)
    except RuntimeError:
        return _checked(driver.cuModuleLoadData(_compiled(file, architecture, macros, again=True)), what)


@cache
def _compiled(file: str, architecture: str, macros: tuple[tuple[str, int], ...], again: bool = False) -> bytes:
    """The binary, which is kept beside the kernels that Triton compiles: steps and machines share them."""
    package = files(__package__)
    sources = {
        entry.name: entry.read_text("utf-8") for entry in package.iterdir() if entry.name.endswith((".cu", ".cuh"))
    }
    options = [f"--gpu-architecture={architecture}", "-std=c++17", *(f"-D{name}={value}" for name, value in macros)]
    compiler = [*map(str, nvrtc.nvrtcVersion()), *_nvrtc_builds()]
    kept = cache_directory() / "cuda" / f"{digest([compiler, sources, file, options])}.cubin"
    if not again:
        with suppress(OSError):
            return kept.read_bytes()
    binary = _compile(file, sources, options)
    with suppress(OSError):  # it only saves time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, binary)
    return binary


@cache
def _nvrtc_builds() -> list[str]:
    """The installed packages of the compiler, whose own version says nothing of patch releases."""
    found = [(one.metadata["Name"] or "", one.version) for one in distributions()]
    return sorted(f"{name}=={version}" for name, version in found if name.lower().startswith("nvidia-cuda-nvrtc"))


def _compile(file: str, sources: Mapping[str, str], options: Sequence[str]) -> bytes:
    headers = [name for name in sources if name.endswith(".cuh")]
    included = [sources[name].encode() for name in headers], [name.encode() for name in headers]
    program = _checked(nvrtc.nvrtcCreateProgram(sources[file].encode(), file.encode(), len(headers), *included), file)
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytes(bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program), file)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log), file)
        raise RuntimeError(f"{file} does not compile with {' '.join(options)}: {log.decode()}")
    binary = bytes(bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program), file)))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary), file)
    return binary


def _checked(result: tuple[Any, ...], what: str) -> Any:
    """The value that a call of the driver or the compiler returned beside its status."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{what}: {status.name}; kernels.decode=torch decodes without it")
    return values[0] if values else None
