"""Weight normalisation of many matrices in two launches: every value is read and written once from memory's view.

A program holds one row, or a strip of columns whose second reading comes from the L2 cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

COLUMNS = 64  # of a strip: 256 bytes of a row
TILE_ROWS = 32
MIN_NORM = 1e-8


@triton.jit
def _divide_rows(address_ptr, row_ptr, width_ptr, owner_ptr, min_norm, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    owner = tl.load(owner_ptr + program)
    width = tl.load(width_ptr + owner)
    matrix = tl.load(address_ptr + owner).to(tl.pointer_type(tl.float32), bitcast=True)
    row = matrix + tl.load(row_ptr + program).to(tl.int64) * width
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(row + at, mask=at < width, other=0.0)
        total += value * value
    norm = tl.maximum(tl.sqrt(tl.sum(total, 0)), min_norm)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(row + at, mask=at < width, other=0.0)
        tl.store(row + at, value / norm, mask=at < width)


@triton.jit
def _divide_columns(
    address_ptr, strip_ptr, width_ptr, rows_ptr, owner_ptr, min_norm, COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr
):
    program = tl.program_id(0)
    owner = tl.load(owner_ptr + program)
    width, rows = tl.load(width_ptr + owner), tl.load(rows_ptr + owner)
    matrix = tl.load(address_ptr + owner).to(tl.pointer_type(tl.float32), bitcast=True)
    column = tl.load(strip_ptr + program) * COLUMNS + tl.arange(0, COLUMNS)
    inside = tl.arange(0, TILE_ROWS)
    total = tl.zeros((TILE_ROWS, COLUMNS), tl.float32)
    for start in range(0, rows, TILE_ROWS):
        row = (start + inside).to(tl.int64)
        mask = (row[:, None] < rows) & (column[None, :] < width)
        value = tl.load(matrix + row[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += value * value
    norm = tl.maximum(tl.sqrt(tl.sum(total, 0)), min_norm)
    for start in range(0, rows, TILE_ROWS):
        row = (start + inside).to(tl.int64)
        mask = (row[:, None] < rows) & (column[None, :] < width)
        at = matrix + row[:, None] * width + column[None, :]
        tl.store(at, tl.load(at, mask=mask, other=0.0) / norm[None, :], mask=mask)


class _Table(NamedTuple):
    """Programs of one launch: the matrix each works on, and where in it."""

    addresses: Tensor
    widths: Tensor
    rows: Tensor
    owners: Tensor
    places: Tensor


_Matrix = tuple[int, int, int, int]  # address, rows, width, axis
_Tables = tuple[_Table | None, _Table | None]
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def project_triton_(weights: Sequence[Tensor], axes: Sequence[int], owner: Tensor) -> None:
    """Divide rows (axis 1) or columns (axis 0) of contiguous fp32 matrices on CUDA by their L2 norm, in place.

    What a launch needs is kept as long as `owner` lives, one of the parameters whose local parts the weights are.
    """
    by_row, by_column = _tables(weights, axes, owner)
    if by_row:
        _divide_rows[(len(by_row.owners),)](
            by_row.addresses, by_row.places, by_row.widths, by_row.owners, MIN_NORM, BLOCK=2048
        )
    if by_column:
        _divide_columns[(len(by_column.owners),)](
            by_column.addresses, by_column.places, by_column.widths, by_column.rows, by_column.owners, MIN_NORM,
            COLUMNS=COLUMNS, TILE_ROWS=TILE_ROWS,
        )  # fmt: skip


def _tables(weights: Sequence[Tensor], axes: Sequence[int], owner: Tensor) -> _Tables:
    """Of the matrices normalised by rows and of those by columns."""
    matrices = [(w.data_ptr(), *w.shape, axis) for w, axis in zip(weights, axes, strict=True)]
    known: tuple[list[_Matrix], _Tables] | None = _known.get(owner)
    if known is None or known[0] != matrices:
        device = weights[0].device
        by_row, by_column = ([m for m in matrices if m[3] == axis] for axis in (1, 0))
        known = _known[owner] = (matrices, (_table(by_row, device, 1), _table(by_column, device, 0)))
    return known[1]


def _table(matrices: list[_Matrix], device: torch.device, axis: int) -> _Table | None:
    if not matrices:
        return None
    programs = torch.tensor([m[1] if axis else triton.cdiv(m[2], COLUMNS) for m in matrices])
    owners = torch.repeat_interleave(torch.arange(len(matrices)), programs)
    places = torch.arange(len(owners)) - (programs.cumsum(0) - programs)[owners]
    addresses, rows, widths, _ = (torch.tensor(column) for column in zip(*matrices, strict=True))
    found = (addresses, widths.int(), rows.int(), owners.int(), places.int())
    return _Table(*(tensor.to(device) for tensor in found))
