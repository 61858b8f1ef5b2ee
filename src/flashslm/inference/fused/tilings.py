"""How the blocks of a projection share its rows: measured at batch 1 for some shapes, the others go by those."""

import json
import math
from functools import cache
from importlib.resources import files
from typing import NamedTuple

MAX_BATCH = 4  # inputs of a projection: above it a matrix product is faster
PIECE = 256  # values of a row that a warp takes at once, 512 bytes: a step
TILE = 8  # rows of a warp, where a table says nothing else
MOST_ROWS = 32  # of a block: a warp's lanes choose the best of them
MOST_WARPS = 16  # of a block
PAIR = 2  # inputs that one product of the tensor core takes
SPARING, MOST_SHARED = 4, 16  # steps in registers where more inputs than a pair need those, and then in shared memory


class Tiling(NamedTuple):
    """What a block holds: `strips` of `warp_rows` rows, each shared by `columns` warps of `depth` pieces of a row."""

    columns: int
    strips: int
    depth: int
    in_registers: int  # steps of a warp that wait in registers for the input
    in_shared: int  # and in shared memory; what then is left follows
    warp_rows: int = TILE

    @property
    def rows(self) -> int:
        return self.strips * self.warp_rows

    @property
    def threads(self) -> int:
        return 32 * self.columns * self.strips

    def for_inputs(self, batch: int) -> "Tiling":
        """The same with fewer weights in registers where more than two inputs need them."""
        if batch <= PAIR:
            return self
        moved = max(0, self.in_registers - SPARING)
        return self._replace(in_registers=SPARING, in_shared=min(self.in_shared + moved, MOST_SHARED))


class Measured(NamedTuple):
    """The tiling of a shape that `benchmarks/tilings.py` found to be the fastest in the steps of whole models."""

    rows: int
    size: int
    gated: bool
    depth: int
    strips: int
    in_registers: int
    in_shared: int
    warp_rows: int = TILE


def cut(size: int, depth: int, strips: int, in_registers: int, in_shared: int, warp_rows: int = TILE) -> Tiling:
    """The tiling with about this depth and these strips that rows of `size` values can have."""
    pieces = -(-size // PIECE)
    depth = min(max(depth, -(-pieces // MOST_WARPS)), pieces)
    columns = -(-pieces // depth)
    depth = -(-pieces // columns)
    while strips > 1 and (columns * strips > MOST_WARPS or strips * warp_rows > MOST_ROWS):
        strips //= 2
    steps = depth * warp_rows
    in_registers = min(in_registers, steps)
    return Tiling(columns, strips, depth, in_registers, min(in_shared, steps - in_registers), warp_rows)


@cache
def tiling(rows: int, size: int, gated: bool = False, int8: bool = False) -> Tiling:
    """How blocks share a weight [rows, size], or [2 rows, size] if `gated`: as the nearest shape that was measured.

    `size` counts values of two bytes, or with `int8` pairs of weights.
    """

    def distance(m: Measured) -> float:
        return abs(math.log(m.rows / rows)) + 2 * abs(math.log(m.size / size)) + (m.gated != gated)

    nearest = min(_measured("tilings-int8.json" if int8 else "tilings.json"), key=distance)
    return cut(size, *nearest[3:])


@cache
def _measured(file: str) -> list[Measured]:
    text = files(__package__).joinpath(file).read_text()
    return [Measured(*entry) for entry in json.loads(text)]
