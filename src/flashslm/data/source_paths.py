"""Where a source's files are: local paths and s3:// keys, as they are written or as globs, and what tells a change."""

import glob
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from flashslm.config import DataConfig

_HASHED_BYTES = 100_000_000  # a file of a tokenizer up to this size counts by its content


def reads_s3(config: DataConfig) -> bool:
    return any(path.startswith("s3://") for path in (*config.paths, *config.decontaminate_against))


def match(pattern: str, s3_client: Any) -> list[str]:
    """The files of one entry of data.paths, sorted: the file of that name if there is one, else what the glob matches.

    Raises ValueError where there is none, StoreError for what S3 refuses.
    """
    names = _match_s3(pattern, s3_client) if pattern.startswith("s3://") else _match_local(pattern)
    if not names:
        instead = f"; for a directory's files '{pattern.rstrip('/')}/**/*'" if Path(pattern).is_dir() else ""
        raise ValueError(
            f"data.paths: '{pattern}' matches no file; give an existing file or a glob such as 'x/*.md'{instead}"
        )
    return names


def _match_local(pattern: str) -> list[str]:
    if Path(pattern).is_file():
        return [pattern]
    return sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())


def _match_s3(pattern: str, s3_client: Any) -> list[str]:
    """Keys under the pattern's fixed prefix that match it; `*` crosses `/` here, as keys have no directories."""
    if s3_client is None:
        raise ValueError(f"data.paths: '{pattern}' needs an S3 client; none was given")
    bucket, key_pattern = _bucket_and_key(pattern)
    prefix = key_pattern[: min((key_pattern.find(c) for c in "*?[" if c in key_pattern), default=len(key_pattern))]
    with _s3_errors(bucket, key_pattern):
        pages = s3_client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    found = [key_pattern] if key_pattern in keys else [key for key in keys if fnmatchcase(key, key_pattern)]
    return sorted(f"s3://{bucket}/{key}" for key in found)


@contextmanager
def local_copy(name: str, s3_client: Any) -> Iterator[Path]:
    """The file itself, or a temporary copy of an object."""
    if not name.startswith("s3://"):
        yield Path(name)
        return
    bucket, key = _bucket_and_key(name)
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(key).suffix) as file:
        with _s3_errors(bucket, key):
            s3_client.download_fileobj(bucket, key, file)
        file.flush()
        yield Path(file.name)


class InputFile(BaseModel):
    """A file or object, its size, and what tells whether it has changed: an etag, or the time of a change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bytes: int
    version: str


def input_file(name: str, s3_client: Any) -> InputFile:
    """A file or object as it is now."""
    if name.startswith("s3://"):
        bucket, key = _bucket_and_key(name)
        with _s3_errors(bucket, key):
            head = s3_client.head_object(Bucket=bucket, Key=key)
        return InputFile(name=name, bytes=head["ContentLength"], version=str(head["ETag"]))
    state = Path(name).stat()
    return InputFile(name=name, bytes=state.st_size, version=str(state.st_mtime_ns))


def file_state(name: str, s3_client: Any) -> list[str]:
    """A file by name, size and time of change; an object by its etag."""
    file = input_file(name, s3_client)
    return [name, file.version] if name.startswith("s3://") else [name, str(file.bytes), file.version]


def tree_state(directory: Path) -> list[list[str]]:
    """Every file below a local directory: small ones by their content."""
    return [content_state(path) for path in sorted(directory.rglob("*")) if path.is_file()]


def content_state(file: Path) -> list[str]:
    """A local file by its content; a very large one as `file_state` has it."""
    if file.stat().st_size > _HASHED_BYTES:
        return file_state(str(file), None)
    return [str(file), hashlib.sha256(file.read_bytes()).hexdigest()]


def _bucket_and_key(name: str) -> tuple[str, str]:
    bucket, _, key = name.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _s3_errors(bucket: str, key: str) -> Iterator[None]:
    """The client's exceptions as the store's; only where there is an object, so that local files need no client."""
    from flashslm.infra.storage.s3 import translated

    with translated(f"data.paths: S3, bucket '{bucket}'", key):
        yield
