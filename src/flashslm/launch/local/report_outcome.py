"""What came of a gate's "promote", in the report beside it: the step `report` does not wait for the registration."""

import html
import re
from pathlib import Path

from flashslm.infra.state_files import write_whole
from flashslm.launch.local.launcher import LocalResult
from flashslm.launch.progress import StepRecord

NOT_REGISTERED = "promote, but the model was not registered"
_HEADLINE = re.compile(r"<!--promotion-->.*?<!--/promotion-->", re.DOTALL)  # as reporting's templates write it


def carried_out(decision: str, local: LocalResult) -> str:
    """What came of the gate's decision: a promotion is one when the model is registered."""
    return decision if decision != "promote" or _succeeded(_registration(local)) else NOT_REGISTERED


def say_what_happened(report: Path, local: LocalResult) -> None:
    """Replace the headline of a promotion in a report by what the step `register_model` came to."""
    step = _registration(local)
    if _succeeded(step):
        kind, text = "promote", f"Promoted: {step.summary if step else ''}"
    else:
        why = step.summary if step else "the run ended before the step register_model"
        kind, text = "failed", f"Not promoted, though the gate's checks passed: the model was not registered: {why}"
    headline = f'<div class="verdict {kind}"><b>{html.escape(text)}</b>'
    page = report.read_text(encoding="utf-8")
    write_whole(report, _HEADLINE.sub(lambda _: headline, page))


def _registration(local: LocalResult) -> StepRecord | None:
    return next((step for step in local.steps if step.name == "register_model"), None)


def _succeeded(step: StepRecord | None) -> bool:
    return step is not None and step.state == "SUCCESS"
