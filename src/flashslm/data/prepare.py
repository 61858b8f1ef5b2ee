"""Text to a data set in one process: plan, prepare each piece, merge. Same text and recipe, same bytes on disk."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flashslm.config import DataConfig, digest
from flashslm.data.bad_rows import BadRows
from flashslm.data.contamination import ForbiddenRuns, forbidden_ngrams
from flashslm.data.documents import SPLITS
from flashslm.data.encoding import TextEncoder
from flashslm.data.file_formats import Document
from flashslm.data.merge import PieceFiles, merge_pieces
from flashslm.data.pieces import PieceSettings, prepare_piece
from flashslm.data.plan import Piece, plan_pieces, read_piece
from flashslm.data.sample import sample_texts
from flashslm.data.sources import describe_source, source_digest
from flashslm.data.summary import DATASET_FILE, DatasetSummary
from flashslm.data.tokenizer import copy_tokenizer, read_tokenizer, save_tokenizer, train_tokenizer

log = logging.getLogger(__name__)


def prepare_once(config: DataConfig, seed: int, directory: Path, on_progress: Callable[[str], None] = log.info) -> Path:
    """The data set of this text and seed below `directory`, which keeps one for each; made unless it is there whole.

    Files that have changed since are not read again, since what was trained on the data set is to be continued; a
    sentence says so.
    """
    text = {"data": config.model_dump(mode="json"), "seed": seed}
    prepared = directory / f"data-{digest(text)[:12]}"
    read = prepared.with_name(f"{prepared.name}.source")
    if not (prepared / DATASET_FILE).is_file():  # it is written last
        prepared.mkdir(parents=True, exist_ok=True)
        read.write_text(_source_state(config), encoding="utf-8")
        prepare_dataset(config, seed, prepared, on_progress=on_progress)
    elif read.is_file() and read.read_text(encoding="utf-8") != _source_state(config):
        on_progress(
            f"the source ({describe_source(config)}) has changed since '{prepared}' was made of it: the text that was "
            "read then is used; another directory, or this one deleted, takes the new text"
        )
    return prepared


def _source_state(config: DataConfig) -> str:
    """What tells that the text has changed; "" where that cannot be seen from here."""
    try:
        return source_digest(config)
    except (ValueError, OSError):  # files that are gone, s3:// without a client
        return ""


def prepare_dataset(
    config: DataConfig,
    seed: int,
    directory: Path,
    s3_client: Any = None,
    on_progress: Callable[[str], None] = log.info,
    documents: Iterable[Document] | None = None,
    bad_rows: BadRows | None = None,
) -> DatasetSummary:
    """Write `directory`/{tokenizer,train,validation,test}/, the documents' digests and, last, dataset.json.

    The text is that of the recipe's source unless `documents` are given, which takes a tokenizer that exists. Then
    `bad_rows` are those that were met.

    Models learn from train, validation may steer (the search, the law, the variant), test only judges. A document
    belongs to one of them by a hash of its own text, so the splits do not change with the order, the seed or other
    documents; where none belongs to validation or test, the one with the lowest hash is taken.

    Memory is bounded by a piece of the text, `tokenizer_bytes` and `shard_tokens`.
    Raises ValueError when the text cannot make a data set (UnusableText: too little); the message says what to change.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", *SPLITS):
        shutil.rmtree(directory / name, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".pieces-", dir=directory) as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        pieces, end_id = plan_with_tokenizer(config, seed, tokenizer, s3_client, is_given=documents is not None)
        on_progress(f"tokenizer ready, {len(pieces)} piece(s) of text")
        forbidden = ForbiddenRuns(forbidden_ngrams(config.decontaminate_against, s3_client))
        shared = PieceSettings(config, TextEncoder(read_tokenizer(tokenizer)), end_id, forbidden)
        files = [PieceFiles(Path(scratch) / str(piece.number)) for piece in pieces]
        for piece, made in zip(pieces, files, strict=True):
            bad = bad_rows or BadRows(config.max_bad_rows_fraction)
            text = read_piece(config, piece, seed, bad, s3_client) if documents is None else documents
            prepare_piece(shared, text, bad, made.directory, on_progress)
        merged = merge_pieces(config, files, tokenizer, directory, Path(scratch), on_progress)
        for file in merged.token_files:
            (files[file.piece].directory / file.source).rename(directory / file.target)
    return merged.summary


def plan_with_tokenizer(
    config: DataConfig, seed: int, directory: Path, s3_client: Any = None, *, is_given: bool = False
) -> tuple[tuple[Piece, ...], int]:
    """The pieces of the source, and the end-of-document id of their tokenizer, which is written to `directory`.

    It is copied, before the source is looked at, or trained on a fair sample of the pieces. A text that `is_given` is
    one piece, whose tokenizer exists.
    """
    if config.tokenizer != "train":
        end_id = copy_tokenizer(config.tokenizer, directory, config.tokenizer_revision)[1]
        return (Piece(),) if is_given else plan_pieces(config, s3_client), end_id
    pieces = plan_pieces(config, s3_client)
    save_tokenizer(train_tokenizer(sample_texts(config, pieces, seed, s3_client), config.vocab_size), directory)
    return pieces, 0
