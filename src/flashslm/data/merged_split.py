"""One split of several pieces: its stream is that of the pieces, one after the other, without dropped documents.

No token is copied: the split's segments are the stretches of the pieces' token files that stay.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flashslm.data.segments import Segments, whole_files
from flashslm.data.shards import INDEX_FILE, OFFSETS_FILE, Shard, SplitIndex, SplitReader

_COUNTED_TOKENS = 1 << 20  # at once


class TokenFile(NamedTuple):
    """A file of the data set that a piece wrote, by its paths in the piece and in the data set."""

    piece: int
    source: str
    target: str


@dataclass
class PieceSplit:
    """A split of one piece, which documents of it stay, and whether the split ends with it."""

    piece: int
    directory: Path
    keep: NDArray[np.bool]
    is_last: bool = False

    def __post_init__(self) -> None:
        self.index = SplitIndex.model_validate_json((self.directory / INDEX_FILE).read_text(encoding="utf-8"))
        offsets = np.fromfile(self.directory / OFFSETS_FILE, dtype="<i8").reshape(2, -1)
        self._starts = offsets
        self._ends = np.stack(
            [np.append(offsets[0, 1:], self.index.tokens - 1), np.append(offsets[1, 1:], self.index.bytes)]
        )

    def sizes(self) -> NDArray[np.int64]:
        """int64 [2, documents that stay]: tokens, with the one in front, and bytes."""
        sizes: NDArray[np.int64] = (self._ends - self._starts)[:, self.keep]
        return sizes

    def stretches(self) -> NDArray[np.int64]:
        """int64 [N, 2]: the parts [start, stop) of the piece's stream that stay; the last piece's end closes it."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.keep, [False]]).astype(np.int8)))
        found = np.stack([self._starts[0, edges[0::2]], self._ends[0, edges[1::2] - 1]], axis=1)
        if not self.is_last:
            return found
        closing = self.index.tokens - 1
        if len(found) and found[-1, 1] == closing:
            found[-1, 1] += 1
            return found
        return np.concatenate([found, [[closing, closing + 1]]])


def merge_split(parts: Sequence[PieceSplit], name: str, directory: Path) -> tuple[SplitIndex, list[TokenFile]]:
    """Write the split `name` of a data set but for its token files, which are returned."""
    shards, files, table = _segments(parts, name)
    (directory / name).mkdir()
    documents = sum(int(part.keep.sum()) for part in parts)
    size_bytes, offsets_sha256 = _write_offsets(parts, documents, directory / name / OFFSETS_FILE)
    first = parts[0].index
    index = SplitIndex(
        dtype=first.dtype,
        tokens=table.tokens,
        bytes=size_bytes,
        documents=documents,
        documents_sha256=offsets_sha256,
        end_of_document_id=first.end_of_document_id,
        shard_tokens=first.shard_tokens,
        shards=tuple(shards),
    )
    if not np.array_equal(table.table, whole_files([shard.tokens for shard in shards]).table):
        sha256 = table.write(directory / name)
        index = index.model_copy(update={"segments": table.table.shape[1], "segments_sha256": sha256})
    index.write(directory / name)
    return index, files


def count_tokens(parts: Sequence[PieceSplit], vocab_size: int) -> NDArray[np.int64]:
    """How often each token of the merged split is predicted; the pieces' token files must be there."""
    counts, waiting, size = np.zeros(vocab_size, dtype=np.int64), [], 0
    for tokens in _read(parts):
        waiting.append(tokens)
        size += len(tokens)
        if size >= _COUNTED_TOKENS:
            counts += np.bincount(np.concatenate(waiting), minlength=vocab_size)
            waiting, size = [], 0
    if waiting:
        counts += np.bincount(np.concatenate(waiting), minlength=vocab_size)
    counts[parts[0].index.end_of_document_id] -= 1
    return counts


def _read(parts: Sequence[PieceSplit]) -> Iterator[NDArray[np.int64]]:
    for part in parts:
        reader = SplitReader(part.directory)
        for start, stop in part.stretches().tolist():
            for first in range(start, stop, _COUNTED_TOKENS):
                yield reader.read(first, min(first + _COUNTED_TOKENS, stop))


def _segments(parts: Sequence[PieceSplit], name: str) -> tuple[list[Shard], list[TokenFile], Segments]:
    """The shards that hold what stays, numbered through all pieces, and the segments over them."""
    shards: list[Shard] = []
    files: list[TokenFile] = []
    rows: list[tuple[int, int, int]] = []
    for part in parts:
        whole, numbers = whole_files([shard.tokens for shard in part.index.shards]), {}
        for start, stop in part.stretches().tolist():
            for shard, first, end in whole.within(start, stop):
                if shard not in numbers:
                    numbers[shard] = len(shards)
                    source = part.index.shards[shard]
                    shards.append(source.model_copy(update={"file": f"shard-{len(shards):05d}.bin"}))
                    files.append(TokenFile(part.piece, f"{name}/{source.file}", f"{name}/{shards[-1].file}"))
                rows.append((numbers[shard], first, end))
    return shards, files, Segments(np.array(rows, dtype=np.int64).T)


def _write_offsets(parts: Sequence[PieceSplit], documents: int, file: Path) -> tuple[int, str]:
    """Write documents.bin; returns the split's bytes of text and the file's sha256."""
    offsets = np.memmap(file, dtype="<i8", mode="w+", shape=(2, documents))
    place, before = 0, np.zeros((2, 1), dtype=np.int64)
    for part in parts:
        ends = before + np.cumsum(part.sizes(), axis=1)
        count = ends.shape[1]
        offsets[:, place : place + count] = np.concatenate([before, ends], axis=1)[:, :count]
        place, before = place + count, np.concatenate([before, ends], axis=1)[:, -1:]
    offsets.flush()
    with file.open("rb") as stream:
        return int(before[1, 0]), hashlib.file_digest(stream, "sha256").hexdigest()
