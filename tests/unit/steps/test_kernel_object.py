"""What the object of compiled kernels leaves out is what Triton does not need; this needs Triton, but no GPU."""

from pathlib import Path

import pytest

from flashslm.steps.kernel_object import INTERMEDIATE

SOURCE = """
import triton
import triton.language as tl


@triton.jit
def add_one(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < count) + 1, mask=at < count)
"""


def test_triton_loads_a_kernel_without_its_intermediate_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    (tmp_path / "kernel_of_a_test.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    from kernel_of_a_test import add_one

    types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source, target = ASTSource(add_one, types, {(3,): 128}), GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target)
    left_out = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in INTERMEDIATE]
    assert len(left_out) == len(INTERMEDIATE)
    for path in left_out:
        path.unlink()
    loaded = triton.compile(source, target=target)
    assert list(loaded.asm) == ["cubin"]
    assert loaded.asm["cubin"] == compiled.asm["cubin"] and loaded.metadata == compiled.metadata
