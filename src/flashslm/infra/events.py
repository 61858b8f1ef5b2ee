"""Step events: one JSON line each, appended to $FLASHSLM_EVENTS, which the launcher shows live; progress is logged."""

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashslm.config.secret import without_secrets
from flashslm.infra.state_files import append_line


@dataclass(frozen=True)
class Events:
    """Writer of one step's events; its progress is in its log too, which a pod or a terminal shows."""

    step: str
    label: str
    path: Path | None

    @classmethod
    def from_env(cls, step: str, label: str) -> "Events":
        path = os.environ.get("FLASHSLM_EVENTS")
        return cls(step, label, Path(path) if path else None)

    def emit(self, event: str, summary: str = "", **fields: Any) -> None:
        """Append `start`, `progress`, `end` or `fail`; a line is one write, so parallel steps do not mix."""
        if event == "progress":
            logging.getLogger(f"flashslm.steps.{self.step}").info("%s", summary)
        if self.path is None:
            return
        summary = without_secrets(summary)  # an error may quote what it was given
        line = {"step": self.step, "label": self.label, "event": event, "time_s": time.time(), "summary": summary}
        append_line(self.path, json.dumps(line | fields))
