"""Directories written whole or not at all, and what safetensors files say about themselves. No torch here."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILE = "model.safetensors"


class StoredTensor(NamedTuple):
    """One tensor in a safetensors file: its dtype in the format's words (F32, BF16, …), its shape, its file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `directory` at the end; after an error nothing is left of it.

    Raises FileExistsError when `directory` already has content: an export never mixes with an older one.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"'{directory}' already has files: give a new directory, or remove it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    temporary.mkdir()  # as the umask says: mkdtemp's would be the owner's alone
    try:
        yield temporary
        temporary.replace(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file; copy it where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError, with the file's name, otherwise."""
    try:
        value = read_json(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__}, not a JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a directory by name, from the headers alone.

    Raises ValueError for a damaged or missing file, and where index and shards disagree.
    """
    per_file = {path: _headers(path) for path in weight_files(directory)}
    tensors = {name: tensor for headers in per_file.values() for name, tensor in headers.items()}
    if (directory / INDEX_FILE).is_file():
        listed = weight_map(directory)
        held = {(name, path.name) for path, headers in per_file.items() for name in headers}
        if differing := sorted({name for name, _ in held ^ set(listed.items())}):
            raise ValueError(f"{INDEX_FILE} and the shards disagree about {', '.join(differing)}")
    return tensors


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: those the index names, else the single one."""
    names = sorted(set(weight_map(directory).values())) if (directory / INDEX_FILE).is_file() else [WEIGHT_FILE]
    return [directory / name for name in names]


def tensor_bytes(path: Path) -> int:
    """What the tensors of a sound safetensors file take: all that follows its header."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header_bytes


def tensor_framework(path: Path) -> str | None:
    """What a sound safetensors file says of whose tensors it holds ("pt": PyTorch's); None: it has no metadata."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    return None if metadata is None else str(metadata.get("format", ""))


def weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index says."""
    listed = read_object(directory / INDEX_FILE).get("weight_map")
    if not isinstance(listed, dict) or not all(_is_file_name(name) for name in listed.values()):
        raise ValueError(f"{INDEX_FILE} has no weight_map from tensors to .safetensors files beside it")
    return listed


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _headers(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: StoredTensor(s.get_dtype(), tuple(s.get_shape()), path) for name, s in slices.items()}
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing") from error
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
