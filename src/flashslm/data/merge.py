"""Pieces to one data set: drop what repeats among them, put the splits together, count. No token is copied.

Same pieces, same bytes, in whatever order and by however many tasks the pieces were made.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flashslm.config import DataConfig
from flashslm.data.bad_rows import BadRows, together
from flashslm.data.documents import HELD_OUT, SPLITS
from flashslm.data.duplicates import drop_duplicates
from flashslm.data.merged_split import PieceSplit, TokenFile, count_tokens, merge_split
from flashslm.data.near_duplicates import BANDS, drop_near_duplicates
from flashslm.data.pieces import BANDS_FILE, PIECE_FILE, RECORD, RECORDS_FILE, PieceSummary
from flashslm.data.shards import INDEX_FILE, OFFSETS_FILE, ShardWriter, SplitIndex, SplitReader
from flashslm.data.summary import DatasetSummary, refuse_unusable, summarise
from flashslm.data.tokenizer import read_tokenizer

# Of a piece, what the merge reads of every one.
MERGED_FILES = (
    PIECE_FILE,
    RECORDS_FILE,
    BANDS_FILE,
    *(f"{split}/{file}" for split in SPLITS for file in (INDEX_FILE, OFFSETS_FILE)),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PieceFiles:
    """Where a piece's MERGED_FILES are; `fetch` brings the others of one split there too."""

    directory: Path
    fetch: Callable[[str], None] = lambda split: None


class Merged(NamedTuple):
    """A data set; the token files are yet to be put into its directory."""

    summary: DatasetSummary
    token_files: list[TokenFile]


def merge_pieces(
    config: DataConfig,
    pieces: Sequence[PieceFiles],
    tokenizer: Path,
    directory: Path,
    scratch: Path,
    on_progress: Callable[[str], None] = log.info,
) -> Merged:
    """Write the data set of the pieces, in their order, to `directory`, which has to be empty.

    Its token files are those of the pieces, and `scratch` holds 24 bytes per document meanwhile. Raises ValueError
    where too many rows were bad, UnusableText where a split would be empty.
    """
    merge = _Merge(config, pieces, directory)
    merge.bad_rows.check()
    merge.drop_repetitions(scratch)
    for split in HELD_OUT:
        merge.ensure_document(split)
    refuse_unusable({split: merge.count(split) for split in SPLITS}, config)
    shutil.copytree(tokenizer, directory / "tokenizer")
    indices, files = {}, []
    for split in SPLITS:
        indices[split], found = merge.write(split)
        files += found
        on_progress(f"{split}: {indices[split].tokens:,} tokens")
    counts = merge.token_counts("test", read_tokenizer(tokenizer).get_vocab_size())
    summary = summarise(config, merge.dropped, merge.bad_rows, indices, counts)
    summary.write(directory)
    return Merged(summary, files)


