"""The binaries of CUDA C++ kernels on disk, with a compiler that has what NVRTC has."""

import importlib
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from flashslm.ops import kernel_cache

MODULE = "flashslm.inference.fused.cuda_kernel"


class Compiler:
    """A program is its sources, a binary those and the options."""

    nvrtcResult = SimpleNamespace(NVRTC_SUCCESS=0)

    def __init__(self) -> None:
        self.version, self.compiled = 12, 0

    def nvrtcVersion(self) -> tuple[int, int, int]:
        return 0, self.version, 0

    def nvrtcCreateProgram(self, source: bytes, *_: Any) -> tuple[int, list[bytes]]:
        return 0, [source[:20]]

    def nvrtcCompileProgram(self, program: list[bytes], _: int, options: list[bytes]) -> tuple[int]:
        self.compiled += 1
        program += options
        return (0,)

    def nvrtcGetCUBINSize(self, program: list[bytes]) -> tuple[int, int]:
        return 0, len(b" ".join(program))

    def nvrtcGetCUBIN(self, program: list[bytes], binary: bytes) -> tuple[int]:
        return (0,)


@pytest.fixture
def compiler() -> Compiler:
    return Compiler()


@pytest.fixture
def module(compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module on a machine with this compiler and an empty cache."""
    bindings: Any = ModuleType("cuda.bindings")
    bindings.driver, bindings.nvrtc = SimpleNamespace(CUfunction_attribute=None), compiler
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def test_a_binary_is_compiled_once_for_all_processes(module: Any, compiler: Compiler) -> None:
    def in_another_process(*what: Any) -> bytes:
        module._compiled.cache_clear()
        return bytes(module._compiled(*what))

    first = in_another_process("projection.cu", "sm_90", (("SIZE", 1),))
    assert in_another_process("projection.cu", "sm_90", (("SIZE", 1),)) == first and compiler.compiled == 1
    in_another_process("projection.cu", "sm_90", (("SIZE", 2),))
    in_another_process("projection.cu", "sm_80", (("SIZE", 1),))
    assert compiler.compiled == 3
    compiler.version = 13
    in_another_process("projection.cu", "sm_90", (("SIZE", 1),))
    assert compiler.compiled == 4
    assert len(list((kernel_cache.cache_directory() / "cuda").glob("*.cubin"))) == 4


def test_a_damaged_binary_is_compiled_again(module: Any, compiler: Compiler) -> None:
    whole = bytes(module._compiled("projection.cu", "sm_90", ()))
    (kept,) = (kernel_cache.cache_directory() / "cuda").glob("*.cubin")
    kept.write_bytes(whole[:5])
    module._compiled.cache_clear()
    error = IntEnum("Status", {"CUDA_ERROR_INVALID_IMAGE": 200}).CUDA_ERROR_INVALID_IMAGE  # type: ignore[attr-defined]
    module.driver.cuModuleLoadData = lambda binary: (0, binary) if binary == whole else (error,)
    assert module._module("projection.cu", "sm_90", (), "x") == whole == kept.read_bytes()
    assert compiler.compiled == 2
    module.driver.cuModuleLoadData = lambda _: (error,)
    with pytest.raises(RuntimeError, match="x: CUDA_ERROR_INVALID_IMAGE"):
        module._module("projection.cu", "sm_80", (), "x")


def test_a_directory_that_cannot_be_written_costs_a_compilation(module: Any, compiler: Compiler) -> None:
    (kernel_cache.cache_directory().parent).mkdir(parents=True, exist_ok=True)
    kernel_cache.cache_directory().write_text("a file")
    for number in (1, 2):
        module._compiled.cache_clear()
        assert module._compiled("projection.cu", "sm_90", ())
        assert compiler.compiled == number
