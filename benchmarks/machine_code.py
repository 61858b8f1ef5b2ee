"""Digest the machine code of the projection kernel's variants: a refactoring that changes none needs no new records.

    .venv/bin/python benchmarks/machine_code.py [--architecture sm_90] > before.txt

Compiles, with nvcc and without a GPU, every variant that a decode step of the presets launches, and prints one line per
variant: the sha256 of its instructions (the .text sections of the cubin), then its macros.
"""

import argparse
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

import flashslm.inference.fused as fused
from flashslm.benchmarking.options import OptionType, before_work, script_parser
from flashslm.inference.fused.stream import Stream
from flashslm.models.architecture import Architecture
from flashslm.models.presets import preset

PRESETS = ("nemotron-flash-1b", "qwen3-0.6b")
BATCHES = (1, 2, 4)


def _gpu_architecture(text: str) -> str:
    if not re.fullmatch(r"sm_\d{2,3}[af]?", text):
        raise ValueError(f"'{text}' is not a GPU architecture of nvcc: give one such as sm_90")
    return text


GPU_ARCHITECTURE = OptionType(_gpu_architecture)


def recorded_macros() -> Iterator[dict[str, int]]:
    """The macros of every launch, from `projection.project` itself with the compiler left out."""
    found: list[dict[str, int]] = []

    def load(file: str, name: str, macros: Mapping[str, int], *_: object) -> SimpleNamespace:
        found.append(dict(macros))
        return SimpleNamespace(spills=False, launch=lambda *_: None)

    stub = ModuleType("cuda_kernel")
    stub.load, stub.Kernel = load, SimpleNamespace  # type: ignore[attr-defined]
    sys.modules["flashslm.inference.fused.cuda_kernel"] = stub
    from flashslm.inference.fused import projection

    for name in PRESETS:
        for batch in BATCHES:
            launch_all(projection, preset(name), batch, torch.bfloat16)
    launch_all(projection, preset(PRESETS[0]), 1, torch.float16)
    yield from {tuple(sorted(macros.items())): macros for macros in found}.values()


def launch_all(projection: ModuleType, a: Architecture, batch: int, dtype: torch.dtype) -> None:
    """The products of a decode step: into each operator, out of it into the stream, the head."""

    def project(rows: int, size: int, norm: int | None, out: str = "buffer", **options: object) -> None:
        def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=of)

        weight = empty(rows, size)
        outs = {"stream": lambda: Stream(empty(batch, rows, of=torch.float32), empty(batch, rows))}
        outs |= {"buffer": lambda: empty(batch, rows), "logits": lambda: empty(batch, rows, of=torch.float32)}
        given = None if norm is None else projection.Norm(empty(size), 1e-6, norm)
        if options.pop("ring", False):
            lengths = torch.zeros(batch, dtype=torch.int64)
            options["ring"] = projection.Ring(empty(batch, 4, 8), 0, lengths, empty(8, 4, of=torch.float32))
        best = projection.Best.allocate(batch, weight) if options.pop("best", False) else None
        projection.project(projection.Product(empty(batch, size), weight, outs[out](), given, **options), best)

    hidden, heads = a.hidden_size, a.heads_size
    if "D" in a.operators:
        project(3 * heads + a.num_heads, hidden, 0, ring=True)
        project(hidden, heads, a.head_dim, "stream")
    if "M" in a.operators:
        project(a.mamba_projected_rows, hidden, 0, ring=True)
        project(hidden, a.mamba_inner, 0, "stream")
    if "A" in a.operators:
        project(heads + 2 * a.num_kv_heads * a.head_dim, hidden, 0)
        project(hidden, heads, None, "stream")
    project(2 * a.ffn_size, hidden, 0, swiglu=True)
    project(hidden, a.ffn_size, None, "stream")
    project(a.vocab_size, hidden, 0, "logits", best=True)


def digest(macros: Mapping[str, int], architecture: str) -> str:
    """The sha256 of a variant's instructions."""
    source = Path(fused.__file__).with_name("projection.cu")
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "kernel.cubin"
        options = [f"-arch={architecture}", "-std=c++17", *(f"-D{name}={value}" for name, value in macros.items())]
        subprocess.run(["nvcc", "-cubin", *options, "-o", str(binary), str(source)], check=True)
        return hashlib.sha256(b"".join(text_sections(binary.read_bytes()))).hexdigest()


def text_sections(elf: bytes) -> Iterator[bytes]:
    """The .text sections of a 64-bit ELF file."""
    (table,), (size, count, names) = struct.unpack_from("<Q", elf, 40), struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if elf.startswith(b".text", strings + name):
            yield elf[offset : offset + length]


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--architecture", type=GPU_ARCHITECTURE, default="sm_90")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    architecture = parser.parse_args(arguments).architecture
    with before_work(parser):
        if not shutil.which("nvcc"):
            raise ValueError("nvcc is not on the PATH: install the CUDA toolkit")
    variants = list(recorded_macros())
    with ThreadPoolExecutor(2) as pool:
        for macros, found in zip(variants, pool.map(lambda m: digest(m, architecture), variants), strict=True):
            print(found[:16], *(f"{name}={int(value)}" for name, value in sorted(macros.items())), flush=True)


if __name__ == "__main__":
    main()
