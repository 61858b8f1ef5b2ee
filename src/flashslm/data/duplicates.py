"""Exact duplicates among any number of documents in bounded memory: digests are sorted in parts, through files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashslm.data.buckets import in_buckets

DIGESTS_FILE = "documents.sha256"  # 16 bytes per document, sorted: what distinguishes text that was seen from new text
_NUMBERED = np.dtype([("high", ">u8"), ("low", ">u8"), ("document", "<i8")])


def drop_duplicates(pieces: Iterable[NDArray[np.void]], total: int, directory: Path, scratch: Path) -> NDArray[np.bool]:
    """Which of `total` documents stay: of equal digests the first. Writes every digest once, sorted, to DIGESTS_FILE.

    `pieces` hold the fields `high` and `low` of each document's digest, in the order in which documents are counted.
    """
    kept = np.ones(total, dtype=np.bool)
    with (directory / DIGESTS_FILE).open("wb") as file:
        for bucket in in_buckets(_numbered(pieces), "high", total, scratch):
            # A stable sort by all of the digest: equal ones stay in the order of their documents.
            bucket = bucket[np.lexsort((bucket["low"], bucket["high"]))]
            same = (bucket["high"][1:] == bucket["high"][:-1]) & (bucket["low"][1:] == bucket["low"][:-1])
            kept[bucket["document"][1:][same]] = False
            first = bucket[np.concatenate([[True], ~same])[: len(bucket)]]
            file.write(np.stack([first["high"], first["low"]], axis=1).astype(">u8").tobytes())
    return kept


def _numbered(pieces: Iterable[NDArray[np.void]]) -> Iterator[NDArray[np.void]]:
    first = 0
    for piece in pieces:
        numbered = np.empty(len(piece), dtype=_NUMBERED)
        numbered["high"], numbered["low"] = piece["high"], piece["low"]
        numbered["document"] = np.arange(first, first + len(piece))
        first += len(piece)
        yield numbered
