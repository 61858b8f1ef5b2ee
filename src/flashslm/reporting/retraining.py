"""The report of a retraining run as one self-contained HTML file: data, both models side by side, decision."""

from dataclasses import asdict, dataclass
from typing import Any

from flashslm.reporting.html import headline, page
from flashslm.reporting.run_facts import RunFacts


@dataclass(frozen=True)
class RetrainingArtifacts:
    """The documents of a run; without a challenger `evaluation`, `export`, `training` and `verdict` are None."""

    name: str
    decision: str
    reasons: list[str]
    champion: dict[str, Any]
    data: dict[str, Any]  # the new data set's summary, or its counts where it was not enough
    lineage: list[dict[str, Any]]  # name, uri, sha256, bytes of every artifact
    evaluation: dict[str, Any] | None = None
    export: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON: `document.render` makes the page of it again when the run is over."""
        return asdict(self)


def render_retraining(run: RetrainingArtifacts, facts: RunFacts | None = None) -> str:
    """The report; `facts` are known only after the run."""
    return page(
        "retraining.html.j2",
        run=run,
        facts=facts,
        headline=headline(run.decision, facts),
        rows=_rows(run.evaluation),
        samples=_samples(run.evaluation),
    )


def _samples(evaluation: dict[str, Any] | None) -> dict[str, list[dict[str, str]]]:
    """What both models say on the new data, by side."""
    new = evaluation["results"].get(NEW_DATA, {}) if evaluation else {}
    return {side: found["samples"] for side, found in new.items() if found.get("samples")}


NEW_DATA = "new data"


LABELS = {
    "test/perplexity": "perplexity per token",
    "test/loss_nats": "loss, nats per token",
    "test/bits_per_byte": "bits per byte",
}


def _rows(evaluation: dict[str, Any] | None) -> list[dict[str, str]]:
    """Every metric of both models by data set, in the order in which the gate compares them."""
    if evaluation is None:
        return []
    rows = []
    for data in dict.fromkeys(c["data"] for c in evaluation["comparisons"] if c["data"] in evaluation["results"]):
        champion, challenger = (evaluation["results"][data][side] for side in ("champion", "challenger"))
        name = f"{data} ({champion['test/tokens']:,} tokens)"
        rows += [_row(name, label, champion[key], challenger[key], share=False) for key, label in LABELS.items()]
        for before, after in zip(champion["needle"], challenger["needle"], strict=True):
            needle = f"needle in {before['length']} tokens, {before['samples']} samples"
            rows.append(_row(name, f"{needle}: exact match", before["accuracy"], after["accuracy"]))
            first = f"{needle}: ranked first (chance {before['chance']:.3f})"
            rows.append(_row(name, first, before["ranked_first"], after["ranked_first"]))
        for task, metrics in champion["tasks"].items():
            after, shown = challenger["tasks"][task], [key for key in metrics if key != "samples"]
            rows += [_row(f"{task} ({metrics['samples']:,.0f} samples)", k, metrics[k], after[k]) for k in shown]
    return rows


def _row(data: str, metric: str, champion: float, challenger: float, *, share: bool = True) -> dict[str, str]:
    difference = f"{challenger - champion:+.4f}" + (
        "" if share or not champion else f" ({challenger / champion - 1:+.1%})"
    )
    numbers = {"champion": f"{champion:.4f}", "challenger": f"{challenger:.4f}", "difference": difference}
    return {"data": data, "metric": metric} | numbers
