"""What a process that is to be held imports when it starts; see the package."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKER = ["-m", "flashslm.steps.pretrain_worker"]


def hold_steps(step: str, at: int, file: Path) -> None:
    from flashslm.infra.events import Events
    from flashslm.infra.process.interrupts import stop_requested

    emit, seen = Events.emit, 0

    def emit_and_wait(events: Events, event: str, summary: str = "", **fields: Any) -> None:
        nonlocal seen
        emit(events, event, summary, **fields)
        if (event, events.step) == ("progress", step):
            seen += 1
            while file.exists() and fields.get("training_step", seen) >= at and not stop_requested():
                time.sleep(0.01)

    Events.emit = emit_and_wait  # type: ignore[method-assign]


def hold_worker(training_step: int) -> None:
    from flashslm.infra.process.interrupts import stop_requested
    from flashslm.training import workers

    print_metrics = workers.print_metrics

    def print_and_wait(step: int, metrics: dict[str, float]) -> None:
        print_metrics(step, metrics)
        while step == training_step and not stop_requested():
            time.sleep(0.01)

    workers.print_metrics = print_and_wait


def hold_decoding(file: Path) -> None:
    from flashslm.inference.continuous import ContinuousBatch

    advance = ContinuousBatch.advance

    def wait_and_advance(batch: ContinuousBatch, rows: Sequence[int]) -> list[int]:
        while file.exists():
            time.sleep(0.01)
        return advance(batch, rows)

    ContinuousBatch.advance = wait_and_advance  # type: ignore[method-assign]


if hold := os.environ.get("HOLD"):
    found = json.loads(hold)
    hold_steps(found["step"], found["at"], Path(found["while"]))
if (held_at := os.environ.get("HOLD_WORKERS")) and sys.orig_argv[2:4] == WORKER:
    hold_worker(int(held_at))
if decoding_while := os.environ.get("HOLD_DECODING"):
    hold_decoding(Path(decoding_while))
