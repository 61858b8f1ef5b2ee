"""Rows in parts that fit into memory, each with its own range of keys: what sorts any number of rows through files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

BUCKET_ROWS = 2_000_000  # sorted at once, about 50 MB


def in_buckets(rows: Iterable[NDArray[np.void]], key: str, total: int, scratch: Path) -> Iterator[NDArray[np.void]]:
    """The rows in parts by the first bits of the field `key` (64 bits, evenly spread), in ascending order of these.

    Within a part they keep their order. `scratch` holds them meanwhile; all have one dtype.
    """
    bits = max(0, (-(-total // BUCKET_ROWS) - 1).bit_length())
    paths = [scratch / f"bucket-{number}" for number in range(1 << bits)]
    dtype = None
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for chunk in rows:
            dtype = chunk.dtype
            _distribute(chunk, key, bits, files)
    for path in paths:
        if dtype is not None:
            yield np.fromfile(path, dtype=dtype)
        path.unlink()


def _distribute(chunk: NDArray[np.void], key: str, bits: int, files: Sequence[IO[bytes]]) -> None:
    bucket = (chunk[key] >> (64 - bits)).astype(np.int64) if bits else np.zeros(len(chunk), dtype=np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(len(files)), side="right")
    for file, part in zip(files, np.split(chunk[order], ends[:-1]), strict=True):
        file.write(part.tobytes())
