"""Rows of a source that cannot be read: counted, a few kept to look at, and an error where they are too many."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

SAMPLES = 20  # that are kept
_ENOUGH = 1_000  # bad rows, after which a share is judged before the end
_LONGEST_REASON = 300
Row = TypeVar("Row")


class UnreadableRow(ValueError):
    """A row that is not a document; `place` is its file and its line or row, from 1 on."""

    def __init__(self, place: str, message: str):
        super().__init__(message)
        self.place = place


class BadRow(BaseModel):
    """Where a row that could not be read stands, and why it could not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: str
    reason: str


@dataclass
class BadRows:
    """The unreadable rows among `rows`. Where none is allowed the first is an error at once."""

    max_fraction: float
    rows: int = 0
    count: int = 0
    samples: list[BadRow] = field(default_factory=list)

    def read(self, read: Callable[[], Row]) -> Row | None:
        """What reading one row gives; None if it cannot be read."""
        self.rows += 1
        try:
            return read()
        except UnreadableRow as error:
            if not self.max_fraction:
                raise
            self.count += 1
            if len(self.samples) < SAMPLES:
                self.samples.append(BadRow(place=error.place, reason=str(error)[:_LONGEST_REASON]))
        if self.count > _ENOUGH:
            self.check()
        return None

    def check(self) -> None:
        """Raise ValueError if they are more than `max_fraction` of the rows."""
        if self.count > self.max_fraction * self.rows:
            raise ValueError(
                f"{self.count:,} of {self.rows:,} rows cannot be read, more than data.max_bad_rows_fraction "
                f"({self.max_fraction:g}). The first: {self.samples[0].reason}"
            )


def together(parts: Iterable[BadRows], max_fraction: float) -> BadRows:
    """Those of several readings, in their order."""
    whole = BadRows(max_fraction)
    for part in parts:
        whole.rows, whole.count = whole.rows + part.rows, whole.count + part.count
        whole.samples += part.samples[: SAMPLES - len(whole.samples)]
    return whole
