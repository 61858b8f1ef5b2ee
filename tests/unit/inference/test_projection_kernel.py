"""The projection kernel equals the operations that it fuses: its source, run on the CPU with lanes as threads."""

import ctypes
import importlib
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import flashslm.inference.fused as fused
from flashslm.inference.fused.tilings import Tiling, cut
from flashslm.ops.int8_weights import quantise_rows

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
TOLERANCE = 1e-2  # bf16 outputs of fp32 sums
EPS = 1e-6
SOURCE = Path(fused.__file__).with_name("projection.cu")
RUN = """
extern "C" void run(const Arguments* given, int blocks) {
    Arguments a = *given;
    std::vector<u16> x(BATCH * SIZE, 0x7fff);  // not a number
    a.x = x.data();
    float* stream = static_cast<float*>(a.out);
    std::vector<float> before(RESIDUAL ? BATCH * a.rows : 0, NAN);
    if (RESIDUAL) std::swap_ranges(before.begin(), before.end(), stream);
    write_inputs = [&] {
        std::copy_n(given->x, x.size(), x.begin());
        std::copy(before.begin(), before.end(), stream);
    };
    run_blocks(project, a, blocks, THREADS);
}
"""
EMULATOR = Path(__file__).with_name("cuda_on_cpu.h")


@pytest.fixture(scope="module")
def projection(tmp_path_factory):
    """`inference.fused.projection` with kernels compiled for the CPU."""
    folder, numbers = tmp_path_factory.mktemp("kernels"), itertools.count()
    compiler = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-pthread"]
    standard = folder / "standard.h"  # compiled once: most of what a kernel's compilation costs otherwise
    standard.write_text("\n".join(re.findall(r"^#include <.*>$", EMULATOR.read_text(), re.MULTILINE)) + "\n")
    subprocess.run([*compiler, "-x", "c++-header", "-o", f"{standard}.gch", standard], check=True)

    def load(file, name, macros, threads, shared_bytes, device):
        assert shared_bytes <= 227 * 1024 and threads <= 1024
        library, source = (folder / f"{next(numbers)}.{end}" for end in ("so", "cpp"))
        source.write_text(f'#include "{EMULATOR}"\n#include "{SOURCE}"\n{RUN}')
        options = [f"-D{macro}={value}" for macro, value in macros.items()]
        subprocess.run([*compiler, "-include", standard, *options, "-shared", "-o", library, source], check=True)
        run = ctypes.CDLL(str(library)).run
        return SimpleNamespace(spills=False, launch=lambda blocks, a: run(ctypes.byref(a), blocks))

    stub = ModuleType("cuda_kernel")
    stub.load, stub.Kernel = load, SimpleNamespace
    names = [f"flashslm.inference.fused.{name}" for name in ("cuda_kernel", "projection")]
    saved = {name: sys.modules.pop(name, None) for name in names}
    sys.modules[names[0]] = stub
    yield importlib.import_module(names[1])
    for name in names:
        sys.modules.pop(name)
        if saved[name] is not None:
            sys.modules[name] = saved[name]


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape).to(dtype)


def unwritten(*shape, dtype=torch.bfloat16):
    return torch.full(shape, torch.nan, dtype=dtype)


def error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


SIZES = pytest.mark.parametrize("size, rows", [(264, 21), (1024, 37), (2304, 9)])
BATCHES = pytest.mark.parametrize("batch", [1, 2, 3, 4])


@pytest.mark.parametrize("size, rows", [(264, 21), (2304, 9)])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalised_inputs(projection, size, rows, batch, dtype):
    torch.manual_seed(0)
    x, weight, norm = normal(batch, size), normal(rows, size) * size**-0.5, (torch.rand(size) + 0.5).to(dtype)
    out = unwritten(batch, rows)
    projection.project(projection.Product(x, weight, out, projection.Norm(norm, EPS)))
    assert error(out, F.rms_norm(x.double(), (size,), norm.double(), EPS) @ weight.double().T) < TOLERANCE


@pytest.mark.parametrize("scale", [1e-4, 1, 8000])
def test_float16_holds_what_is_normalised(projection, scale):
    """However large or small the stream is, and whatever the norm's weight."""
    torch.manual_seed(0)
    size, rows, dtype = 520, 21, torch.float16
    x, norm = (torch.randn(3, size) * scale).to(dtype), (torch.rand(size) * 6).to(dtype)
    weight, out = normal(rows, size, dtype=dtype) / 24, unwritten(3, rows, dtype=dtype)
    projection.project(projection.Product(x, weight, out, projection.Norm(norm, 1e-12)))
    expected = F.rms_norm(x.double(), (size,), norm.double(), 1e-12) @ weight.double().T
    assert error(out, expected) < 2e-3


