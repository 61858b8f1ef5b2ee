"""Model versions in MLflow's registry: register, promote, roll back.

A version's source is the content-addressed tree in S3; nothing is copied. Aliases: `challenger` (registered last),
`champion` (deployed), `previous` (the champion before it). Changes of a model's aliases are serialised by a lease.
What a version was made of and measured at is in its tags, so a decision needs no model and no run.
"""

import json
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from flashslm.infra.settings import Settings
from flashslm.infra.storage.lease import hold
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking.mlflow_api import MlflowApi, MlflowError

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
IMPORTED: Literal["imported"] = "imported"
_MANIFEST_TAG = "flashslm.manifest"
_FACT_PREFIX = "fact."
_LINEAGE_PREFIX = "lineage."
_HOOK_TAG = "promotion_hook"


class RegistryError(RuntimeError):
    """The registry cannot do what was asked."""


class PromotionConflict(RegistryError):
    """The champion is not the one the decision was made against."""


class Lineage(BaseModel):
    """What a version was made of and measured at; an empty text where it is not known."""

    model_config = ConfigDict(frozen=True)

    data: tuple[Manifest, ...] = ()  # trained on by this version; `seen_data` adds its ancestors'
    source: Literal["", "imported"] = ""  # imported: trained elsewhere, and `data` stand for what it was trained on
    config_digest: str = ""
    code_digest: str = ""
    image: str = ""  # that trained it on a cluster
    metrics: dict[str, float] = {}
    latency_ms: dict[str, float] = {}  # per decoded token, by the fingerprint id of the device
    parent: str = ""  # the version whose weights it was trained from


class ModelVersion(BaseModel):
    """One version; `facts` are what a gate compares, so that no model need be loaded."""

    name: str
    version: str
    run_id: str
    created_ms: int
    aliases: list[str]
    uri: str
    manifest: Manifest
    facts: dict[str, Any]
    lineage: Lineage
    hook: str  # what came of the hook of its promotion; "" = none was called
    tags: dict[str, str]


def register(
    settings: Settings,
    name: str,
    manifest: Manifest,
    run_id: str,
    facts: dict[str, Any],
    tags: dict[str, str] | None = None,
    lineage: Lineage | None = None,
) -> str:
    """Make a model version of a stored tree and alias it `challenger`; returns its number.

    `facts` are measurements and identities (numbers or strings) that a later gate compares with. The whole tree is
    read and its digests checked first (ObjectMissing, ObjectCorrupt). The same tree of the same run is registered
    once, so a retried step is harmless, and the same imported tree whatever run it comes from.
    """
    store, api = ObjectStore(settings), MlflowApi(settings)
    store.verify_tree(manifest)
    _ensure_model(api, name)
    every = dict(tags or {}) | _tagged(_FACT_PREFIX, facts) | {_MANIFEST_TAG: manifest.model_dump_json()}
    if lineage:
        every |= _tagged(_LINEAGE_PREFIX, lineage.model_dump(mode="json"))
    with hold(store, _lease_key(name)) as lease:
        same = [v for v in list_versions(settings, name) if v.manifest.sha256 == manifest.sha256]
        imported = lineage is not None and lineage.source == IMPORTED
        known = [v for v in same if v.run_id == run_id or (imported and v.lineage.source == IMPORTED)]
        lease.check()
        version = known[0].version if known else _create(api, name, manifest, run_id, every)
        if not known or CHAMPION not in known[0].aliases:
            _set_alias(api, name, CHALLENGER, version)
    return version


def promote(settings: Settings, name: str, version: str, expected_champion: str) -> str:
    """Make a version champion if the champion still is `expected_champion` ("" = none); the old one becomes `previous`.

    Returns the version. Compare-and-set: raises PromotionConflict if another champion was made since the decision.
    Repeating a promotion that succeeded is harmless.
    """
    ObjectStore(settings).verify_tree(find(settings, name, version).manifest)
    api = MlflowApi(settings)
    with hold(ObjectStore(settings), _lease_key(name)) as lease:
        current = _aliased(api, name, CHAMPION)
        if current not in (expected_champion, version):
            raise PromotionConflict(
                f"champion of '{name}' is version {current or 'none'}, expected {expected_champion or 'none'}: "
                f"compare version {version} with it and decide again"
            )
        lease.check()
        if current != version:
            if current:
                _set_alias(api, name, PREVIOUS, current)
            _set_alias(api, name, CHAMPION, version)
        if _aliased(api, name, CHALLENGER) == version:
            api.post("registered-models/alias", {"name": name, "alias": CHALLENGER}, method="DELETE")
    return version


def rollback(settings: Settings, name: str) -> str:
    """Swap champion and `previous`; a second roll-back undoes the first. Returns the champion's version."""
    api = MlflowApi(settings)
    with hold(ObjectStore(settings), _lease_key(name)) as lease:
        current, before = _aliased(api, name, CHAMPION), _aliased(api, name, PREVIOUS)
        if not before or before == current:
            raise RegistryError(f"model '{name}' has no earlier champion: there is nothing to roll back to")
        ObjectStore(settings).verify_tree(find(settings, name, before).manifest)
        lease.check()
        _set_alias(api, name, CHAMPION, before)
        _set_alias(api, name, PREVIOUS, current)
    return before


