"""Which stretches of a split's token files make its stream, so that documents are left out without a copy of the rest.

A merged split refers to the files that several tasks wrote, less the documents that were dropped from them and the
closing token of every file set but the last. No torch here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEGMENTS_FILE = "segments.bin"


class Segments:
    """Stretches in stream order; `table` is int64 [3, N]: number of the file among the shards, first, end token."""

    def __init__(self, table: NDArray[np.int64]):
        self.table = table
        self._starts = np.concatenate([[0], np.cumsum(table[2] - table[1])])  # places in the stream

    @property
    def tokens(self) -> int:
        return int(self._starts[-1])

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(file's number, first token, end token) of the parts of tokens [start, stop) of the stream, in order."""
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            shard, first, end = (int(value) for value in self.table[:, number])
            first += start - int(self._starts[number])
            end = min(end, first + stop - start)
            yield shard, first, end
            start, number = start + end - first, number + 1

    def borders(self) -> list[int]:
        """Where in the stream each file begins, and the stream's end; files are numbered in its order."""
        inner = np.flatnonzero(np.diff(self.table[0])) + 1
        return [0, *self._starts[inner].tolist(), self.tokens]

    def files(self, start: int, stop: int) -> list[int]:
        """The numbers of the files that hold tokens [start, stop) of the stream."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        return [int(number) for number in np.unique(self.table[0, first : np.searchsorted(self._starts, stop)])]

    def write(self, directory: Path) -> str:
        """Write segments.bin; returns its sha256."""
        content = self.table.astype("<i8").tobytes()
        (directory / SEGMENTS_FILE).write_bytes(content)
        return hashlib.sha256(content).hexdigest()


def whole_files(tokens: Sequence[int]) -> Segments:
    """Every file as it is, one after the other; `tokens` are their sizes."""
    sizes = np.array(tokens, dtype=np.int64)
    return Segments(np.stack([np.arange(len(sizes)), np.zeros_like(sizes), sizes]))


def checked(segments: Segments, tokens: Sequence[int], total: int, where: str) -> Segments:
    """The segments, if they lie within files of these sizes and make `total` tokens; raises ValueError otherwise."""
    shard, first, end = segments.table
    sizes = np.array(tokens, dtype=np.int64)
    inside = bool(((shard >= 0) & (shard < len(sizes)) & (first >= 0) & (first < end)).all())
    if not inside or bool((end > sizes[shard]).any()) or segments.tokens != total:
        raise ValueError(
            f"'{where}' does not fit index.json ({len(sizes)} files, {total:,} tokens): fetch or prepare the data set "
            "again"
        )
    return segments
