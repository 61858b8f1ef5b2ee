"""register_model: the promoted candidate becomes a registry version and the champion; the old one stays `previous`."""

from typing import Any

from flashslm.infra.checkout import commit
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import Lineage, ModelVersion
from flashslm.infra.registry.promotion import deliver_pending, is_heard
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Register the exported object (verified by sha256), move the alias unless the champion changed meanwhile, and call
    the recipe's hook, which cannot undo that.
    """
    name = context.config.gate.model_name
    verdict = context.read_json("verdict", "verdict.json")
    exported = context.manifest("exported")
    former = verdict["champion_version"]
    current = model_registry.champion(context.settings, name)
    hook = context.config.gate.promotion_hook
    if current and current.manifest.sha256 == exported.sha256:  # a retry of this step after it was killed
        return _result(current, former, deliver_pending(context.settings, name, hook) or current.hook)
    version = model_registry.register(
        context.settings,
        name,
        exported,
        run_id=context.settings.parent_run_id or context.mlflow_run.run_id,
        facts=verdict["candidate"],
        tags={"recipe": context.config.name, "architecture": exported.metadata["operators"]},
        lineage=lineage(context, verdict, current),
    )
    model_registry.promote(context.settings, name, version, expected_champion=former, notify=is_heard(hook))
    outcome = deliver_pending(context.settings, name, hook)
    return _result(model_registry.find(context.settings, name, version), former, outcome)


def lineage(context: StepContext, verdict: dict[str, Any], current: ModelVersion | None) -> Lineage:
    """What the version was made of; trained from the champion it has the champion's architecture, so its latencies."""
    metadata, parent = context.manifest("exported").metadata, verdict["parent"]
    known = current.lineage.latency_ms if current and parent == current.version else {}
    evaluated = context.manifest("evaluation").metadata
    return Lineage(
        evaluation=context.manifest("evaluation"),
        data=(context.manifest("dataset"),),
        config_digest=context.parameters.get("config_digest", ""),
        code_digest=context.parameters.get("code_digest", ""),
        commit=commit() or "",
        image=context.parameters.get("image", ""),
        metrics={key: value for key, value in evaluated.items() if isinstance(value, int | float)},
        latency_ms=known | {metadata["device"]: metadata["latency_ms"]},
        parent=parent,
    )


def _result(champion: ModelVersion, former: str, hook: str) -> dict[str, Any]:
    summary = f"{champion.name} version {champion.version} is champion"
    summary += f"; version {former} is previous" if former else ""
    summary += f"; hook {hook}" if hook else ""
    return {"model_version": champion.version, "hook": hook, "summary": summary}
