"""Sources of text. Each yields documents in an order that depends on its content and the seed alone."""

import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flashslm.config import DataConfig, digest
from flashslm.data.bad_rows import BadRows
from flashslm.data.contamination import evaluation_files
from flashslm.data.file_formats import SUFFIXES, Document, field_document, read_file
from flashslm.data.source_paths import file_state, local_copy, match, tree_state

NOT_LIBRARY_SOURCE = {"site-packages", "dist-packages", "__pycache__"}
_HUB_TIMEOUT_S = 10.0
_MAX_DESCRIPTION = 1000  # characters of paths


def read_documents(
    config: DataConfig, seed: int, s3_client: Any = None, bad_rows: BadRows | None = None
) -> Iterator[Document]:
    """Yield a recipe's documents, at most `max_bytes` of UTF-8 (the last document is cut to fit).

    `s3_client` is a boto3 S3 client, needed for s3:// paths only; `bad_rows` counts those that cannot be read. Raises
    ValueError for paths that match nothing, files that cannot be read and too many bad rows; RuntimeError when a hub
    data set cannot be reached.
    """
    bad_rows = bad_rows or BadRows(config.max_bad_rows_fraction)
    match config.source:
        case "python-stdlib":
            documents = read_standard_library(seed, shuffle=config.max_bytes > 0)
        case "files":
            documents = read_files(config.paths, config.text_field, bad_rows, s3_client)
        case "huggingface":
            documents = read_huggingface(config, bad_rows)
    valid = without_surrogates(documents)
    return limit_bytes(valid, config.max_bytes) if config.max_bytes else valid


def without_surrogates(documents: Iterable[Document]) -> Iterator[Document]:
    """JSON may hold lone surrogates, which no UTF-8 can: a question mark takes their place."""
    return (Document(d.text.encode("utf-8", "replace").decode(), d.name) for d in documents)


def describe_source(config: DataConfig) -> str:
    """One line for records: what the text was, as precisely as the recipe can say it."""
    match config.source:
        case "python-stdlib":
            return f"python-stdlib ({platform.python_implementation()} {platform.python_version()})"
        case "files":
            return f"files ({_shortened(config.paths)})"
        case "huggingface":
            return "huggingface " + "/".join(
                filter(None, (config.dataset, config.dataset_config, config.dataset_split, config.dataset_revision))
            )


def _shortened(paths: Sequence[str]) -> str:
    """A record goes into tags and messages, which have limits of length."""
    whole = ", ".join(paths)
    if len(whole) <= _MAX_DESCRIPTION:
        return whole
    return f"{len(paths):,} paths, the first {paths[0][:_MAX_DESCRIPTION]}, sha256 {digest(list(paths))}"


def source_digest(config: DataConfig, s3_client: Any = None) -> str:
    """What tells whether the text or the tokenizer has changed, without reading the text: part of the cache key of the
    steps that read them.

    Files by name, size and time of change; S3 objects by etag; a tokenizer's files by their content; the standard
    library by the interpreter's version. Ids of the hub have their revision in the recipe (`with_revisions`).
    """
    states: list[Any] = [tree_state(Path(name)) for name in local_directories(config).values()]
    if config.source == "files":
        states += [file_state(name, s3_client) for pattern in config.paths for name in match(pattern, s3_client)]
    against = [name for pattern in config.decontaminate_against for name in evaluation_files(pattern, s3_client)]
    states += [file_state(name, s3_client) for name in against]
    return digest([sys.version if config.source == "python-stdlib" else "", *states])


def local_directories(config: DataConfig) -> dict[str, str]:
    """Directories of this machine that a data section names where it could name an id of the hub."""
    named = {"data.tokenizer": config.tokenizer if config.tokenizer != "train" else ""}
    if config.source == "huggingface":
        named["data.dataset"] = config.dataset
    return {where: name for where, name in named.items() if name and Path(name).is_dir()}


def with_revisions(config: DataConfig) -> DataConfig:
    """The data section with the commits that ids of the hub stand for now, so that steps read and record just those.

    A revision stays as it is written where the hub does not answer; the step that needs it says so.
    """
    found, local = {}, local_directories(config)
    if config.source == "huggingface" and "data.dataset" not in local:
        found["dataset_revision"] = _hub_commit(config.dataset, config.dataset_revision, "dataset")
    if config.tokenizer != "train" and "data.tokenizer" not in local:
        found["tokenizer_revision"] = _hub_commit(config.tokenizer, config.tokenizer_revision, "model")
    return config.model_copy(update=found)


def _hub_commit(name: str, revision: str, kind: str) -> str:
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().repo_info(
            name, revision=revision or None, repo_type=kind, timeout=_HUB_TIMEOUT_S
        )
    except Exception:  # its errors and those of the network share no base class
        return revision
    return str(info.sha)


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


def read_files(
    patterns: Iterable[str], text_field: str, bad_rows: BadRows, s3_client: Any = None
) -> Iterator[Document]:
    """Parquet, JSONL and text files, local or s3://, pattern by pattern and sorted within each.

    Parquet is streamed by rows and JSONL by lines; a text file is one document. An object of S3 is copied to a
    temporary file while it is read.
    """
    for pattern in patterns:
        names = match(pattern, s3_client)
        wrong = [name for name in names if not name.endswith(SUFFIXES)]
        if wrong:
            raise ValueError(f"data.paths: cannot read '{wrong[0]}'; allowed endings are {' '.join(SUFFIXES)}")
        for name in names:
            with local_copy(name, s3_client) as path:
                yield from read_file(path, name, text_field, bad_rows)


def read_huggingface(config: DataConfig, bad_rows: BadRows, piece: int = 0, pieces: int = 1) -> Iterator[Document]:
    """Stream one split of a hub data set (or of a local directory that `datasets` can load), or one of several
    consecutive pieces of its files.
    """
    for number, row in enumerate(_hub_rows(config, piece, pieces), start=1):
        document = bad_rows.read(partial(field_document, row, config.text_field, f"{config.dataset}:{number}"))
        if document is not None:
            yield document


def hub_shards(config: DataConfig) -> int:
    """How many pieces a hub data set can be read in. Raises RuntimeError when it cannot be reached."""
    with _hub_errors(config, [0]):
        return int(_open_hub(config).num_shards)


def _hub_rows(config: DataConfig, piece: int, pieces: int) -> Iterator[Any]:
    read = [0]
    with _hub_errors(config, read):
        rows = _open_hub(config)
        for row in rows.shard(pieces, piece, contiguous=True) if pieces > 1 else rows:
            read[0] += 1
            yield row


def _open_hub(config: DataConfig) -> Any:
    import datasets

    options = {"revision": config.dataset_revision} if config.dataset_revision else {}
    part = config.dataset_config or None
    return datasets.load_dataset(config.dataset, part, split=config.dataset_split, streaming=True, **options)


@contextmanager
def _hub_errors(config: DataConfig, read: list[int]) -> Iterator[None]:
    """`read` holds how many rows came."""
    try:
        yield
    except Exception as error:  # the hub client's own errors share no base class
        failed = f"failed after row {read[0]:,}" if read[0] else "could not be opened"
        raise RuntimeError(
            f"data set '{config.dataset}' {failed} ({type(error).__name__}: {error}). It needs the network and an "
            "existing id, configuration and split; without network use data.source=files with local copies"
        ) from error
