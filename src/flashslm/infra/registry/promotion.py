"""Who hears of a promotion or a roll-back, whoever makes it: the hook; and the version that keeps the outcome."""

from typing import Literal

from flashslm.config import PromotionHook
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.hook import call_hook
from flashslm.infra.registry.model_registry import ModelVersion, RegistryError
from flashslm.infra.settings import Settings

Event = Literal["promotion", "rollback"]


def announce(
    settings: Settings, hook: PromotionHook, champion: ModelVersion, former: str, event: Event = "promotion"
) -> str:
    """Tell the hook that `champion` replaced version `former`; "" where there is no hook. It cannot undo that."""
    message = {
        "event": event,
        "model": champion.name,
        "version": champion.version,
        "previous_version": former,
        "uri": champion.uri,
        "sha256": champion.manifest.sha256,
        "facts": champion.facts,
        "lineage": champion.lineage.model_dump(mode="json", exclude={"data"}),
    }
    outcome = call_hook(hook, message)
    if outcome:
        model_registry.record_hook(settings, champion.name, champion.version, outcome)
    return outcome


def refuse_silence(settings: Settings, name: str) -> None:
    """Raise RegistryError if a promotion of the model has called a hook: whoever it told must hear of the next one."""
    told = next((v for v in model_registry.list_versions(settings, name) if v.hook), None)
    if told:
        raise RegistryError(
            f"promotions of '{name}' call a hook (version {told.version}: {told.hook}): give --config with the recipe "
            "that names it, or --no-hook if nobody is to hear of this one"
        )
