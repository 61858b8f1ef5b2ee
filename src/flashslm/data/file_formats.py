"""Parquet, JSONL and text files to documents, within bounds; an error names the file and the line or row, from 1 on."""

import codecs
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_file(path: Path, name: str, text_field: str) -> Iterator[Document]:
    """The documents of a file; `name` is what errors call it. A text file is one document, a null gives none.

    Raises ValueError for what cannot be read as the name's ending says.
    """
    if name.endswith(TEXT_SUFFIXES):
        yield Document(_text(path, name), name)
        return
    rows = _parquet_rows(path, name, text_field) if name.endswith(".parquet") else _jsonl_rows(path, name)
    for number, row in rows:
        yield from field_document(row, text_field, f"{name}:{number}")


def field_document(row: Any, text_field: str, name: str) -> Iterator[Document]:
    """The row's text as a document; a null gives none."""
    if not isinstance(row, dict) or text_field not in row:
        raise ValueError(_no_field(name, text_field, list(row) if isinstance(row, dict) else []))
    if row[text_field] is not None:
        if not isinstance(row[text_field], str):
            raise ValueError(f"'{name}': field '{text_field}' is {type(row[text_field]).__name__}; text is needed")
        yield Document(row[text_field].removeprefix(_BYTE_ORDER_MARK), name)


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
        raise ValueError(_too_long(name, "a text file, which is one document,"))
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(_not_utf8(f"{name}:{line}", raw[error.start])) from None


def _too_long(name: str, what: str) -> str:
    return f"'{name}': {what} of more than {MAX_DOCUMENT_BYTES:,} bytes: part it into documents"


def _not_utf8(place: str, byte: int) -> str:
    return f"'{place}': byte 0x{byte:02x} is not UTF-8: convert the file or leave it out of data.paths"


def _jsonl_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Line numbers and values; empty lines give none."""
    for number, line in _lines(path, name):
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield number, json.loads(text)
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(place, line[error.start])) from None
        except RecursionError:
            raise ValueError(f"'{place}' is not JSON of text: its values are nested too deeply") from None
        except ValueError as error:  # JSON's own, and that of numbers with thousands of digits
            raise ValueError(f"'{place}' is not JSON: {error}") from None


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    import pyarrow

    compression = next(kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix))
    budget, number = _Budget(path, name), 0
    try:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            buffered = io.BufferedReader(stream, 1 << 20)
            while line := buffered.readline(MAX_DOCUMENT_BYTES + 1):
                number += 1
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise ValueError(_too_long(f"{name}:{number}", "a line"))
                budget.spend(len(line))
                yield number, line
    except (OSError, pyarrow.ArrowException) as error:
        kind = f"{compression} data" if compression else "a file"
        raise ValueError(
            f"'{name}:{number + 1}' cannot be read as {kind} ({error}): fetch it again or leave it out of data.paths"
        ) from error


def _parquet_rows(path: Path, name: str, text_field: str) -> Iterator[tuple[int, dict[str, Any]]]:
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
                    size = len(row[text_field] or "") if isinstance(row[text_field], str) else 0
                    if size > MAX_DOCUMENT_BYTES:
                        raise ValueError(_too_long(f"{name}:{number}", "a cell"))
                    budget.spend(size)
                    yield number, row
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        place = f"{name}' after row {number:,}" if number else f"{name}'"
        raise ValueError(
            f"'{place} cannot be read as Parquet ({error}): fetch it again or leave it out of data.paths"
        ) from error
