"""What a run reports of itself."""

from pathlib import Path

import pytest
from jinja2 import Environment, PackageLoader

import flashslm
from flashslm.launch.local.launcher import LocalResult
from flashslm.launch.local.report_outcome import carried_out, say_what_happened
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


@pytest.mark.parametrize(
    ("state", "summary", "expected"),
    [
        ("SUCCESS", "m version 2 is champion", "Promoted: m version 2 is champion"),
        ("FAILURE", "MlflowError: no <name>", "the model was not registered: MlflowError: no &lt;name&gt;"),
        ("", "", "the model was not registered: the run ended before the step register_model"),
    ],
)
@pytest.mark.parametrize("template", ["report.html.j2", "retraining.html.j2"])
def test_the_report_says_what_came_of_a_promotion(
    template: str, state: str, summary: str, expected: str, tmp_path: Path
) -> None:
    """The headline of both reports is replaced, whatever else they hold."""
    environment = Environment(loader=PackageLoader("flashslm", "reporting"), autoescape=True)
    headline = environment.get_template("headline.html.j2").render(decision="promote")
    source = (Path(flashslm.__file__).parent / "reporting" / template).read_text()
    assert '{% include "headline.html.j2" %}' in source
    report = tmp_path / "report.html"
    report.write_text(f"<h1>x</h1>{headline}<ul></ul></div>")
    steps = [StepRecord("register_model", "register_model", state=state, summary=summary)] if state else []
    say_what_happened(report, LocalResult("FAILURE", steps, Path("log")))
    page = report.read_text()
    assert expected in page and page.count("<div") == page.count("</div>") == 1
    assert "gate's checks passed." not in page and ('class="verdict failed"' in page) == (state != "SUCCESS")


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None
