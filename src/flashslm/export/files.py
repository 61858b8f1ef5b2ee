"""Directories written whole or not at all, and what a safetensors file says about itself. No torch here."""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class TensorHeader(NamedTuple):
    """One tensor of a safetensors file: its dtype in the format's words (F32, BF16, …) and its shape."""

    dtype: str
    shape: tuple[int, ...]


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `directory` at the end; after an error nothing is left of it.

    Raises FileExistsError when `directory` already has content: an export never mixes with an older one.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"'{directory}' already has files: give a new directory, or remove it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private to the user
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


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Every tensor of a safetensors file, from its header alone. Raises ValueError when the file is cut short."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path.name} is not a safetensors file ({error})") from error
    header.pop("__metadata__", None)
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, its header says {expected}")
    return {name: TensorHeader(tensor["dtype"], tuple(tensor["shape"])) for name, tensor in header.items()}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: those the index names, else the single one."""
    index = directory / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    return [directory / name for name in names]
