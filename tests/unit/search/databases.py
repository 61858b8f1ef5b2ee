"""The sqlite file of a study, and how it becomes unusable for a while."""

import sqlite3
from contextlib import contextmanager
from pathlib import Path


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@contextmanager
def locked(url: str):
    """The database cannot be used while the block runs."""
    holder = sqlite3.connect(file_of(url), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.close()