class _Merge:
    """Which documents of the pieces stay. They are counted through all pieces, in the order of their records."""

    def __init__(self, config: DataConfig, pieces: Sequence[PieceFiles], directory: Path):
        self._config, self._pieces, self._directory = config, pieces, directory
        summaries = [
            PieceSummary.model_validate_json((piece.directory / PIECE_FILE).read_text(encoding="utf-8"))
            for piece in pieces
        ]
        self._bounds = np.cumsum([0, *(summary.documents for summary in summaries)])
        self._kept = np.ones(int(self._bounds[-1]), dtype=np.bool)
        self.bad_rows = _bad_rows(summaries, config.max_bad_rows_fraction)
        self._moved: dict[str, SplitIndex] = {}  # held-out splits that got a document of train
        self.dropped = {
            "duplicates_dropped": sum(summary.duplicates_dropped for summary in summaries),
            "contaminated_dropped": sum(summary.contaminated_dropped for summary in summaries),
        }

    def drop_repetitions(self, scratch: Path) -> None:
        total = len(self._kept)
        self._kept = drop_duplicates(map(self._records, range(len(self._pieces))), total, self._directory, scratch)
        distinct = int(self._kept.sum())
        self.dropped["duplicates_dropped"] += total - distinct
        if self._config.near_duplicates == "drop":
            self._kept = drop_near_duplicates(self._bands, np.diff(self._bounds).tolist(), self._kept, scratch)
            self.dropped["near_duplicates_dropped"] = distinct - int(self._kept.sum())

    def count(self, split: str) -> int:
        """Documents of a split that stay."""
        kept = sum(int(self._keep(piece, split).sum()) for piece in range(len(self._pieces)))
        return self._moved[split].documents if split in self._moved else kept

    def ensure_document(self, split: str) -> None:
        """Of few documents none may belong to a split: then that of train whose digest is nearest to it does."""
        if self.count(split) or self.count("train") < 2:
            return
        _, piece, nearest = min(self._nearest(piece) for piece in range(len(self._pieces)) if self._has(piece, "train"))
        records = self._records(piece)
        self._pieces[piece].fetch("train")
        reader = SplitReader(self._pieces[piece].directory, "train")
        number = int((records["split"][:nearest] == SPLITS.index("train")).sum())
        start, (tokens, sizes) = reader.document_start(number), reader.document_sizes()
        text = reader.read(start + 1, start + int(tokens[number])).tolist()
        index = reader.index
        vocab_size = 2 ** (8 * np.dtype(index.dtype).itemsize)
        writer = ShardWriter(self._directory / split, vocab_size, index.end_of_document_id, index.shard_tokens)
        writer.add(text, int(sizes[number]))
        self._moved[split] = writer.close()
        self._kept[self._bounds[piece] + nearest] = False

    def write(self, split: str) -> tuple[SplitIndex, list[TokenFile]]:
        if split in self._moved:
            return self._moved[split], []
        return merge_split(self._parts(split), split, self._directory)

    def token_counts(self, split: str, vocab_size: int) -> NDArray[np.int64]:
        if split in self._moved:
            return SplitReader(self._directory, split).token_counts(vocab_size)
        parts = self._parts(split)
        for part in parts:
            self._pieces[part.piece].fetch(split)
        return count_tokens(parts, vocab_size)

    def _parts(self, split: str) -> list[PieceSplit]:
        kept = {piece: self._keep(piece, split) for piece in range(len(self._pieces))}
        parts = [
            PieceSplit(piece, self._pieces[piece].directory / split, keep) for piece, keep in kept.items() if keep.any()
        ]
        parts[-1].is_last = True
        return parts

    def _records(self, piece: int) -> NDArray[np.void]:
        return np.fromfile(self._pieces[piece].directory / RECORDS_FILE, dtype=RECORD)

    def _bands(self, piece: int) -> NDArray[np.uint64]:
        file = self._pieces[piece].directory / BANDS_FILE
        found = np.fromfile(file, dtype="<u8") if file.is_file() else np.empty(0, dtype=np.uint64)
        return found.reshape(-1, BANDS)

    def _kept_of(self, piece: int) -> NDArray[np.bool]:
        return self._kept[self._bounds[piece] : self._bounds[piece + 1]]

    def _keep(self, piece: int, split: str) -> NDArray[np.bool]:
        """Of a piece's documents of a split, which stay."""
        keep: NDArray[np.bool] = self._kept_of(piece)[self._records(piece)["split"] == SPLITS.index(split)]
        return keep

    def _has(self, piece: int, split: str) -> bool:
        return bool(self._keep(piece, split).any())

    def _nearest(self, piece: int) -> tuple[tuple[int, int], int, int]:
        """The lowest digest of a piece's training documents, the piece, and the document within it."""
        records = self._records(piece)
        numbers = np.flatnonzero(self._kept_of(piece) & (records["split"] == SPLITS.index("train")))
        first = numbers[np.lexsort((records["low"][numbers], records["high"][numbers]))[0]]
        return (int(records["high"][first]), int(records["low"][first])), piece, int(first)


def _bad_rows(summaries: Sequence[PieceSummary], max_fraction: float) -> BadRows:
    parts = (BadRows(max_fraction, s.rows, s.bad_rows, list(s.bad_row_samples)) for s in summaries)
    return together(parts, max_fraction)
