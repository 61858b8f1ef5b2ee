"""Exact duplicates among any number of documents in bounded memory: digests are sorted in parts, through files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

DIGESTS_FILE = "documents.sha256"  # 16 bytes per document, sorted: what distinguishes text that was seen from new text
BUCKET_DOCUMENTS = 2_000_000  # sorted at once, about 50 MB
_NUMBERED = np.dtype([("high", ">u8"), ("low", ">u8"), ("document", "<i8")])


def drop_duplicates(pieces: Iterable[NDArray[np.void]], total: int, directory: Path, scratch: Path) -> NDArray[np.bool]:
    """Which of `total` documents stay: of equal digests the first. Writes every digest once, sorted, to DIGESTS_FILE.

    `pieces` hold the fields `high` and `low` of each document's digest, in the order in which documents are counted.
    """
    kept = np.ones(total, dtype=np.bool)
    with (directory / DIGESTS_FILE).open("wb") as file:
        for bucket in _buckets(pieces, total, scratch):
            # A stable sort by all of the digest: equal ones stay in the order of their documents.
            bucket = bucket[np.lexsort((bucket["low"], bucket["high"]))]
            same = (bucket["high"][1:] == bucket["high"][:-1]) & (bucket["low"][1:] == bucket["low"][:-1])
            kept[bucket["document"][1:][same]] = False
            first = bucket[np.concatenate([[True], ~same])[: len(bucket)]]
            file.write(np.stack([first["high"], first["low"]], axis=1).astype(">u8").tobytes())
    return kept


def _buckets(pieces: Iterable[NDArray[np.void]], total: int, scratch: Path) -> Iterator[NDArray[np.void]]:
    """The numbered digests in parts by their first bits, in ascending order of these."""
    bits = max(0, (-(-total // BUCKET_DOCUMENTS) - 1).bit_length())
    paths = [scratch / f"digests-{number}" for number in range(1 << bits)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        first = 0
        for piece in pieces:
            _distribute(piece, first, files)
            first += len(piece)
    for path in paths:
        yield np.fromfile(path, dtype=_NUMBERED)
        path.unlink()


def _distribute(piece: NDArray[np.void], first: int, files: Sequence[IO[bytes]]) -> None:
    numbered = np.empty(len(piece), dtype=_NUMBERED)
    numbered["high"], numbered["low"] = piece["high"], piece["low"]
    numbered["document"] = np.arange(first, first + len(piece))
    bits = (len(files) - 1).bit_length()
    bucket = np.zeros(len(piece), dtype=np.int64) if not bits else (numbered["high"] >> (64 - bits)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(len(files)), side="right")
    for file, part in zip(files, np.split(numbered[order], ends[:-1]), strict=True):
        file.write(part.tobytes())
