"""Parquet, JSONL and text files to documents, within bounds; an error names the file and the line or row, from 1 on."""

import codecs
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flashslm.data.bad_rows import BadRows, UnreadableRow

TEXT_SUFFIXES = (".txt", ".py", ".md")
COMPRESSIONS = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
SUFFIXES = (".parquet", *COMPRESSIONS, *TEXT_SUFFIXES)
MAX_DOCUMENT_BYTES = 256_000_000  # of a line, a cell or a text file: it is held in memory
MAX_EXPANSION = 1_000  # of a file's size, by decompression; text shrinks by less than a hundred
FREE_BYTES = 1_000_000_000  # that any file may decompress to
_BATCH_ROWS = 16  # of Parquet, so that long cells are few at a time
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """One piece of text and where it was found."""

    text: str
    name: str


Reader = Callable[[], Document | None]  # of one row; raises UnreadableRow


def read_file(path: Path, name: str, text_field: str, bad_rows: BadRows) -> Iterator[Document]:
    """The documents of a file; `name` is what errors call it. A text file is one document, a null gives none.

    Raises ValueError for a file that cannot be read as its name's ending says, and where there are too many bad rows.
    """
    if name.endswith(TEXT_SUFFIXES):
        readers: Iterator[Reader] = iter([lambda: Document(_text(path, name), name)])
    elif name.endswith(".parquet"):
        readers = _parquet_rows(path, name, text_field)
    else:
        readers = _jsonl_rows(path, name, text_field)
    for reader in readers:
        document = bad_rows.read(reader)
        if document is not None:
            yield document


def field_document(row: Any, text_field: str, name: str) -> Document | None:
    """The row's text as a document; a null gives none. Raises UnreadableRow where the row has no text."""
    if not isinstance(row, dict) or text_field not in row:
        raise UnreadableRow(name, _no_field(name, text_field, list(row) if isinstance(row, dict) else []))
    text = row[text_field]
    if text is None:
        return None
    if not isinstance(text, str):
        raise UnreadableRow(name, f"'{name}': field '{text_field}' is {type(text).__name__}; text is needed")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise _too_long(name, "a cell")
    return Document(text.removeprefix(_BYTE_ORDER_MARK), name)


def _no_field(name: str, text_field: str, present: list[str]) -> str:
    shown = ", ".join(present[:50]) or "(none)"
    return f"'{name}' has no field '{text_field}'; set data.text_field to one of: {shown}"


class _Budget:
    """What a file may decompress to; a row counts as a byte more, so that empty ones are not without end."""

    def __init__(self, path: Path, name: str):
        self._name, self._left = name, max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)

    def spend(self, num_bytes: int) -> None:
        self._left -= num_bytes + 1
        if self._left < 0:
            raise ValueError(
                f"'{self._name}' decompresses to more than {MAX_EXPANSION:,} times its size: it is not a text file"
            )


def _text(path: Path, name: str) -> str:
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise _too_long(name, "a text file, which is one document,")
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _not_utf8(f"{name}:{line}", raw[error.start]) from None


def _too_long(place: str, what: str) -> UnreadableRow:
    message = f"'{place}': {what} of more than {MAX_DOCUMENT_BYTES:,} bytes: part it into documents"
    return UnreadableRow(place, message)


def _not_utf8(place: str, byte: int) -> UnreadableRow:
    message = f"'{place}': byte 0x{byte:02x} is not UTF-8: convert the file or leave it out of data.paths"
    return UnreadableRow(place, message)


def _jsonl_rows(path: Path, name: str, text_field: str) -> Iterator[Reader]:
    """A reader of each line; empty lines have none."""
    for number, line in read_lines(path, name):
        if line.strip():
            yield partial(_line_document, line, f"{name}:{number}", number == 1, text_field)


def _line_document(line: bytes, place: str, is_first: bool, text_field: str) -> Document | None:
    if len(line) > MAX_DOCUMENT_BYTES:
        raise _too_long(place, "a line")
    try:
        text = line.decode("utf-8-sig" if is_first else "utf-8")
        row = json.loads(text) if text.strip() else {text_field: None}
    except UnicodeDecodeError as error:
        raise _not_utf8(place, line[error.start]) from None
    except RecursionError:
        raise UnreadableRow(place, f"'{place}' is not JSON of text: its values are nested too deeply") from None
    except ValueError as error:  # JSON's own, and that of numbers with thousands of digits
        raise UnreadableRow(place, f"'{place}' is not JSON: {error}") from None
    return field_document(row, text_field, place)


def read_lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; of one that is longer than MAX_DOCUMENT_BYTES the beginning."""
    import pyarrow

    compression = next(kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix))
    budget, number = _Budget(path, name), 0
    try:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            buffered = io.BufferedReader(stream, 1 << 20)
            while line := buffered.readline(MAX_DOCUMENT_BYTES + 1):
                number += 1
                budget.spend(len(line))
                yield number, line
                while len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):  # the rest of it
                    line = buffered.readline(MAX_DOCUMENT_BYTES + 1)
                    budget.spend(len(line))
    except (OSError, pyarrow.ArrowException) as error:
        kind = f"{compression} data" if compression else "a file"
        raise ValueError(
            f"'{name}:{number + 1}' cannot be read as {kind} ({error}): fetch it again or leave it out of data.paths"
        ) from error


def _parquet_rows(path: Path, name: str, text_field: str) -> Iterator[Reader]:
    import pyarrow
    import pyarrow.parquet

    budget, number = _Budget(path, name), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise ValueError(_no_field(name, text_field, file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[text_field]):
                for row in batch.to_pylist():
                    number += 1
                    budget.spend(len(row[text_field] or "") if isinstance(row[text_field], str) else 0)
                    yield partial(field_document, row, text_field, f"{name}:{number}")
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        place = f"{name}' after row {number:,}" if number else f"{name}'"
        raise ValueError(
            f"'{place} cannot be read as Parquet ({error}): fetch it again or leave it out of data.paths"
        ) from error
