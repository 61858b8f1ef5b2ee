"""Token shards on disk. A split is one stream: E doc E doc … E doc E, with E the end-of-document token.

So every token but the very first has a predecessor, and the stream's predicted tokens are each text token and one end a
document. No torch here.
"""

import hashlib
from array import array
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from flashslm.data.files import Files, content_of, files_of
from flashslm.data.segments import SEGMENTS_FILE, Segments, checked, whole_files

INDEX_FILE = "index.json"
OFFSETS_FILE = "documents.bin"
_COUNTED_TOKENS = 1 << 20  # at once


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Record):
    file: str = Field(pattern=r"^shard-[0-9]{5,}\.bin$")  # beside the index, nowhere else
    tokens: int
    sha256: str


class SplitIndex(Record):
    """index.json. `documents.bin` holds int64 [2, documents]: each document's first token and first byte.

    The stream is that of the shards, one after the other, unless there are `segments`: then `segments.bin` (int64
    [3, segments]: number of the shard, first token, end token) says which stretches of which shards it is made of.
    """

    dtype: Literal["<u2", "<u4"]
    tokens: int
    bytes: int
    documents: int
    documents_sha256: str
    end_of_document_id: int
    shard_tokens: int  # of the largest shard at most
    shards: tuple[Shard, ...]
    segments: int = 0
    segments_sha256: str = ""

    def write(self, directory: Path) -> None:
        (directory / INDEX_FILE).write_text(self.model_dump_json(indent=1, exclude_defaults=True), encoding="utf-8")