@pytest.mark.parametrize("waiting", [(4, 0), (4, 4), (8, 12), (20, 4), (24, 0)], ids=str)
def test_whatever_part_of_the_weights_waits(projection, monkeypatch, waiting):
    """Of 24 steps those that wait nowhere are asked for as registers become free."""
    torch.manual_seed(0)
    monkeypatch.setattr(projection, "tiling", lambda *shape: Tiling(2, 2, 3, *waiting))
    x, weight, out = normal(1, 1496), normal(35, 1496) / 38, unwritten(1, 35, dtype=torch.float32)
    projection.project(projection.Product(x, weight, out))
    assert error(out, x.double() @ weight.double().T) < 1e-5


@pytest.mark.parametrize("head", [32, 256])
def test_normalised_heads(projection, head):
    torch.manual_seed(0)
    x, weight, norm = normal(2, 768), normal(19, 768) / 28, (torch.rand(head) + 0.5).bfloat16()
    out = unwritten(2, 19)
    projection.project(projection.Product(x, weight, out, projection.Norm(norm, EPS, head)))
    heads = F.rms_norm(x.double().view(2, -1, head), (head,), norm.double(), EPS).flatten(1)
    assert error(out, heads @ weight.double().T) < TOLERANCE


@SIZES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gated(projection, dtype, size, rows):
    torch.manual_seed(0)
    x, weight, norm = normal(1, size), normal(2 * rows, size) * size**-0.5, torch.rand(size) + 0.5
    x, weight, norm = (tensor.to(dtype) for tensor in (x, weight, norm))
    out = unwritten(1, rows, dtype=dtype)
    projection.project(projection.Product(x, weight, out, projection.Norm(norm, EPS), swiglu=True))
    gate, up = (F.rms_norm(x.double(), (size,), norm.double(), EPS) @ weight.double().T).chunk(2, dim=1)
    assert error(out, F.silu(gate) * up) < TOLERANCE


@BATCHES
def test_onto_the_stream(projection, batch):
    torch.manual_seed(0)
    x, weight, before = normal(batch, 1024), normal(37, 1024) / 32, normal(batch, 37, dtype=torch.float32)
    stream = projection.Stream(before.clone(), unwritten(batch, 37))
    projection.project(projection.Product(x, weight, stream))
    assert error(stream.exact, before.double() + x.double() @ weight.double().T) < 1e-5
    assert torch.equal(stream.rounded, stream.exact.bfloat16())


def test_into_a_ring(projection):
    torch.manual_seed(0)
    x, weight, lengths_B = normal(3, 512), normal(50, 512) / 16, torch.tensor([5, 1003, 2])
    out, inputs = unwritten(3, 50), unwritten(3, 4, 20)
    projection.project(
        projection.Product(x, weight, out, ring=projection.Ring(inputs, 7, lengths_B, torch.zeros(20, 4)))
    )
    expected = x.double() @ weight.double().T
    assert error(inputs[torch.arange(3), lengths_B % 4], expected[:, 7:27]) < TOLERANCE
    assert error(torch.cat([out[:, :7], out[:, 27:]], 1), torch.cat([expected[:, :7], expected[:, 27:]], 1)) < TOLERANCE
    assert inputs.isnan().sum() == 3 * 20 * 3 and out.isnan().sum() == 20 * 3


