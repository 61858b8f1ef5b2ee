"""What schedules and leases want of an ObjectStore, in memory and with its conditional puts."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

from flashslm.infra.storage.errors import ObjectCorrupt, PreconditionFailed


class MemoryStore:
    """Keys, JSON text and etags."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, str]] = {}
        self._etags = itertools.count()

    def get_json(self, key: str) -> tuple[Any, str] | None:
        found = self.get_bytes(key)
        try:
            return (json.loads(found[0]), found[1]) if found else None
        except ValueError as error:
            raise ObjectCorrupt(f"{key} is not JSON") from error

    def get_bytes(self, key: str) -> tuple[bytes, str] | None:
        found = self.objects.get(key)
        return (found[0].encode(), found[1]) if found else None

    def put_json(self, key: str, value: Any, *, if_absent: bool = False, if_match: str | None = None) -> str:
        there = self.objects.get(key)
        if (if_absent and there) or (if_match and (not there or there[1] != if_match)):
            raise PreconditionFailed(key)
        self.objects[key] = (json.dumps(value), str(next(self._etags)))
        return self.objects[key][1]

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)
