"""Step events: one JSON line each, appended to $FLASHSLM_EVENTS, which the launcher shows live."""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashslm.config.secret import without_secrets
from flashslm.infra.state_files import append_line


@dataclass(frozen=True)
class Events:
    """Writer of one step's events; without a file its progress goes to stderr, for a terminal or a pod's log."""

    step: str
    label: str
    path: Path | None

    @classmethod
    def from_env(cls, step: str, label: str) -> "Events":
        path = os.environ.get("FLASHSLM_EVENTS")
        return cls(step, label, Path(path) if path else None)

    def emit(self, event: str, summary: str = "", **fields: Any) -> None:
        """Append `start`, `progress`, `end` or `fail`; a line is one write, so parallel steps do not mix."""
        if self.path is None:
            if event == "progress":
                print(f"{self.label}: {summary}", file=sys.stderr, flush=True)
            return
        summary = without_secrets(summary)  # an error may quote what it was given
        line = {"step": self.step, "label": self.label, "event": event, "time_s": time.time(), "summary": summary}
        append_line(self.path, json.dumps(line | fields))
