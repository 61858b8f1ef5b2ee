"""Model versions in MLflow's registry: register, promote, roll back.

A version's source is the content-addressed tree in S3; nothing is copied. Aliases: `challenger` (registered last),
`champion` (deployed), `previous` (the champion before it). The last two follow the model's record in the store
(`champion_record`), which alone decides; registrations are serialised by a lease.
What a version was made of and measured at is in its tags, so a decision needs no model and no run.
"""

import json
import logging
import re
from contextlib import suppress
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from flashslm.infra.registry import champion_record, long_tags, version_text
from flashslm.infra.registry.champion_record import ChampionRecord
from flashslm.infra.registry.logged_model import log_model
from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import ObjectCorrupt
from flashslm.infra.storage.lease import hold
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking.mlflow_client import MlflowError, TrackingClient

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
IMPORTED: Literal["imported"] = "imported"
_MANIFEST_TAG = "flashslm.manifest"
_FACT_PREFIX = "fact."
_LINEAGE_PREFIX = "lineage."
_HOOK_TAG = "promotion_hook"
_FOLLOWS = 10
_log = logging.getLogger(__name__)


class RegistryError(RuntimeError):
    """The registry cannot do what was asked."""


class PromotionConflict(RegistryError):
    """The champion is not the one the decision was made against."""


class Lineage(BaseModel):
    """What a version was made of and measured at; an empty text where it is not known."""

    model_config = ConfigDict(frozen=True)

    evaluation: Manifest | None = None  # by which later versions are compared with this one item by item
    data: tuple[Manifest, ...] = ()  # trained on by this version; `seen_data` adds its ancestors'
    source: Literal["", "imported"] = ""  # imported: trained elsewhere, and `data` stand for what it was trained on
    config_digest: str = ""
    code_digest: str = ""
    commit: str = ""  # of the checkout that trained it; an image has none
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
    store, client = ObjectStore(settings), TrackingClient(settings)
    store.verify_tree(manifest)
    _ensure_model(client, name)
    every = dict(tags or {}) | version_text.tagged(_FACT_PREFIX, facts) | {_MANIFEST_TAG: manifest.model_dump_json()}
    if lineage:
        every |= version_text.tagged(_LINEAGE_PREFIX, lineage.model_dump(mode="json"))
    described = version_text.description(manifest, facts, lineage.commit if lineage else "")
    every = {key: long_tags.within_bounds(store, value) for key, value in every.items()}
    with hold(store, _lease_key(name)) as lease:
        same = [v for v in list_versions(settings, name) if v.manifest.sha256 == manifest.sha256]
        imported = lineage is not None and lineage.source == IMPORTED
        known = [v for v in same if v.run_id == run_id or (imported and v.lineage.source == IMPORTED)]
        lease.check()
        if known:
            version = known[0].version
        else:
            model_id = log_model(client, name, manifest, run_id, facts)
            version = _create(client, name, manifest, run_id, every, described, model_id)
        if not known or CHAMPION not in known[0].aliases:
            _set_alias(client, name, CHALLENGER, version)
    return version


def promote(settings: Settings, name: str, version: str, expected_champion: str, notify: bool = False) -> str:
    """Make a version champion if the champion still is `expected_champion` ("" = none); the old one becomes `previous`.

    Returns the version. Compare-and-set: raises PromotionConflict if another champion was made since the decision.
    Repeating a promotion that succeeded is harmless. With `notify` a notification is pending from the same moment on.
    """
    store = ObjectStore(settings)
    wanted = find(settings, name, version)
    version = wanted.version
    store.verify_tree(wanted.manifest)
    while True:
        state = _state(settings, name)
        if state.record.champion not in (expected_champion, version):
            raise PromotionConflict(
                f"champion of '{name}' is version {state.record.champion or 'none'}, "
                f"expected {expected_champion or 'none'}: compare version {version} with it and decide again"
            )
        if state.record.champion == version:
            break
        changed = state.record.changed("promotion", version, wanted.manifest.sha256, notify)
        if champion_record.put(store, name, changed, state.etag):
            break
    follow(settings, name)
    return version


