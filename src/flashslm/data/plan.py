"""The source in pieces: what each of several tasks reads, in the order in which their results are put together.

Pieces depend on the source and the recipe alone, never on how many tasks share them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from flashslm.config import DataConfig, digest
from flashslm.data.bad_rows import BadRows
from flashslm.data.file_formats import SUFFIXES, Document, read_file
from flashslm.data.source_paths import InputFile, input_file, local_copy, match
from flashslm.data.sources import hub_shards, limit_bytes, read_huggingface, read_standard_library, without_surrogates

PLAN_FILE = "plan.json"
_SPARE = 4  # times data.max_bytes that the planned files have at most: text may be a small part of a file
# What does not change a piece's result: which piece it is of how many, and what the plan has made of it.
_NOT_IN_A_PIECE = {
    "paths",
    "workers",
    "piece_bytes",
    "max_bytes",
    "max_bad_rows_fraction",
    "decontaminate_against",
    "tokenizer",
    "tokenizer_revision",
    "tokenizer_bytes",
}


class Piece(BaseModel):
    """A part of the source, in its order: files, or a part of a hub data set. `max_bytes` of text are read of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = 0
    pieces: int = 1  # of the whole source
    files: tuple[InputFile, ...] = ()
    max_bytes: int | None = None

    def key(self, config: DataConfig, seed: int, shared_sha256: str, code_digest: str) -> str:
        """Identity of the piece's work: another task that does it again makes the same bytes."""
        read = config.model_dump(mode="json", exclude=_NOT_IN_A_PIECE)
        part = self.model_dump(mode="json", exclude={"number", "pieces"} if self.files else set())
        of_order = [seed, config.max_bytes > 0] if config.source == "python-stdlib" else []
        return digest([read, part, of_order, shared_sha256, code_digest])[:32]


class DataPlan(BaseModel):
    """plan.json; beside it are the tokenizer of all pieces and the runs of words that no document may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pieces: tuple[Piece, ...]
    end_of_document_id: int
    shared_sha256: str  # of what is beside it

    def of_worker(self, worker: int, workers: int) -> Sequence[Piece]:
        """The pieces of one of several tasks."""
        return self.pieces[worker::workers]


def plan_pieces(config: DataConfig, s3_client: Any = None) -> tuple[Piece, ...]:
    """The source's pieces; raises ValueError for paths that match nothing or cannot be read.

    Of several pieces each has the share of `max_bytes` that its files have of all bytes.
    """
    match config.source:
        case "python-stdlib":
            return (Piece(max_bytes=config.max_bytes or None),)
        case "huggingface":
            return _hub_pieces(config)
        case "files":
            return _file_pieces(config, s3_client)


def read_piece(
    config: DataConfig, piece: Piece, seed: int, bad_rows: BadRows, s3_client: Any = None
) -> Iterator[Document]:
    """The documents of a piece; raises ValueError where a file is no longer as it was planned."""
    match config.source:
        case "python-stdlib":
            documents = read_standard_library(seed, shuffle=config.max_bytes > 0)
        case "huggingface":
            documents = read_huggingface(config, bad_rows, piece.number, piece.pieces)
        case "files":
            documents = _read_files(piece.files, config.text_field, bad_rows, s3_client)
    documents = without_surrogates(documents)
    return documents if piece.max_bytes is None else limit_bytes(documents, piece.max_bytes)


def _read_files(files: Iterable[InputFile], text_field: str, bad_rows: BadRows, s3_client: Any) -> Iterator[Document]:
    for file in files:
        if input_file(file.name, s3_client) != file:
            raise ValueError(
                f"'{file.name}' has changed since the data were planned: run again, so that all is planned"
            )
        with local_copy(file.name, s3_client) as path:
            yield from read_file(path, file.name, text_field, bad_rows)


def _file_pieces(config: DataConfig, s3_client: Any) -> tuple[Piece, ...]:
    groups: list[list[InputFile]] = [[]]
    total = 0
    for file in _listed(config.paths, s3_client):
        if config.max_bytes and total >= _SPARE * config.max_bytes:
            break
        if groups[-1] and _size(groups[-1]) + file.bytes > config.piece_bytes:
            groups.append([])
        groups[-1].append(file)
        total += file.bytes
    return _with_limits(groups, [_size(group) for group in groups], config.max_bytes)


def _listed(patterns: Iterable[str], s3_client: Any) -> Iterator[InputFile]:
    for pattern in patterns:
        for name in match(pattern, s3_client):
            if not name.endswith(SUFFIXES):
                raise ValueError(f"data.paths: cannot read '{name}'; allowed endings are {' '.join(SUFFIXES)}")
            yield input_file(name, s3_client)


def _hub_pieces(config: DataConfig) -> tuple[Piece, ...]:
    """As many as the data set's files allow; of their sizes nothing is known."""
    shards = hub_shards(config)
    wanted = -(-config.max_bytes // config.piece_bytes) if config.max_bytes else shards
    count = max(1, min(shards, wanted))
    return _with_limits([[]] * count, [1] * count, config.max_bytes)


def _with_limits(groups: Sequence[Sequence[InputFile]], sizes: Sequence[int], max_bytes: int) -> tuple[Piece, ...]:
    pieces, before, total = [], 0, max(1, sum(sizes))
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        last = number == len(groups) - 1
        limit = (max_bytes if last else max_bytes * (before + size) // total) - max_bytes * before // total
        limited = limit if max_bytes else None
        pieces.append(Piece(number=number, pieces=len(groups), files=tuple(group), max_bytes=limited))
        before += size
    return tuple(pieces)


def _size(files: Iterable[InputFile]) -> int:
    return sum(file.bytes for file in files)
