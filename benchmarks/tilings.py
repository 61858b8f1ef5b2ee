"""Find the fastest tiling of each projection, in the decode steps of whole models at batch 1.

    python benchmarks/tilings.py [--budget-s 200] [--weights int8 [--warp-rows 8 16]] [--output FILE]

A tiling is tried where it counts: everything else of the step stays as it is. First depths and strips, then what waits
in registers and what in shared memory. A warp has 8 rows of weights; with 8 bits each it may have 16, so
that half as many warps prepare the inputs: `--warp-rows 8 16` tries both, which no record has yet. Writes
src/flashslm/inference/fused/tilings.json (or tilings-int8.json), which `tilings.tiling` reads, and a record with the
steps' times in benchmarks/results.
"""

import argparse
import importlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flashslm.benchmarking.options import OUTPUT, POSITIVE, before_work, require_gpu, script_parser
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.config import KernelsConfig, ModelConfig, WeightFormat
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.fused.tilings import PIECE, TILE, Measured, Tiling, cut
from flashslm.infra.state_files import require_writable
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.presets import PRESETS
from flashslm.models.random_weights import random_model
from flashslm.ops import kernels

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "src/flashslm/inference/fused"
PROJECTION = "flashslm.inference.fused.projection"  # needs the extra `cuda`, so imported where it is used
TABLES = {"full": "tilings.json", "int8": "tilings-int8.json"}  # of the second the sizes are pairs of weights
SIZES = ModelConfig(head_dim=128, kv_group=4, ffn_ratio=3, mamba_state=128, mamba_head_dim=64)
WIDTHS = (1024, 1280, 1536, 1792, 2304, 2560, 2816)
OPERATORS = "DFMFAFMFDFMF"
VOCAB_SIZE = 131_072
CONTEXT = 8192
SETS, STEPS = 3, 12  # replays: the median of the sets counts
BETTER = 0.998  # a new tiling's time over the old one's, at most
SPLITS = {8: (4, 4), 16: (8, 4), 24: (12, 8), 32: (12, 8)}  # of a warp's steps, where depths are compared
WHOLE = (16, 0)  # the other way in which they are compared
WAITING = ((4, 4), (8, 0), (4, 12), (8, 8), (12, 4), (16, 0), (12, 8), (8, 16), (24, 4), (12, 24))
WARP_ROWS = (8, 16)
MOST_BYTES = 160 * 1024  # of a block's rows

Shape = tuple[int, int, bool]  # rows, size, gated


class Tuner:
    """One model's step, and the tilings of its projections."""

    def __init__(
        self,
        architecture: Architecture,
        tilings: dict[Shape, Tiling],
        weights: WeightFormat,
        warp_rows: Sequence[int] = (TILE,),
    ) -> None:
        self.tilings, self.used, self.warp_rows = tilings, dict[Shape, int](), warp_rows
        self.variants = dict[Shape, set[tuple[int, tuple[tuple[str, int], ...]]]]()
        self.asked: Shape = (0, 0, False)
        self.projection: Any = importlib.import_module(PROJECTION)
        self.kernel = self.projection._kernel
        self.projection.tiling = self.tiling
        model = random_model(architecture, "cuda", torch.bfloat16)
        self.engine = DecodeEngine(model, 1, CONTEXT + 2 * STEPS, weights=weights)
        self.decoder = self.engine.decode_graph.decoder
        self.pool = ThreadPoolExecutor(16, initializer=lambda: torch.zeros(1, device="cuda"))

    def tiling(self, rows: int, size: int, gated: bool = False, int8: bool = False) -> Tiling:
        self.asked = shape = rows, size, gated
        self.used[shape] = self.used.get(shape, 0) + 1
        return self.tilings.setdefault(shape, cut(size, 2, 2, 8, 4))

    def shapes(self) -> list[Shape]:
        """Those of a step, what moves most bytes first, with the kernels that they need."""
        self.used.clear()
        self.projection._kernel = self._note
        self._step()
        self.projection._kernel = self.kernel
        return sorted(self.used, key=lambda shape: -self.used[shape] * shape[0] * shape[1])

    def _note(self, device: int, tile: Tiling, macros: tuple[tuple[str, int], ...]) -> Any:
        self.variants.setdefault(self.asked, set()).add((device, macros))
        return self.kernel(device, tile, macros)

    def compile(self, shape: Shape, tiles: Iterable[Tiling]) -> None:
        jobs = [(device, tile, macros) for device, macros in self.variants[shape] for tile in tiles]
        list(self.pool.map(lambda job: self.kernel(*job), jobs))

    @torch.inference_mode()
    def _step(self) -> None:
        self.engine.cache.lengths_B.fill_(CONTEXT)
        self.engine.decode_graph._step()

    def step_us(self) -> float:
        """Capture the step with the present tilings and time it."""
        assert self.decoder is not None
        self.decoder.best = self.projection.Best.allocate(1, self.decoder.head)
        self._step()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self.engine.decode_graph._step()
        times = []
        for _ in range(SETS):
            self.engine.cache.lengths_B.fill_(CONTEXT)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(STEPS):
                graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / STEPS * 1e3)
        return median(times)

    def choose(self, shape: Shape, tiles: Iterable[Tiling]) -> list[tuple[float, Tiling]]:
        """Try tilings for a shape and keep the fastest; all, the fastest first."""
        old = self.tilings[shape]
        tiles = [old, *dict.fromkeys(tile for tile in tiles if tile != old)]
        self.compile(shape, tiles)
        tried = []
        for tile in tiles:
            self.tilings[shape] = tile
            tried.append((self.step_us(), tile))
        best = min(tried)
        self.tilings[shape] = best[1] if best[0] < BETTER * tried[0][0] else old
        return sorted(tried)

    def tune(self, shape: Shape) -> None:
        size = shape[1]
        tried = self.choose(shape, (tile for rows in self.warp_rows for tile in coarse(size, rows)))
        for _, tile in tried[:2]:
            self.choose(shape, [cut(size, tile.depth, tile.strips, *waiting, tile.warp_rows) for waiting in WAITING])


