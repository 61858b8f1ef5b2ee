"""Tilings cover their rows, fit into an SM, and are the measured ones where there are any."""

import json
from itertools import product
from pathlib import Path

import pytest

import flashslm.inference.fused as fused
from flashslm.inference.fused.tilings import MOST_WARPS, PIECE, TILE, Measured, cut, tiling

TABLE = [Measured(*entry) for entry in json.loads(Path(fused.__file__).with_name("tilings.json").read_text())]
SHARED_BYTES = 227 * 1024  # of an SM of compute capability 9
SIZES = [8, 256, 264, 1000, 1024, 1536, 2304, 4104, 6912, 9216, 12_288, 40_000]


def test_no_shape_was_measured_twice():
    assert len({entry[:3] for entry in TABLE}) == len(TABLE) > 50


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: "x".join(map(str, entry[:3])))
def test_a_measured_shape_has_its_own_tiling(entry):
    found = tiling(*entry[:3])
    assert found == cut(entry.size, *entry[3:])
    assert found[2:5] == (entry.depth, entry.in_registers, entry.in_shared) or found.depth < entry.depth


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 40, 2048, 8512, 200_000])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_any_shape_has_a_tiling_that_fits(size, rows, gated, batch):
    tile = tiling(rows, size, gated).for_inputs(batch)
    pieces, steps = -(-size // PIECE), tile.depth * TILE
    assert tile.columns * tile.depth >= pieces > (tile.columns - 1) * tile.depth
    assert 1 <= tile.columns * tile.strips <= MOST_WARPS
    assert tile.rows in (8, 16, 32), "a warp's lanes choose the best of a block's rows"
    assert tile.in_registers >= 1 and tile.in_registers + tile.in_shared <= max(steps, tile.in_registers)
    assert 16 * tile.threads * tile.in_shared + 4096 < SHARED_BYTES


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strips", [1, 2, 4])
def test_warps_of_16_rows_fit_too(size, strips):
    for depth, (in_registers, in_shared) in product((1, 2, 8), ((4, 4), (12, 24), (16, 0))):
        tile = cut(size, depth, strips, in_registers, in_shared, 16)
        eight = cut(size, depth, strips, in_registers, in_shared)
        assert (tile.columns, tile.depth) == (eight.columns, eight.depth)
        assert tile.rows in (16, 32) and tile.rows >= eight.rows, "a warp's lanes choose the best of a block's rows"
        assert tile.in_registers + tile.in_shared <= 16 * tile.depth
        assert 16 * tile.threads * tile.in_shared + 16_384 < SHARED_BYTES


def test_no_table_asks_for_them_before_they_are_measured():
    int8 = json.loads(Path(fused.__file__).with_name("tilings-int8.json").read_text())
    assert {Measured(*entry).warp_rows for entry in int8} == {tiling(2048, 1024, int8=True).warp_rows} == {TILE}


def test_an_unmeasured_width_goes_by_its_neighbour():
    assert tiling(6200, 2056, True) == cut(2056, *min(TABLE, key=lambda e: e[:3] != (6144, 2048, True))[3:])
