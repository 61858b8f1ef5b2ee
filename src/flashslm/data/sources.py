"""Sources of text. Each yields documents in an order that depends on its content and the seed alone."""

import glob
import hashlib
import io
import json
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from flashslm.config import DataConfig, digest

TEXT_SUFFIXES = (".txt", ".py", ".md")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.zst", *TEXT_SUFFIXES)
NOT_LIBRARY_SOURCE = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One piece of text and where it was found."""

    text: str
    name: str


def read_documents(config: DataConfig, seed: int, s3_client: Any = None) -> Iterator[Document]:
    """Yield a recipe's documents, at most `max_bytes` of UTF-8 (the last document is cut to fit).

    `s3_client` is a boto3 S3 client, needed for s3:// paths only. Raises ValueError for paths that match nothing, files
    that cannot be read as said and fields that are not there; RuntimeError when a hub data set cannot be reached.
    """
    match config.source:
        case "python-stdlib":
            documents = read_standard_library(seed, shuffle=config.max_bytes > 0)
        case "files":
            documents = read_files(config.paths, config.text_field, s3_client)
        case "huggingface":
            documents = read_huggingface(config)
    # JSON may hold lone surrogates, which no UTF-8 can
    valid = (Document(d.text.encode("utf-8", "replace").decode(), d.name) for d in documents)
    return limit_bytes(valid, config.max_bytes) if config.max_bytes else valid


def describe_source(config: DataConfig) -> str:
    """One line for records: what the text was, as precisely as the recipe can say it."""
    match config.source:
        case "python-stdlib":
            return f"python-stdlib ({platform.python_implementation()} {platform.python_version()})"
        case "files":
            return f"files ({', '.join(config.paths)})"
        case "huggingface":
            return "huggingface " + "/".join(
                filter(None, (config.dataset, config.dataset_config, config.dataset_split))
            )


def reads_s3(config: DataConfig) -> bool:
    return any(path.startswith("s3://") for path in config.paths)


def source_digest(config: DataConfig, s3_client: Any = None) -> str:
    """What tells whether the source has changed, without reading it: part of prepare_data's cache key.

    Files by name, size and time of change; S3 objects by etag; the standard library by the interpreter's version. Of a
    hub data set nothing is known from here: pin a revision by its id, or use files.
    """
    if config.source == "python-stdlib":
        return digest(sys.version)
    return digest([_file_state(name, s3_client) for pattern in config.paths for name in _match(pattern, s3_client)])


def _file_state(name: str, s3_client: Any) -> list[str]:
    if name.startswith("s3://"):
        bucket, _, key = name.removeprefix("s3://").partition("/")
        return [name, str(s3_client.head_object(Bucket=bucket, Key=key)["ETag"])]
    state = Path(name).stat()
    return [name, str(state.st_size), str(state.st_mtime_ns)]


def _match(pattern: str, s3_client: Any) -> list[str]:
    names = _match_s3(pattern, s3_client) if pattern.startswith("s3://") else _match_local(pattern)
    if not names:
        raise ValueError(f"data.paths: '{pattern}' matches no file; give an existing file or a glob such as 'x/*.md'")
    return names


def limit_bytes(documents: Iterable[Document], max_bytes: int) -> Iterator[Document]:
    """Stop after `max_bytes` of UTF-8; the last document is cut at the last whole character that fits."""
    for document in documents:
        encoded = document.text.encode()
        if len(encoded) >= max_bytes:
            yield Document(encoded[:max_bytes].decode(errors="ignore"), document.name)
            return
        max_bytes -= len(encoded)
        yield document


def read_standard_library(seed: int, shuffle: bool) -> Iterator[Document]:
    """The running interpreter's own library: every UTF-8 .py file, sorted by path, or shuffled by the seed.

    The text, and so every digest made from it, depends on the Python version and on what the distribution left out
    (container images often drop the library's tests). Generated build settings are skipped: they name the machine.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    names = [n for n in names if not NOT_LIBRARY_SOURCE & set(n.split("/")) and not n.startswith("_sysconfigdata")]
    if shuffle:
        names.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    for name in names:
        try:
            yield Document((root / name).read_text(encoding="utf-8"), name)
        except UnicodeDecodeError:
            continue  # the library's tests hold files in other encodings on purpose


def read_files(patterns: Iterable[str], text_field: str, s3_client: Any = None) -> Iterator[Document]:
    """Parquet, JSONL and text files, local or s3://, pattern by pattern and sorted within each.

    Parquet is streamed by row groups and JSONL by lines; a text file is one document. An object of S3 is copied to a
    temporary file while it is read.
    """
    for pattern in patterns:
        names = _match(pattern, s3_client)
        wrong = [name for name in names if not name.endswith(SUFFIXES)]
        if wrong:
            raise ValueError(f"data.paths: cannot read '{wrong[0]}'; allowed endings are {' '.join(SUFFIXES)}")
        for name in names:
            with _local_copy(name, s3_client) as path:
                yield from _read_file(path, name, text_field)


def read_huggingface(config: DataConfig) -> Iterator[Document]:
    """Stream one split of a hub data set (or of a local directory that `datasets` can load)."""
    import datasets

    try:
        rows = iter(
            datasets.load_dataset(
                config.dataset, config.dataset_config or None, split=config.dataset_split, streaming=True
            )
        )
        row = next(rows, None)
    except Exception as error:  # the hub client's own errors share no base class
        raise RuntimeError(
            f"data set '{config.dataset}' could not be opened ({type(error).__name__}: {error}). It needs the network "
            "and an existing id, configuration and split; without network use data.source=files with local copies"
        ) from error
    number = 0
    while row is not None:
        yield from _field_document(row, config.text_field, f"{config.dataset}:{number}")
        number, row = number + 1, next(rows, None)


def _match_local(pattern: str) -> list[str]:
    return sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())