def coarse(size: int, warp_rows: int = TILE) -> Iterator[Tiling]:
    """Depths that leave few warps idle, with one to four strips of these rows."""
    pieces = -(-size // PIECE)
    for depth in (1, 2, 3, 4, 8):
        columns = -(-pieces // depth)
        if depth > pieces or columns * depth > 1.25 * pieces:
            continue
        for strips in (1, 2, 4):
            for waiting in (SPLITS.get(warp_rows * depth, (12, 24)), WHOLE):
                tile = cut(size, depth, strips, *waiting, warp_rows)
                if tile.depth == depth and tile.strips == strips and tile.rows * size * 2 <= MOST_BYTES:
                    yield tile


def contexts() -> Iterator[tuple[str, Architecture]]:
    for name in ("nemotron-flash-1b", "qwen3-0.6b", "nemotron-flash-3b", "qwen3-1.7b"):
        yield name, PRESETS[name]
    for width in WIDTHS:
        yield f"width {width}", build_architecture(OPERATORS, width, SIZES, VOCAB_SIZE)


def read_table(table: Path) -> dict[Shape, Tiling]:
    """What stands in a table: a shape that no model of this run has keeps its tiling."""
    entries = [Measured(*entry) for entry in json.loads(table.read_text(encoding="utf-8"))]
    return {entry[:3]: cut(entry.size, *entry[3:]) for entry in entries}


def as_entry(measured: Measured) -> Sequence[int | bool]:
    """A row of a table, without what goes without saying."""
    return measured[:-1] if measured.warp_rows == TILE else measured


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--budget-s", type=POSITIVE, default=200)
    parser.add_argument("--weights", choices=TABLES, default="full")
    parser.add_argument("--warp-rows", type=int, nargs="+", choices=WARP_ROWS, default=[TILE])
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    given = parser.parse_args(arguments)
    if given.weights == "full" and given.warp_rows != [TILE]:
        parser.error(
            f"--warp-rows {given.warp_rows}: with weights as they are a warp has {TILE} rows; add --weights int8"
        )
    table_file = FOLDER / TABLES[given.weights]
    with before_work(parser):
        require_gpu()
        output = given.output or ROOT / "benchmarks/results" / f"{result_name(table_file.stem, 'cuda')}.json"
        require_writable(output)
        require_writable(table_file)
        importlib.import_module(PROJECTION)
    started = time.monotonic()
    kernels.configure(KernelsConfig(delta_rule="chunked", ssd="chunked", causal_conv="shifted", attention="sdpa"))
    tilings, known, steps, left_out = read_table(table_file), set[Shape](), {}, []
    for name, architecture in contexts():
        if time.monotonic() - started > given.budget_s:
            left_out.append(name)
            continue
        tuner = Tuner(architecture, tilings, given.weights, given.warp_rows)
        shapes = tuner.shapes()
        before = tuner.step_us()
        for shape in shapes:
            if shape not in known:
                tuner.tune(shape)
        known.update(shapes)
        steps[name] = {"first_us": before, "tuned_us": tuner.step_us()}
        print(
            f"{name}: {before:.1f} -> {steps[name]['tuned_us']:.1f} us, {time.monotonic() - started:.0f} s", flush=True
        )
        del tuner
        torch.cuda.empty_cache()
    table = sorted(Measured(*shape, t.depth, t.strips, *t[3:]) for shape, t in tilings.items())
    table_file.write_text("[\n" + ",\n".join(map(json.dumps, map(as_entry, table))) + "\n]\n", encoding="utf-8")
    record = record_facts("cuda") | {
        "what": f"a decode step at batch 1 and {CONTEXT} tokens, before and after its shapes were tuned",
        "weights": given.weights,
        "repeats": SETS * STEPS,
        "steps": steps,
        "left_out": left_out,
        "tilings": [entry._asdict() for entry in table],
    }
    write_record(output, record)


if __name__ == "__main__":
    main()