def rollback(settings: Settings, name: str, notify: bool = False) -> str:
    """Make `previous` champion again and return its version. Repeated, it changes nothing: `promote` undoes it."""
    store = ObjectStore(settings)
    while True:
        state = _state(settings, name)
        current, before = state.record.champion, state.record.previous
        if state.record.event == "rollback":
            return current
        if not before or before == current:
            raise RegistryError(f"model '{name}' has no earlier champion: there is nothing to roll back to")
        wanted = find(settings, name, before)
        store.verify_tree(wanted.manifest)
        changed = state.record.changed("rollback", before, wanted.manifest.sha256, notify)
        if champion_record.put(store, name, changed, state.etag):
            break
    follow(settings, name)
    return before


def announce_again(settings: Settings, name: str) -> None:
    """Make a notification of the champion pending, unless one is: for a hook that is to hear of it once more."""
    state = _state(settings, name)
    if state.is_from_aliases and state.record.champion:
        champion_record.put(ObjectStore(settings), name, state.record, state.etag)
    champion_record.change(ObjectStore(settings), name, lambda record: record.announced_again())


def follow(settings: Settings, name: str) -> None:
    """Set MLflow's aliases as the record has them, which alone decides."""
    store, client = ObjectStore(settings), TrackingClient(settings)
    for _ in range(_FOLLOWS):
        record, etag = champion_record.read(store, name)
        if record is None:
            return
        there = _aliases(client, name)
        for alias, version in ((CHAMPION, record.champion), (PREVIOUS, record.previous)):
            if version and there.get(alias) != version:
                _set_alias(client, name, alias, version)
        if there.get(CHALLENGER, "") == record.champion != "":
            client.delete_registered_model_alias(name, CHALLENGER)
        if champion_record.read(store, name)[1] == etag:  # it has not changed meanwhile
            return


class _State(NamedTuple):
    """The record, its etag ("" = there is no object), and the versions, whose aliases are the record's."""

    record: ChampionRecord
    etag: str
    versions: list[ModelVersion]
    is_from_aliases: bool


def _state(settings: Settings, name: str) -> _State:
    """The record where there is one of these versions, else what MLflow's aliases say."""
    client, store = TrackingClient(settings), ObjectStore(settings)
    aliases, versions = _aliases(client, name), _versions(client, store, name)
    stored, etag = champion_record.read(store, name)
    record = stored
    known = {v.version: v.manifest.sha256 for v in versions}
    is_own = record is not None and (not record.champion or known.get(record.champion) == record.champion_sha256)
    if record is None or not is_own:
        champion_version = aliases.get(CHAMPION, "")
        record = ChampionRecord(
            champion=champion_version,
            champion_sha256=known.get(champion_version, ""),
            previous=aliases.get(PREVIOUS, ""),
            pending=stored.pending if stored else (),
        )
    if stored and not is_own:
        _log.warning(
            "%s names version %s as champion, but '%s' has no version of this number and object (an older database?): "
            "MLflow's aliases count, champion %s, until the next promotion",
            champion_record.key_of(name),
            stored.champion,
            name,
            record.champion or "none",
        )
    meant = {CHAMPION: record.champion, PREVIOUS: record.previous, CHALLENGER: aliases.get(CHALLENGER, "")}
    if meant[CHALLENGER] == record.champion:
        meant[CHALLENGER] = ""
    if is_own and {alias: aliases.get(alias, "") for alias in meant} != meant:
        with suppress(MlflowError):  # a reader repairs what a killed promotion left
            follow(settings, name)
    named = {v.version: [alias for alias, version in meant.items() if version == v.version] for v in versions}
    others = {alias: version for alias, version in aliases.items() if alias not in meant}
    for v in versions:
        v.aliases = sorted([*named[v.version], *(alias for alias, version in others.items() if version == v.version)])
    return _State(record, etag, versions, not is_own)


def list_versions(settings: Settings, name: str) -> list[ModelVersion]:
    """All versions of a model that `register` made, newest first; none if there is no such model.

    One whose tags cannot be read is left out with a warning.
    """
    return _state(settings, name).versions


def _versions(client: TrackingClient, store: ObjectStore, name: str) -> list[ModelVersion]:
    parsed = []
    for entry in _entries(client, f"name = '{name}'"):
        if _MANIFEST_TAG in entry.tags:
            try:
                parsed.append(_parse(entry, store))
            except (ValueError, KeyError, TypeError, ObjectCorrupt) as error:
                why = " ".join(str(error).split())
                _log.warning("version %s of model '%s' cannot be read: %s", entry.version, name, why)
    return parsed


