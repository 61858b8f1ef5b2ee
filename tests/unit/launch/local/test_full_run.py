"""What a run reports of itself."""

from pathlib import Path

import pytest

from flashslm.launch.local.full_run import carried_out
from flashslm.launch.local.launcher import LocalResult
from flashslm.launch.local.run_directory import environment
from flashslm.launch.progress import StepRecord


@pytest.mark.parametrize(
    ("decision", "state", "expected"),
    [
        ("promote", "SUCCESS", "promote"),
        ("promote", "FAILURE", "promote, but the model was not registered"),
        ("promote", "", "promote, but the model was not registered"),
        ("hold", "", "hold"),
    ],
)
def test_a_promotion_is_one_when_the_model_is_registered(decision: str, state: str, expected: str) -> None:
    steps = [StepRecord("register_model", "register_model", state=state)] if state else []
    assert carried_out(decision, LocalResult("FAILURE", steps, Path("log"))) == expected


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None
