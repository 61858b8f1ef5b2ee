"""What a run reports of itself."""

import dataclasses
import html
import json
from pathlib import Path

import pytest

from flashslm.config import RunConfig
from flashslm.launch.local import full_run
from flashslm.launch.local.launcher import LocalResult
from flashslm.launch.local.report_outcome import carried_out, write_report
from flashslm.launch.local.run_directory import environment
from flashslm.launch.progress import StepRecord
from flashslm.reporting.document import document
from tests.unit.infra.tracking.test_mlflow_client import server, settings
from tests.unit.reporting.documents import artifacts


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


@pytest.mark.parametrize(
    ("state", "summary", "expected"),
    [
        ("SUCCESS", "m version 2 is champion", "Promoted: m version 2 is champion"),
        ("FAILURE", "MlflowError: no <name>", "the model was not registered: MlflowError: no <name>"),
        ("", "", "the model was not registered: the run ended before the step register_model"),
    ],
)
def test_the_report_says_what_came_of_a_promotion(tmp_path: Path, state: str, summary: str, expected: str) -> None:
    """The page of the step is made again, with what is known only when the run is over."""
    run_dir, stored = tmp_path / "runs" / "1-small", tmp_path / "stored"
    for directory in (run_dir / "artifacts", run_dir / "logs", stored):
        directory.mkdir(parents=True)
    (run_dir / "environment.json").write_text(json.dumps(environment()))
    (run_dir / "artifacts" / "report.json").write_text('{"metadata": {"decision": "promote"}}')
    (run_dir / "logs" / "register_model.log").write_text("x")
    (stored / "report.json").write_text(json.dumps(document(artifacts())))
    log = run_dir / "logs" / "register_model.log"
    step = StepRecord("register_model", "register_model", state=state, summary=summary, duration_s=4.0, log=log)
    local = LocalResult("SUCCESS" if state == "SUCCESS" else "FAILURE", [step] if state else [], log)
    config = RunConfig.model_validate({"name": "small", "training": {"steps": 7}})
    write_report(stored, run_dir, local, config, "design_and_train", 61.0, "http://127.0.0.1:1/#/x")
    page = html.unescape((run_dir / "report.html").read_text())
    assert expected in page and ('class="verdict failed"' in page) == (state != "SUCCESS")
    assert "gate's checks passed. The step" not in page and "1-small" in page and "1 min 1 s" in page
    assert '<td class="mono">training.steps</td><td class="mono">7</td>' in page
    assert 'href="http://127.0.0.1:1/#/x"' in page and 'href="logs"' in page and 'href="export"' not in page
    assert ('href="logs/register_model.log"' in page) == bool(state)


def test_a_held_model_is_not_called_promoted(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "environment.json").write_text(json.dumps(environment()))
    (tmp_path / "artifacts" / "report.json").write_text('{"metadata": {"decision": "hold"}}')
    run = artifacts()
    held = dataclasses.replace(run, verdict=run.verdict | {"decision": "hold"})
    (tmp_path / "report.json").write_text(json.dumps(document(held)))
    local = LocalResult("SUCCESS", [], tmp_path / "log")
    write_report(tmp_path, tmp_path, local, RunConfig(name="small"), "design_and_train", 1.0, "")
    page = (tmp_path / "report.html").read_text()
    assert "Decision: hold" in page and "romoted" not in page


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None


def test_the_end_of_a_run_is_its_own_though_mlflow_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that ran out during the run: Ctrl-C stays what ended it."""
    monkeypatch.setenv("FLASHSLM_SPOOL", str(tmp_path / "spool"))
    with pytest.raises(KeyboardInterrupt), server(401, "denied") as (uri, seen):
        try:
            raise KeyboardInterrupt
        finally:
            full_run._finish_in_mlflow(settings(uri), tmp_path, "7", "KILLED", None, RunConfig(name="small"))
    assert len(seen) > 1