@pytest.mark.parametrize("rows", [3, 101])
def test_the_first_of_the_best(projection, rows):
    torch.manual_seed(0)
    x, weight = normal(2, 256), normal(rows, 256)
    weight[rows // 2 :] = weight[: rows - rows // 2].clone()  # every score twice or more
    logits, best = unwritten(2, rows, dtype=torch.float32), projection.Best.allocate(2, weight)
    projection.project(projection.Product(x, weight, logits), best)
    highest = best.score_BP == best.score_BP.amax(1, keepdim=True)
    assert torch.equal(best.score_BP.amax(1), logits.amax(1))
    assert torch.equal(torch.where(highest, best.row_BP, rows).amin(1), logits.argmax(1).int())


INT8_SIZES = pytest.mark.parametrize("size, rows", [(272, 21), (1040, 37), (2304, 9)])


@INT8_SIZES
@BATCHES
def test_weights_of_8_bits(projection, size, rows, batch):
    """Inputs are taken to 16 bits, so that what remains is the rounding of the output."""
    torch.manual_seed(0)
    x, weight, norm = normal(batch, size), normal(rows, size) * size**-0.5, torch.rand(size) + 0.5
    x[:, 5] *= 100  # an outlier among the inputs
    quantised, out = quantise_rows(weight), unwritten(batch, rows, dtype=torch.float32)
    projection.project(projection.Product(x, quantised, out, projection.Norm(norm, EPS)))
    normed = (x.double() * norm).bfloat16().double() * torch.rsqrt(x.double().square().mean(1, keepdim=True) + EPS)
    assert error(out, normed @ quantised.dequantised().double().T) < 1e-4


@INT8_SIZES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gated_with_weights_of_8_bits(projection, dtype, size, rows):
    torch.manual_seed(0)
    x, weight, norm = normal(2, size), normal(2 * rows, size) * size**-0.5, torch.rand(size) + 0.5
    x, weight, norm = (tensor.to(dtype) for tensor in (x, weight, norm))
    quantised, out = quantise_rows(weight), unwritten(2, rows, dtype=dtype)
    projection.project(projection.Product(x, quantised, out, projection.Norm(norm, EPS), swiglu=True))
    normed = F.rms_norm(x.double(), (size,), norm.double(), EPS)
    gate, up = (normed @ quantised.dequantised().double().T).chunk(2, dim=1)
    assert error(out, F.silu(gate) * up) < TOLERANCE


@pytest.mark.parametrize("head", [32, 128, 256])
def test_weights_of_8_bits_onto_the_stream_from_normalised_heads(projection, head):
    torch.manual_seed(0)
    x, weight, norm = normal(3, 768), normal(19, 768) / 28, (torch.rand(head) + 0.5).bfloat16()
    before = normal(3, 19, dtype=torch.float32)
    stream, quantised = projection.Stream(before.clone(), unwritten(3, 19)), quantise_rows(weight)
    projection.project(projection.Product(x, quantised, stream, projection.Norm(norm, EPS, head)))
    heads = F.rms_norm(x.double().view(3, -1, head), (head,), norm.double(), EPS).flatten(1)
    assert error(stream.exact, before.double() + heads @ quantised.dequantised().double().T) < TOLERANCE


def test_whatever_part_of_the_8_bits_waits(projection, monkeypatch):
    torch.manual_seed(0)
    x, weight = normal(1, 2992), normal(35, 2992) / 54
    for waiting in ((4, 0), (4, 4), (20, 4)):
        monkeypatch.setattr(projection, "tiling", lambda *shape, waiting=waiting: Tiling(2, 2, 3, *waiting))
        out, quantised = unwritten(1, 35, dtype=torch.float32), quantise_rows(weight)
        projection.project(projection.Product(x, quantised, out))
        assert error(out, x.double() @ quantised.dequantised().double().T) < 1e-4


def test_a_row_and_an_input_of_zeros(projection):
    x, weight, out = torch.zeros(1, 272).bfloat16(), torch.zeros(9, 272).bfloat16(), unwritten(1, 9)
    projection.project(projection.Product(x, quantise_rows(weight), out))
    assert torch.equal(out, torch.zeros(1, 9).bfloat16())


SIXTEEN_ROWS = pytest.mark.parametrize("waiting", [(4, 4), (16, 0), (12, 24)], ids=str)


def use_16_rows(projection, monkeypatch, depth, strips, waiting):
    """Every weight is shared by warps of 16 rows; its size counts pairs of 8 bits."""
    monkeypatch.setattr(projection, "tiling", lambda _, size, *rest: cut(size, depth, strips, *waiting, 16))


@SIXTEEN_ROWS
@pytest.mark.parametrize("size, rows, batch", [(272, 21, 1), (1040, 37, 3), (2304, 50, 2)])
def test_warps_of_16_rows(projection, monkeypatch, waiting, size, rows, batch):
    torch.manual_seed(0)
    use_16_rows(projection, monkeypatch, 2, 2, waiting)
    x, weight, norm = normal(batch, size), normal(rows, size) * size**-0.5, torch.rand(size) + 0.5
    quantised, out = quantise_rows(weight), unwritten(batch, rows, dtype=torch.float32)
    projection.project(projection.Product(x, quantised, out, projection.Norm(norm, EPS)))
    normed = (x.double() * norm).bfloat16().double() * torch.rsqrt(x.double().square().mean(1, keepdim=True) + EPS)
    assert error(out, normed @ quantised.dequantised().double().T) < 1e-4


def test_gated_by_warps_of_16_rows(projection, monkeypatch):
    torch.manual_seed(0)
    use_16_rows(projection, monkeypatch, 1, 2, (8, 4))
    x, weight, norm = normal(1, 1040), normal(74, 1040) / 32, (torch.rand(1040) + 0.5).bfloat16()
    quantised, out = quantise_rows(weight), unwritten(1, 37)
    projection.project(projection.Product(x, quantised, out, projection.Norm(norm, EPS), swiglu=True))
    normed = F.rms_norm(x.double(), (1040,), norm.double(), EPS)
    gate, up = (normed @ quantised.dequantised().double().T).chunk(2, dim=1)
    assert error(out, F.silu(gate) * up) < TOLERANCE


@pytest.mark.parametrize("strips", [1, 4])
def test_the_first_of_the_best_by_warps_of_16_rows(projection, monkeypatch, strips):
    torch.manual_seed(0)
    use_16_rows(projection, monkeypatch, 2, strips, (8, 4))
    x, weight = normal(2, 512), normal(101, 512)
    weight[50:] = weight[:51].clone()  # every score twice
    quantised = quantise_rows(weight)
    logits, best = unwritten(2, 101, dtype=torch.float32), projection.Best.allocate(2, quantised)
    projection.project(projection.Product(x, quantised, logits), best)
    highest = best.score_BP == best.score_BP.amax(1, keepdim=True)
    assert torch.equal(best.score_BP.amax(1), logits.amax(1))
    assert torch.equal(torch.where(highest, best.row_BP, 101).amin(1), logits.argmax(1).int())
