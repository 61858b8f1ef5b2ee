"""fetch_champion: what the registry's champion is, what it has seen, and its exported model."""

import json
import tempfile
from typing import Any

from flashslm.export.hf_config import architecture_from_config
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import PREVIOUS, ModelVersion, RegistryError
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext
from flashslm.steps.recipe_checks import beyond_positions

CONFIG = "huggingface/config.json"  # of the registered object


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `champion` (champion.json: version, facts, lineage, data) and `deployed`, the object that is registered.

    Raises RegistryError where there is no champion, or where what it has seen is not known, and ValueError where the
    recipe's texts are too long for it.
    """
    name = context.config.gate.model_name
    champion = model_registry.champion(context.settings, name)
    if champion is None:
        raise RegistryError(
            f"model '{name}' has no champion to train on: run design_and_train with the same gate.model_name, or "
            "`flashslm models promote` a version"
        )
    _refuse_longer_texts(context, champion)
    data = model_registry.seen_data(context.settings, champion)
    previous = [v for v in model_registry.list_versions(context.settings, name) if PREVIOUS in v.aliases]
    facts = {
        "name": name,
        "version": champion.version,
        "facts": champion.facts,
        "lineage": champion.lineage.model_dump(mode="json"),
        "data": [manifest.model_dump(mode="json") for manifest in data],
        "former_sha256": previous[0].manifest.sha256 if previous else "",
    }
    context.publish_json("champion", {"champion.json": facts}, {"version": champion.version, "name": name})
    context.outputs["deployed"] = champion.manifest
    return {
        "champion_version": champion.version,
        "seen_datasets": len(data),
        "summary": f"{name} version {champion.version}, trained on {len(data)} data set(s)",
    }


def _refuse_longer_texts(context: StepContext, champion: ModelVersion) -> None:
    with tempfile.TemporaryDirectory(prefix="flashslm-champion-") as directory:
        file = context.store.get_part(champion.manifest, (CONFIG,), directory) / CONFIG
        architecture = architecture_from_config(json.loads(file.read_text(encoding="utf-8")))
    if problems := beyond_positions(architecture, context.config):
        raise ValueError(
            f"champion '{champion.name}' version {champion.version} cannot be retrained by this recipe: "
            f"{'; '.join(problems)}"
        )


def champions_data(context: StepContext) -> list[Manifest]:
    """The data sets of a step's input `champion`, oldest first."""
    return [Manifest.model_validate(entry) for entry in context.read_json("champion", "champion.json")["data"]]
