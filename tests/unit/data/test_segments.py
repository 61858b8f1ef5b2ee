"""Splits that are made of stretches of token files."""

import random
from pathlib import Path

import numpy as np
import pytest

from flashslm.data.loader import TokenLoader
from flashslm.data.segments import Segments, whole_files
from flashslm.data.shards import ShardWriter, SplitIndex, SplitReader


def write_whole(directory: Path, documents: list[list[int]], shard_tokens: int) -> SplitIndex:
    writer = ShardWriter(directory, vocab_size=1000, end_of_document_id=0, shard_tokens=shard_tokens)
    for document in documents:
        writer.add(document, num_bytes=3 * len(document))
    return writer.close()


def leave_out(directory: Path, index: SplitIndex, documents: list[list[int]], dropped: set[int]) -> None:
    """Make the split in `directory` one without the documents `dropped`, by segments over its files."""
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    whole = whole_files([shard.tokens for shard in index.shards])
    stretches = [(starts[n], starts[n + 1]) for n in range(len(documents)) if n not in dropped]
    stretches.append((index.tokens - 1, index.tokens))
    table = [part for start, stop in stretches for part in whole.within(start, stop)]
    segments = Segments(np.array(table, dtype=np.int64).T)
    kept = [document for n, document in enumerate(documents) if n not in dropped]
    offsets = [np.cumsum([0, *(scale * len(d) + one for d in kept)])[:-1] for scale, one in ((1, 1), (3, 0))]
    (directory / "documents.bin").write_bytes(np.array(offsets, dtype="<i8").tobytes())
    changes = {"tokens": segments.tokens, "documents": len(kept), "bytes": 3 * sum(map(len, kept))}
    sha256 = segments.write(directory)
    index.model_copy(update=changes | {"segments": len(table), "segments_sha256": sha256}).write(directory)


@pytest.fixture
def documents() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(1, 1000) for _ in range(rng.randrange(0, 30))] for _ in range(40)]


@pytest.mark.parametrize("dropped", [{0}, {39}, {3, 4, 5, 20}, set(range(1, 40, 2))])
def test_segments_read_as_a_split_that_was_written_without_the_documents(
    tmp_path: Path, documents: list[list[int]], dropped: set[int]
) -> None:
    index = write_whole(tmp_path / "a/train", documents, shard_tokens=16)
    leave_out(tmp_path / "a/train", index, documents, dropped)
    write_whole(tmp_path / "b/train", [d for n, d in enumerate(documents) if n not in dropped], shard_tokens=11)
    segmented, whole = (SplitReader(tmp_path / name, "train") for name in "ab")
    total = whole.index.tokens
    assert segmented.index.tokens == total
    for start, stop in ((0, total), (0, 1), (total - 1, total), (5, 40), (total // 3, total // 2)):
        assert segmented.read(start, stop).tolist() == whole.read(start, stop).tolist()
        assert segmented.document_ids(start, stop).tolist() == whole.document_ids(start, stop).tolist()
    assert segmented.token_counts(1000).tolist() == whole.token_counts(1000).tolist()
    assert [a.tolist() for a in segmented.document_sizes()] == [a.tolist() for a in whole.document_sizes()]
    loaders = [TokenLoader(tmp_path / name, "train", 8, 4, seed=0) for name in "ab"]
    for step in range(12):
        first, second = (loader.batch(step) for loader in loaders)
        assert all((x == y).all() for x, y in zip(first, second, strict=True))


def test_an_index_without_segments_is_written_as_before(tmp_path: Path, documents: list[list[int]]) -> None:
    write_whole(tmp_path / "train", documents, shard_tokens=16)
    assert "segments" not in (tmp_path / "train/index.json").read_text()


@pytest.mark.parametrize(
    "table",
    [[[0], [0], [17]], [[9999], [0], [4]], [[-1], [0], [4]], [[0], [4], [4]], [[0], [-1], [4]], [[0], [0], [4]]],
)
def test_segments_beyond_their_files_are_refused(
    tmp_path: Path, documents: list[list[int]], table: list[list[int]]
) -> None:
    index = write_whole(tmp_path / "train", documents, shard_tokens=16)
    sha256 = Segments(np.array(table, dtype=np.int64)).write(tmp_path / "train")
    index.model_copy(update={"segments": 1, "segments_sha256": sha256}).write(tmp_path / "train")
    with pytest.raises(ValueError, match=r"segments.bin' does not fit index.json .* prepare the data set again"):
        SplitReader(tmp_path, "train")


def test_a_missing_segments_file_is_refused(tmp_path: Path, documents: list[list[int]]) -> None:
    index = write_whole(tmp_path / "train", documents, shard_tokens=16)
    index.model_copy(update={"segments": 1}).write(tmp_path / "train")
    with pytest.raises(ValueError, match=r"segments.bin' is missing, index.json says 24"):
        SplitReader(tmp_path, "train")
