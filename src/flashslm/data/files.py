"""Where the files of a data set are: in a directory, or elsewhere and fetched one by one."""

from pathlib import Path
from typing import BinaryIO, Protocol


class Files(Protocol):
    """Files by their path in the data set, such as train/index.json. Its text says where they are."""

    def size(self, name: str) -> int:
        """Bytes of a file, -1 if it is missing."""

    def open(self, name: str) -> BinaryIO:
        """A verified local copy of a file that is there."""

    def fetch_ahead(self, name: str) -> None:
        """Begin to fetch a file that will be opened soon."""


class LocalFiles:
    """Those of a directory."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __str__(self) -> str:
        return str(self._directory)

    def size(self, name: str) -> int:
        file = self._directory / name
        return file.stat().st_size if file.is_file() else -1

    def open(self, name: str) -> BinaryIO:
        return (self._directory / name).open("rb")

    def fetch_ahead(self, name: str) -> None:
        """They are there."""


def files_of(dataset: Path | Files) -> Files:
    """The files of a directory, or what has been opened already."""
    return LocalFiles(dataset) if isinstance(dataset, Path) else dataset


def content_of(files: Files, name: str) -> bytes | None:
    """The content of a small file; None if it is missing."""
    if files.size(name) < 0:
        return None
    with files.open(name) as opened:
        return opened.read()
