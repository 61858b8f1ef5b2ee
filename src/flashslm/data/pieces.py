"""One piece of the text to tokens: hash, drop what repeats in the piece or is of evaluation sets, split, encode, write.

A piece is a directory: a split's token files for each split that has documents, records.bin with what the merge needs
to know of every document, and, last, piece.json. Same piece and recipe, same bytes.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from flashslm.config import DataConfig
from flashslm.data.bad_rows import BadRow, BadRows
from flashslm.data.contamination import ForbiddenRuns
from flashslm.data.documents import DIGEST_BYTES, SPLITS, document_digest, split_of
from flashslm.data.encoding import TextEncoder
from flashslm.data.file_formats import Document
from flashslm.data.near_duplicates import band_hashes
from flashslm.data.ngrams import word_hashes
from flashslm.data.shards import ShardWriter

BATCH_CHARACTERS = 4_000_000  # text encoded at once
PROGRESS_DOCUMENTS = 50_000
PIECE_FILE = "piece.json"
RECORDS_FILE = "records.bin"
BANDS_FILE = "bands.bin"  # uint64 [documents, BANDS], where near duplicates are dropped
# One per document, in their order: the beginning of its digest, as two numbers that sort as its bytes do, its split.
RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("split", "u1")])

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PieceSettings:
    """What all pieces have in common.

    A process makes one encoder for all its pieces: fastokens gives back none of its memory.
    """

    config: DataConfig
    encoder: TextEncoder
    end_of_document_id: int
    forbidden: ForbiddenRuns


class PieceSummary(BaseModel):
    """piece.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int
    duplicates_dropped: int
    contaminated_dropped: int
    rows: int
    bad_rows: int
    bad_row_samples: tuple[BadRow, ...]


def prepare_piece(
    shared: PieceSettings,
    documents: Iterable[Document],
    bad_rows: BadRows,
    directory: Path,
    on_progress: Callable[[str], None] = log.info,
) -> PieceSummary:
    """Write `directory`; what it holds depends on the documents, their order and the recipe alone.

    `bad_rows` are those that were met when the documents came.
    Memory is bounded by the piece: about 100 bytes per document over a batch of text and one shard per split.
    """
    directory.mkdir(parents=True)
    writer = _PieceWriter(shared, directory)
    for number, document in enumerate((d for d in documents if d.text.strip()), start=1):
        writer.add(document.text)
        if number % PROGRESS_DOCUMENTS == 0:
            on_progress(f"{number:,} documents read, {writer.duplicates:,} duplicates")
    return writer.close(bad_rows)


class _PieceWriter:
    def __init__(self, shared: PieceSettings, directory: Path):
        self._shared, self._config, self._directory = shared, shared.config, directory
        self._splits: dict[str, ShardWriter] = {}
        self._texts: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._characters = 0
        self._seen: set[bytes] = set()
        self._records, self._bands = bytearray(), bytearray()
        self.duplicates = self.contaminated = 0

    def add(self, text: str) -> None:
        digest = document_digest(text)
        identity = digest[:DIGEST_BYTES]
        if identity in self._seen:
            self.duplicates += 1
            return
        self._seen.add(identity)
        if self._is_refused(text):
            self.contaminated += 1
            return
        split = split_of(digest, self._config)
        self._records += identity + bytes([SPLITS.index(split)])
        self._texts[split].append(text)
        self._characters += len(text)
        if self._characters >= BATCH_CHARACTERS:
            self._encode()

    def close(self, bad_rows: BadRows) -> PieceSummary:
        self._encode()
        for writer in self._splits.values():
            writer.close()
        (self._directory / RECORDS_FILE).write_bytes(self._records)
        if self._bands:
            (self._directory / BANDS_FILE).write_bytes(self._bands)
        summary = PieceSummary(
            documents=len(self._records) // RECORD.itemsize,
            duplicates_dropped=self.duplicates,
            contaminated_dropped=self.contaminated,
            rows=bad_rows.rows,
            bad_rows=bad_rows.count,
            bad_row_samples=tuple(bad_rows.samples),
        )
        (self._directory / PIECE_FILE).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
        return summary

    def _is_refused(self, text: str) -> bool:
        """Whether the document is contaminated; of one that is not, its bands are kept where they are asked for."""
        drops_near = self._config.near_duplicates == "drop"
        if not drops_near and not len(self._shared.forbidden):
            return False
        words = word_hashes(text)
        if self._shared.forbidden.is_in(words):
            return True
        if drops_near:
            self._bands += band_hashes(words if len(words) else _as_one_word(text)).astype("<u8").tobytes()
        return False

    def _encode(self) -> None:
        for split, texts in self._texts.items():
            for text, ids in zip(texts, self._shared.encoder.encode(texts), strict=True):
                self._writer(split).add(ids, len(text.encode()))
        self._texts, self._characters = {split: [] for split in SPLITS}, 0

    def _writer(self, split: str) -> ShardWriter:
        if split not in self._splits:
            shared = self._shared
            self._splits[split] = ShardWriter(
                self._directory / split, shared.encoder.vocab_size, shared.end_of_document_id, self._config.shard_tokens
            )
        return self._splits[split]


def _as_one_word(text: str) -> NDArray[np.uint64]:
    """What stands for the words of a text that has none, so that only an equal one is like it."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype="<u8")
