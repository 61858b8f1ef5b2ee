"""A report's data as the step `report` stores them, and the page that the launcher makes of them after the run."""

from dataclasses import asdict
from typing import Any

from flashslm.reporting.html import RunArtifacts, render
from flashslm.reporting.retraining import RetrainingArtifacts, render_retraining
from flashslm.reporting.run_facts import RunFacts

FILE = "report.json"


def document(run: RunArtifacts | RetrainingArtifacts) -> dict[str, Any]:
    """JSON values, of which `render_document` makes the page again when the run is over."""
    kind = "retraining" if isinstance(run, RetrainingArtifacts) else "design"
    return {"kind": kind, "run": asdict(run)}


def render_document(stored: dict[str, Any], facts: RunFacts | None = None) -> str:
    """The page of what `document` wrote."""
    if stored["kind"] == "retraining":
        return render_retraining(RetrainingArtifacts(**stored["run"]), facts)
    return render(RunArtifacts(**stored["run"]), facts)