class ShardWriter:
    """Append documents to a split; shards of exactly `shard_tokens` tokens but for the last."""

    def __init__(self, directory: Path, vocab_size: int, end_of_document_id: int, shard_tokens: int):
        directory.mkdir(parents=True)
        self.directory = directory
        self.dtype: Literal["<u2", "<u4"] = "<u2" if vocab_size <= 2**16 else "<u4"
        self.end_of_document_id = end_of_document_id
        self.shard_tokens = shard_tokens
        self._buffer = np.empty(shard_tokens, dtype=self.dtype)
        self._filled = 0
        self._shards: list[Shard] = []
        self._token_offsets, self._byte_offsets = array("q"), array("q")
        self._bytes = 0

    @property
    def tokens(self) -> int:
        return len(self._shards) * self.shard_tokens + self._filled

    def add(self, token_ids: ArrayLike, num_bytes: int) -> None:
        """Append one document's text tokens; `num_bytes` is its text's size in UTF-8."""
        self._token_offsets.append(self.tokens)
        self._byte_offsets.append(self._bytes)
        self._bytes += num_bytes
        self._append([self.end_of_document_id])
        self._append(token_ids)

    def close(self) -> SplitIndex:
        """Write the closing token, the last shard, the offsets and index.json."""
        self._append([self.end_of_document_id])
        tokens = self.tokens
        if self._filled:
            self._flush()
        offsets = np.array([self._token_offsets, self._byte_offsets], dtype="<i8").tobytes()
        (self.directory / OFFSETS_FILE).write_bytes(offsets)
        index = SplitIndex(
            dtype=self.dtype,
            tokens=tokens,
            bytes=self._bytes,
            documents=len(self._token_offsets),
            documents_sha256=hashlib.sha256(offsets).hexdigest(),
            end_of_document_id=self.end_of_document_id,
            shard_tokens=self.shard_tokens,
            shards=tuple(self._shards),
        )
        index.write(self.directory)
        return index

    def _append(self, token_ids: ArrayLike) -> None:
        values = np.asarray(token_ids, dtype=self.dtype)
        while len(values):
            part = values[: self.shard_tokens - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            values = values[len(part) :]
            if self._filled == self.shard_tokens:
                self._flush()

    def _flush(self) -> None:
        data = self._buffer[: self._filled].tobytes()
        file = f"shard-{len(self._shards):05d}.bin"
        (self.directory / file).write_bytes(data)
        self._shards.append(Shard(file=file, tokens=self._filled, sha256=hashlib.sha256(data).hexdigest()))
        self._filled = 0


class SplitReader:
    """A split as one stream, whose files are mapped into memory while they are read.

    Raises ValueError when the split is missing or a file's size is not what the index says.
    """

    def __init__(self, dataset: Path | Files, split: str = ""):
        """`split` is its directory in the data set; with "" its files are at the top."""
        self._files, self._split = files_of(dataset), split
        content = content_of(self._files, self._name(INDEX_FILE))
        if content is None:
            where = f"'{self._files}/{split}'" if split else f"'{self._files}'"
            raise ValueError(f"{where} holds no token shards (no index.json): run prepare_data first")
        self.index = SplitIndex.model_validate_json(content)
        width = np.dtype(self.index.dtype).itemsize
        for shard in self.index.shards:
            self._check(shard.file, width * shard.tokens)
        self._check(OFFSETS_FILE, 16 * self.index.documents)
        self.segments = self._read_segments()

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) of the stream."""
        maps: dict[int, NDArray[np.integer]] = {}
        parts = []
        for number, first, end in self.segments.within(start, stop):
            if number not in maps:
                shard = self.index.shards[number]
                maps[number] = self._map(shard.file, self.index.dtype, shard.tokens)
            parts.append(maps[number][first:end])
        return np.concatenate(parts).astype(np.int64)

    def fetch_ahead(self, start: int, stop: int) -> None:
        """Begin to fetch the files of tokens [start, stop), which will be read soon."""
        for number in self.segments.files(start, stop):
            self._files.fetch_ahead(self._name(self.index.shards[number].file))

    def document_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """The document (0, 1, … in stream order) of every token in [start, stop)."""
        offsets = self._offsets()[0]
        first, last = np.searchsorted(offsets, [start, stop - 1], side="right") - 1
        inner = np.asarray(offsets[first + 1 : last + 1])
        ids: NDArray[np.int64] = np.searchsorted(inner, np.arange(start, stop), side="right") + first
        return ids

    def document_start(self, document: int) -> int:
        """The place of the end-of-document token before a document's text; behind the text stands another one."""
        return int(self._offsets()[0, document])

    def document_sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of every document, the predicted tokens (its text and its end) and the bytes of text."""
        token_offsets, byte_offsets = self._offsets()
        tokens = np.diff(token_offsets, append=self.index.tokens - 1)
        return tokens, np.diff(byte_offsets, append=self.index.bytes)

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each token is predicted: occurrences, less the stream's first token."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for start in range(0, self.index.tokens, _COUNTED_TOKENS):
            tokens = self.read(start, min(start + _COUNTED_TOKENS, self.index.tokens))
            counts += np.bincount(tokens, minlength=vocab_size)
        counts[self.index.end_of_document_id] -= 1
        return counts

    def _read_segments(self) -> Segments:
        sizes = [shard.tokens for shard in self.index.shards]
        if not self.index.segments:
            return whole_files(sizes)
        self._check(SEGMENTS_FILE, 24 * self.index.segments)
        table = self._map(SEGMENTS_FILE, "<i8", 3 * self.index.segments).reshape(3, -1)
        where = f"{self._files}/{self._name(SEGMENTS_FILE)}"
        return checked(Segments(table.astype(np.int64)), sizes, self.index.tokens, where)

    def _offsets(self) -> NDArray[np.integer]:
        """int64 [2, documents]: each document's first token and first byte."""
        return self._map(OFFSETS_FILE, "<i8", 2 * self.index.documents).reshape(2, -1)

    def _name(self, file: str) -> str:
        return f"{self._split}/{file}" if self._split else file

    def _check(self, file: str, expected_bytes: int) -> None:
        found = self._files.size(self._name(file))
        if found != expected_bytes:
            state = f"has {found} bytes" if found >= 0 else "is missing"
            raise ValueError(
                f"'{self._files}/{self._name(file)}' {state}, index.json says {expected_bytes}: fetch or prepare "
                "the data set again"
            )

    def _map(self, file: str, dtype: str, length: int) -> NDArray[np.integer]:
        """A file's numbers. What is mapped stays readable when a cache has removed the file."""
        with self._files.open(self._name(file)) as opened:
            return np.memmap(opened, dtype=dtype, mode="r", shape=(length,))
