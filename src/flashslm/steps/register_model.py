"""register_model: the promoted candidate becomes a registry version and the champion; the old one stays `previous`."""

from typing import Any

from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import Lineage, ModelVersion
from flashslm.infra.registry.promotion import announce
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
    if current and current.manifest.sha256 == exported.sha256:  # a retry of this step after it was killed
        return _result(current, former, current.hook or _call_hook(context, current, former))
    version = model_registry.register(
        context.settings,
        name,
        exported,
        run_id=context.settings.parent_run_id or context.mlflow_run.run_id,
        facts=verdict["candidate"],
        tags={"recipe": context.config.name, "architecture": exported.metadata["operators"]},
        lineage=lineage(context, verdict, current),
    )
    model_registry.promote(context.settings, name, version, expected_champion=former)
    champion = model_registry.find(context.settings, name, version)
    return _result(champion, former, _call_hook(context, champion, former))


def lineage(context: StepContext, verdict: dict[str, Any], current: ModelVersion | None) -> Lineage:
    """What the version was made of; trained from the champion it has the champion's architecture, so its latencies."""
    metadata, parent = context.manifest("exported").metadata, verdict["parent"]
    known = current.lineage.latency_ms if current and parent == current.version else {}
    evaluated = context.manifest("evaluation").metadata
    return Lineage(
        data=(context.manifest("dataset"),),
        config_digest=context.parameters.get("config_digest", ""),
        code_digest=context.parameters.get("code_digest", ""),
        image=context.parameters.get("image", ""),
        metrics={key: value for key, value in evaluated.items() if isinstance(value, int | float)},
        latency_ms=known | {metadata["device"]: metadata["latency_ms"]},
        parent=parent,
    )


def _call_hook(context: StepContext, champion: ModelVersion, former: str) -> str:
    return announce(context.settings, context.config.gate.promotion_hook, champion, former)


def _result(champion: ModelVersion, former: str, hook: str) -> dict[str, Any]:
    summary = f"{champion.name} version {champion.version} is champion"
    summary += f"; version {former} is previous" if former else ""
    summary += f"; hook {hook}" if hook else ""
    return {"model_version": champion.version, "hook": hook, "summary": summary}