def _match_s3(pattern: str, s3_client: Any) -> list[str]:
    """Keys under the pattern's fixed prefix that match it; `*` crosses `/` here, as keys have no directories."""
    if s3_client is None:
        raise ValueError(f"data.paths: '{pattern}' needs an S3 client; none was given")
    bucket, _, key_pattern = pattern.removeprefix("s3://").partition("/")
    prefix = key_pattern[: min((key_pattern.find(c) for c in "*?[" if c in key_pattern), default=len(key_pattern))]
    pages = s3_client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = (entry["Key"] for page in pages for entry in page.get("Contents", ()))
    return sorted(f"s3://{bucket}/{key}" for key in keys if fnmatchcase(key, key_pattern))


@contextmanager
def _local_copy(name: str, s3_client: Any) -> Iterator[Path]:
    if not name.startswith("s3://"):
        yield Path(name)
        return
    bucket, _, key = name.removeprefix("s3://").partition("/")
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(key).name) as file:
        s3_client.download_fileobj(bucket, key, file)
        file.flush()
        yield Path(file.name)


def _read_file(path: Path, name: str, text_field: str) -> Iterator[Document]:
    if name.endswith(TEXT_SUFFIXES):
        try:
            yield Document(path.read_text(encoding="utf-8"), name)
        except UnicodeDecodeError as error:
            raise ValueError(f"'{name}' is not UTF-8 ({error}): convert it or leave it out of data.paths") from error
        return
    rows = _parquet_rows(path, name, text_field) if name.endswith(".parquet") else _jsonl_rows(path, name)
    for number, row in enumerate(rows):
        yield from _field_document(row, text_field, f"{name}:{number}")


def _parquet_rows(path: Path, name: str, text_field: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if text_field not in file.schema_arrow.names:
            raise ValueError(_no_field(name, text_field, file.schema_arrow.names))
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            yield from batch.to_pylist()


def _jsonl_rows(path: Path, name: str) -> Iterator[Any]:
    import pyarrow

    compression = "zstd" if name.endswith(".zst") else None
    with pyarrow.input_stream(str(path), compression=compression) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
            try:
                if line.strip():
                    yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"'{name}' line {number} is not JSON: {error}") from error


def _field_document(row: Any, text_field: str, name: str) -> Iterator[Document]:
    """The row's text as a document; a null gives none."""
    if not isinstance(row, dict) or text_field not in row:
        raise ValueError(_no_field(name, text_field, list(row) if isinstance(row, dict) else []))
    if row[text_field] is not None:
        if not isinstance(row[text_field], str):
            raise ValueError(f"'{name}': field '{text_field}' is {type(row[text_field]).__name__}; text is needed")
        yield Document(row[text_field], name)


def _no_field(name: str, text_field: str, present: list[str]) -> str:
    return f"'{name}' has no field '{text_field}'; set data.text_field to one of: {', '.join(present) or '(none)'}"
