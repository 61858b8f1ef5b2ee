"""Texts of a recipe that may be paths of this machine, marked where their field is declared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

AnySection = TypeVar("AnySection", bound=BaseModel)


@dataclass(frozen=True)
class LocalPath:
    """Marks a field of one text or of several; of a `program` only the first is a path, and only with a slash in it.

    With `or_id` it is a path only where such a file or directory exists: else it is an id of the hub, or a word.
    """

    or_id: bool = False
    program: bool = False

    def absolute(self, text: str) -> str:
        if not text or text.startswith("s3://") or (self.program and "/" not in text):
            return text
        return text if self.or_id and not Path(text).exists() else str(Path(text).absolute())


def with_absolute_paths(section: AnySection) -> AnySection:
    """A copy of a section, and of those inside it, that means the same in any working directory."""
    changed: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        marks = [mark for mark in field.metadata if isinstance(mark, LocalPath)]
        if isinstance(value, BaseModel):
            changed[name] = with_absolute_paths(value)
        elif marks and isinstance(value, tuple):
            paths = value[:1] if marks[0].program else value
            changed[name] = (*map(marks[0].absolute, paths), *value[len(paths) :])
        elif marks:
            changed[name] = marks[0].absolute(value)
    return section.model_copy(update=changed)
