"""Searches for runs: the order of what is found, whatever other clients left in an experiment."""

from types import SimpleNamespace
from typing import Any

import pytest

from flashslm.infra.tracking.mlflow_client import HIDDEN, TrackingClient


def run(run_id: str, start_time: int | None) -> Any:
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id, start_time=start_time))


def test_runs_of_both_forms_of_a_tag_come_once_and_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of another client may have no start: it comes last."""
    newest, old, both, unstarted = run("newest", 9), run("old", 1), run("both", 5), run("unstarted", None)
    pages = {f"tags.{HIDDEN}owner = 'x'": [unstarted, both, old], "tags.flashslm.owner = 'x'": [newest, both]}
    monkeypatch.setattr(TrackingClient, "all_pages", lambda self, kind, filter_string, **_: pages[filter_string])
    client = object.__new__(TrackingClient)
    found = client.find_runs(f"tags.{HIDDEN}owner = 'x'", experiment_ids=["1"])
    assert [each.info.run_id for each in found] == ["newest", "both", "old", "unstarted"]
