"""Who hears of a promotion or a roll-back, whoever makes it: the hook; and the version that keeps the outcome."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flashslm.config import PromotionHook
from flashslm.infra.registry import champion_record, model_registry
from flashslm.infra.registry.champion_record import Event, Notification
from flashslm.infra.registry.hook import call_hook
from flashslm.infra.registry.model_registry import ModelVersion, RegistryError
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking.mlflow_client import MlflowError

__all__ = ["Event", "deliver_pending", "is_heard", "refuse_silence"]

_log = logging.getLogger(__name__)


def is_heard(hook: PromotionHook) -> bool:
    """Whether there is a hook."""
    return bool(hook.command or hook.url)


def deliver_pending(
    settings: Settings, name: str, hook: PromotionHook, environ: Mapping[str, str] | None = None
) -> str:
    """Call the hook for every change of a model's champion that it has not received, oldest first.

    Returns what came of the last call, "" where nothing was pending or there is no hook. A notification is forgotten
    after it has been received, so one whose sender is killed is sent again. After one that failed the later ones wait.
    """
    store, outcome = ObjectStore(settings), ""
    record, _ = champion_record.read(store, name) if is_heard(hook) else (None, "")
    for notification in record.pending if record else ():
        version = _version(settings, name, notification)
        if version is not None:
            outcome = call_hook(hook, _message(version, notification), environ, delivery=notification.delivery)
            with suppress(MlflowError):  # it keeps the outcome for people: nothing depends on it
                model_registry.record_hook(settings, name, version.version, outcome)
            if outcome.startswith("failed"):
                break
        champion_record.change(store, name, lambda found, done=notification: found.delivered(done))  # type: ignore[misc]
    return outcome


def _version(settings: Settings, name: str, notification: Notification) -> ModelVersion | None:
    try:
        return model_registry.find(settings, name, notification.version)
    except RegistryError as error:
        _log.warning("the hook cannot hear of a %s: %s", notification.event, error)
        return None


def _message(version: ModelVersion, notification: Notification) -> dict[str, Any]:
    return {
        "event": notification.event,
        "model": version.name,
        "version": version.version,
        "previous_version": notification.previous_version,
        "uri": version.uri,
        "sha256": version.manifest.sha256,
        "facts": version.facts,
        "lineage": version.lineage.model_dump(mode="json", exclude={"data"}),
    }


def refuse_silence(settings: Settings, name: str) -> None:
    """Raise RegistryError if a promotion of the model has called a hook: its receiver must hear of the next one."""
    notified = next((v for v in model_registry.list_versions(settings, name) if v.hook), None)
    if notified:
        raise RegistryError(
            f"promotions of '{name}' call a hook (version {notified.version}: {notified.hook}): give --config with the "
            "recipe that names it, or --no-hook to promote without calling it"
        )