def list_versions(settings: Settings, name: str) -> list[ModelVersion]:
    """All versions of a model that `register` made, newest first; none if there is no such model."""
    api = MlflowApi(settings)
    aliases = _aliases(api, name)
    versions: list[dict[str, Any]] = []
    query = {"filter": f"name = '{name}'", "max_results": "200", "order_by": "version_number DESC"}
    while True:
        page = api.get("model-versions/search", **query)
        versions += page.get("model_versions", [])
        if not page.get("next_page_token"):
            break
        query["page_token"] = page["next_page_token"]
    return [_parse(entry, aliases) for entry in versions if _MANIFEST_TAG in _tags_of(entry)]


def list_models(settings: Settings) -> list[str]:
    """The names of the registered models: up to 200, in alphabetical order."""
    page = MlflowApi(settings).get("registered-models/search", max_results="200", order_by="name ASC")
    return [model["name"] for model in page.get("registered_models", [])]


def champion(settings: Settings, name: str) -> ModelVersion | None:
    """The champion, with the facts it was registered with; None if there is none."""
    version = _aliased(MlflowApi(settings), name, CHAMPION)
    return find(settings, name, version) if version else None


def find(settings: Settings, name: str, version: str) -> ModelVersion:
    """That version; RegistryError if there is none."""
    for found in list_versions(settings, name):
        if found.version == version:
            return found
    raise RegistryError(
        f"model '{name}' has no version {version} made by this pipeline: see `flashslm models list --name {name}`"
    )


def seen_data(settings: Settings, version: ModelVersion) -> list[Manifest]:
    """Every data set that a version and its ancestors were trained on, oldest first.

    Raises RegistryError where a version of that line is gone or does not say what it was trained on.
    """
    known = {found.version: found for found in list_versions(settings, version.name)}
    line = [version]
    while parent := line[-1].lineage.parent:
        if parent not in known:
            raise RegistryError(
                f"model '{version.name}' version {line[-1].version} was trained from version {parent}, which is gone: "
                "what it has seen is unknown. Promote a version whose line is whole, or train anew"
            )
        line.append(known[parent])
    for member in line:
        if not member.lineage.data:
            raise RegistryError(
                f"model '{version.name}' version {member.version} does not say what it was trained on: "
                "promote one that the pipeline registered, or train anew with design_and_train"
            )
    return [manifest for member in reversed(line) for manifest in member.lineage.data]


def record_hook(settings: Settings, name: str, version: str, outcome: str) -> None:
    """Keep with a version what came of the hook of its promotion."""
    body = {"name": name, "version": version, "key": _HOOK_TAG, "value": outcome}
    MlflowApi(settings).post("model-versions/set-tag", body)


def _ensure_model(api: MlflowApi, name: str) -> None:
    try:
        api.post("registered-models/create", {"name": name})
    except MlflowError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create(api: MlflowApi, name: str, manifest: Manifest, run_id: str, tags: dict[str, str]) -> str:
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    body = {"name": name, "source": manifest.uri, "run_id": run_id, "tags": listed}
    return str(api.post("model-versions/create", body, repeatable=False)["model_version"]["version"])


def _tagged(prefix: str, values: dict[str, Any]) -> dict[str, str]:
    return {prefix + key: json.dumps(value) for key, value in values.items()}


def _untagged(prefix: str, tags: dict[str, str]) -> dict[str, Any]:
    return {key.removeprefix(prefix): json.loads(tags.pop(key)) for key in list(tags) if key.startswith(prefix)}


def _parse(entry: dict[str, Any], aliases: dict[str, str]) -> ModelVersion:
    tags = _tags_of(entry)
    return ModelVersion(
        name=entry["name"],
        version=str(entry["version"]),
        run_id=entry.get("run_id", ""),
        created_ms=int(entry["creation_timestamp"]),
        aliases=sorted(alias for alias, version in aliases.items() if version == str(entry["version"])),
        uri=entry["source"],
        manifest=Manifest.model_validate_json(tags.pop(_MANIFEST_TAG)),
        facts=_untagged(_FACT_PREFIX, tags),
        lineage=Lineage.model_validate(_untagged(_LINEAGE_PREFIX, tags)),
        hook=tags.pop(_HOOK_TAG, ""),
        tags=tags,
    )


def _tags_of(entry: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in entry.get("tags", [])}


def _aliases(api: MlflowApi, name: str) -> dict[str, str]:
    """Alias -> version number."""
    try:
        model = api.get("registered-models/get", name=name)["registered_model"]
    except MlflowError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {entry["alias"]: str(entry["version"]) for entry in model.get("aliases", [])}


def _aliased(api: MlflowApi, name: str, alias: str) -> str:
    return _aliases(api, name).get(alias, "")


def _set_alias(api: MlflowApi, name: str, alias: str, version: str) -> None:
    api.post("registered-models/alias", {"name": name, "alias": alias, "version": version})


def _lease_key(name: str) -> str:
    return f"leases/registry/{quote(name, safe='')}.json"
