"""Text of evaluation sets that no document of a data set may share a run of words with.

A document goes if it holds any 12 words in a row that an evaluation set holds (Brown et al. 2020, appendix C, take 13).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashslm.data.file_formats import SUFFIXES, TEXT_SUFFIXES, read_lines
from flashslm.data.ngrams import ngram_hashes, ngram_hashes_of_each
from flashslm.data.source_paths import local_copy, match

WORDS = 12
TRAINING_ENDINGS = ("_train", "_train_fewshot")  # of the names of sets that few-shot examples come from
FORBIDDEN_FILE = "forbidden.bin"  # uint64, sorted: the hashes of all runs of words
_TABLE_BITS = 24  # of a hash


class ForbiddenRuns:
    """The runs of words that no document may hold, by their sorted hashes.

    Almost no run of a document is one of them. For most a table of the hashes' first bits says so: of millions of
    hashes a binary search reads memory at twenty places, the table at one.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes = hashes
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        self._table[_first_bits(hashes)] = True

    def __len__(self) -> int:
        return len(self._hashes)

    def is_in(self, words: NDArray[np.uint64]) -> bool:
        """Whether a document of these word hashes holds one of the runs."""
        hashes = ngram_hashes(words, WORDS)
        hashes = hashes[self._table[_first_bits(hashes)]]
        if not len(hashes):
            return False
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        return bool((self._hashes[places] == hashes).any())


def _first_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return hashes >> np.uint64(64 - _TABLE_BITS)


def forbidden_ngrams(patterns: Iterable[str], s3_client: Any = None) -> NDArray[np.uint64]:
    """The sorted hashes of every 12 words in a row of any text in the files: of rows, every text at any depth.

    Patterns are as in `evaluation_files`. Raises ValueError for paths that match nothing and files that cannot be read.
    """
    found = [np.empty(0, dtype=np.uint64)]
    for pattern in patterns:
        for name in evaluation_files(pattern, s3_client):
            with local_copy(name, s3_client) as path:
                found += ngram_hashes_of_each(_file_texts(path, name), WORDS)
    # Not by np.unique, which since numpy 2.3 makes a hash table first: two seconds of two million numbers.
    hashes = np.sort(np.concatenate(found))
    return np.asarray(hashes[np.diff(hashes, prepend=~hashes[:1]) != 0])


def evaluation_files(pattern: str, s3_client: Any = None) -> list[str]:
    """The files of one entry of data.decontaminate_against, sorted: as of data.paths, or a directory of evaluation sets
    (evaluation/task_data.py), of which those to train on are left out.
    """
    if not Path(pattern).is_dir():
        return match(pattern, s3_client)
    files = [file for file in sorted(Path(pattern).iterdir()) if file.is_file() and file.name.endswith(SUFFIXES)]
    held_out = [str(file) for file in files if not file.name.partition(".")[0].endswith(TRAINING_ENDINGS)]
    if not held_out:
        raise ValueError(f"data.decontaminate_against: '{pattern}' has no evaluation set ({' '.join(SUFFIXES)})")
    return held_out


def _file_texts(path: Path, name: str) -> Iterator[str]:
    if not name.endswith(SUFFIXES):
        raise ValueError(f"data.decontaminate_against: cannot read '{name}'; allowed endings are {' '.join(SUFFIXES)}")
    if name.endswith(TEXT_SUFFIXES):
        yield path.read_text(encoding="utf-8", errors="replace")
    elif name.endswith(".parquet"):
        yield from _parquet_texts(path, name)
    else:
        for number, line in read_lines(path, name):
            try:
                yield from _texts_in(json.loads(line) if line.strip() else None)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"data.decontaminate_against: '{name}:{number}' is not JSON: {error}") from None


def _parquet_texts(path: Path, name: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from _texts_in(batch.to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"data.decontaminate_against: '{name}' cannot be read as Parquet: {error}") from error


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(item)