def list_models(settings: Settings) -> list[str]:
    """The names of the registered models, in alphabetical order."""
    found = TrackingClient(settings).all_pages("search_registered_models", max_results=200, order_by=["name ASC"])
    return [model.name for model in found]


def trees_needed(settings: Settings) -> set[str]:
    """The digest of every tree that any version of any model names, readable or not."""
    entries = _entries(TrackingClient(settings))
    return set(re.findall(r"[0-9a-f]{64}", json.dumps([[entry.source, entry.tags] for entry in entries])))


def _entries(client: TrackingClient, condition: str = "") -> list[Any]:
    """MLflow's versions, those of one model with the newest first."""
    newest = ["version_number DESC"]
    return client.all_pages("search_model_versions", filter_string=condition, max_results=200, order_by=newest)


def champion(settings: Settings, name: str) -> ModelVersion | None:
    """The champion, with the facts it was registered with; None if there is none.

    Raises RegistryError where the champion's tags cannot be read.
    """
    state = _state(settings, name)
    version = state.record.champion
    found = next((v for v in state.versions if v.version == version), None)
    if version and not found:
        raise _no_version(name, version)
    return found


def champion_version(settings: Settings, name: str) -> str:
    """The champion's version, "" if there is none."""
    return _state(settings, name).record.champion


def find(settings: Settings, name: str, version: str) -> ModelVersion:
    """The version of that number or alias; RegistryError if there is none."""
    for found in list_versions(settings, name):
        if version == found.version or version in found.aliases:
            return found
    raise _no_version(name, version)


def _no_version(name: str, version: str) -> RegistryError:
    return RegistryError(
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
                "what it has seen is unknown. Promote a version whose line is whole, or train again"
            )
        line.append(known[parent])
    for member in line:
        if not member.lineage.data:
            raise RegistryError(
                f"model '{version.name}' version {member.version} does not say what it was trained on: "
                "promote one that the pipeline registered, or train again with design_and_train"
            )
    return [manifest for member in reversed(line) for manifest in member.lineage.data]


def record_hook(settings: Settings, name: str, version: str, outcome: str) -> None:
    """Keep with a version what came of the hook of its promotion."""
    TrackingClient(settings).set_model_version_tag(name, version, _HOOK_TAG, outcome)


def _ensure_model(client: TrackingClient, name: str) -> None:
    try:
        client.create_registered_model(name, description=version_text.MODEL)
    except MlflowError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create(
    client: TrackingClient,
    name: str,
    manifest: Manifest,
    run_id: str,
    tags: dict[str, str],
    description: str,
    model_id: str | None,
) -> str:
    described: dict[str, Any] = {"description": description, "model_id": model_id}
    made = client.create_model_version(name, manifest.uri, run_id, tags, await_creation_for=0, **described)
    return str(made.version)


def _parse(entry: Any, store: ObjectStore) -> ModelVersion:
    tags = {key: long_tags.whole(store, value) for key, value in entry.tags.items()}
    return ModelVersion(
        name=entry.name,
        version=str(entry.version),
        run_id=entry.run_id or "",
        created_ms=int(entry.creation_timestamp),
        aliases=[],
        uri=entry.source,
        manifest=Manifest.model_validate_json(tags.pop(_MANIFEST_TAG)),
        facts=version_text.untagged(_FACT_PREFIX, tags),
        lineage=Lineage.model_validate(version_text.untagged(_LINEAGE_PREFIX, tags)),
        hook=tags.pop(_HOOK_TAG, ""),
        tags=tags,
    )


def _aliases(client: TrackingClient, name: str) -> dict[str, str]:
    """Alias -> version number."""
    try:
        model = client.get_registered_model(name)
    except MlflowError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: str(version) for alias, version in model.aliases.items()}


def _set_alias(client: TrackingClient, name: str, alias: str, version: str) -> None:
    """MLflow refuses the later of two writers that set one new alias at the same moment; the later then asks again."""
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowError as error:
        if "UNIQUE constraint" not in str(error) and "duplicate key" not in str(error):  # SQLite and PostgreSQL
            raise
        client.set_registered_model_alias(name, alias, version)


def _lease_key(name: str) -> str:
    return f"leases/registry/{quote(name, safe='')}.json"
