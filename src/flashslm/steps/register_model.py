"""register_model: the promoted candidate becomes a registry version and the champion; the old one stays `previous`."""

from typing import Any

from flashslm.platform import registry
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Register the exported object (verified by sha256) and move the alias, unless the champion changed meanwhile."""
    name = context.config.gate.model_name
    verdict = context.read_json("verdict", "verdict.json")
    exported = context.manifest("exported")
    former = verdict["champion_version"]
    current = registry.champion(context.settings, name)
    if current and current.manifest.sha256 == exported.sha256:  # a retry of this step after it was killed
        return _result(name, current.version, former)
    version = registry.register(
        context.settings,
        name,
        exported,
        run_id=context.settings.parent_run_id or context.task.run_id,
        facts=verdict["candidate"],
        tags={"recipe": context.config.name, "architecture": exported.metadata["operators"]},
    )
    registry.promote(context.settings, name, version, expected_champion=former)
    return _result(name, version, former)


def _result(name: str, version: str, former: str) -> dict[str, Any]:
    summary = f"{name} version {version} is champion" + (f"; version {former} is previous" if former else "")
    return {"model_version": version, "summary": summary}
