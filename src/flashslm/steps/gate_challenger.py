"""gate_challenger: compare the retrained model with the recipe's limits and with the champion on every evaluation."""

from typing import Any

from flashslm.infra.registry.gate import Comparison, MeasuredModel, decide_retraining
from flashslm.steps.context import StepContext
from flashslm.steps.gate import publish_verdict


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `verdict`: verdict.json; the result's `decision` is "promote" or "hold"."""
    champion = context.read_json("champion", "champion.json")
    candidate = MeasuredModel.of(context.manifest("exported"), context.manifest("evaluation"))
    compared = context.read_json("evaluation", "evaluation.json")["comparisons"]
    verdict = decide_retraining(
        candidate,
        MeasuredModel.model_validate(champion["facts"]),
        champion["version"],
        [Comparison.model_validate(entry) for entry in compared],
        context.config.gate,
        former=champion["former_sha256"],
    )
    return publish_verdict(context, verdict)
