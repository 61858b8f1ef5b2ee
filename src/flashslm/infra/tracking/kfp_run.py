"""The MLflow run of a KFP run: one parent of all its pods' runs, made by whichever pod comes first.

A pod knows its KFP run by a label, not by an argument, which would be part of its cache key. The parent's id is an
object in the store, and a lease there (conditional puts) decides who makes it. Where KFP's own plug-in for MLflow has
made a run for the KFP run, that is the parent: both carry the tag `kfp.pipeline_run_id`.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from flashslm.infra.kfp_facts import RUN_TAG, KfpFacts, facts_of, recipe_of
from flashslm.infra.settings import Settings
from flashslm.infra.storage.lease import hold
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import HIDDEN, MlflowUnavailable, TrackingClient, hidden_tag
from flashslm.infra.tracking.spool import NOTE_TAG, PARENT_TAG

OURS_TAG = f"{HIDDEN}pipeline_run"  # of a parent that a pod made
STEP_TAG = f"{HIDDEN}kfp_run_id"  # of each step, so that one without a parent (MLflow was away) gets it in the end
_LEASE_S = 120.0
_log = logging.getLogger(__name__)


class ParentRun(NamedTuple):
    """The MLflow run of a KFP run, the experiment that it is in, by name, and whether a pod of ours made it."""

    run_id: str
    experiment: str
    is_ours: bool


def joined(settings: Settings, store: ObjectStore) -> Settings:
    """The settings of a pod of a KFP run: with the parent run and its experiment.

    While MLflow is away it cannot be made: the step's run carries the tag STEP_TAG and is nested when the run ends.
    """
    try:
        parent = parent_run(settings, store)
        _log.info("MLflow: %s", TrackingClient(settings).run_url(parent.run_id))
    except MlflowUnavailable as error:
        _log.warning("%s; this step's run is put below its KFP run's when that ends", error)
        return settings.model_copy(update={"experiment": facts_of(settings.kfp_run_id).recipe or settings.experiment})
    return settings.model_copy(update={"parent_run_id": parent.run_id, "experiment": parent.experiment})


def parent_run(settings: Settings, store: ObjectStore) -> ParentRun:
    """The parent of a KFP run's steps, made if there is none yet. Raises MlflowError, StoreError."""
    key = f"mlflow-runs/{settings.kfp_run_id}.json"
    if found := store.get_json(key):
        return ParentRun(**found[0])
    with hold(store, f"mlflow-runs/{settings.kfp_run_id}.lease.json", ttl_s=_LEASE_S, wait_s=2 * _LEASE_S):
        if found := store.get_json(key):
            return ParentRun(**found[0])
        facts = facts_of(settings.kfp_run_id)
        parent = _known_parent(settings) or _new_parent(settings, facts)
        settings = settings.model_copy(update={"experiment": parent.experiment})
        run = mlflow_runs.run_of(settings, parent.run_id)
        run.set_tags(facts.tags | {NOTE_TAG: heading(facts.name, facts.tags)})
        if recipe := recipe_of(facts.parameters, store):
            run.log_recipe(recipe)
        store.put_json(key, parent._asdict())
    return parent


def _known_parent(settings: Settings) -> ParentRun | None:
    """The run that KFP's plug-in has made, or a pod that did not come to note it."""
    client = TrackingClient(settings)
    experiments = {e.experiment_id: e.name for e in client.all_pages("search_experiments")}
    found = client.find_runs(f"tags.{RUN_TAG} = '{settings.kfp_run_id}'", list(experiments))
    roots = [run for run in found if PARENT_TAG not in run.data.tags]
    if not roots:
        return None
    oldest = roots[-1]
    return ParentRun(oldest.info.run_id, experiments[oldest.info.experiment_id], bool(hidden_tag(oldest, OURS_TAG)))


def _new_parent(settings: Settings, facts: KfpFacts) -> ParentRun:
    experiment = facts.recipe or settings.experiment
    client = TrackingClient(settings.model_copy(update={"experiment": experiment}))
    tags = mlflow_runs.origin() | {RUN_TAG: settings.kfp_run_id, OURS_TAG: "true"}
    run = client.create_run(client.experiment_id, facts.started_ms, tags, facts.name)
    return ParentRun(str(run.info.run_id), experiment, is_ours=True)


def heading(name: str, tags: Mapping[str, str]) -> str:
    """A KFP run in a sentence, with its page; `tags` are those of its facts."""
    url, recipe = tags.get("kfp.pipeline_run_url", ""), tags.get("recipe", "")
    where = f"[`{name}`]({url})" if url else f"`{name}`"
    return f"KFP run {where}" + (f" of recipe `{recipe}`" if recipe else "")


def record_cached_steps(settings: Settings, parent: ParentRun, cached: dict[str, str]) -> None:
    """Make a run for each step (name of its run -> step) that came from the cache, unless there is one."""
    client = TrackingClient(settings)
    known = {run.info.run_name for run in client.find_runs(f"tags.{PARENT_TAG} = '{parent.run_id}'")}
    for name, step in cached.items():
        if name not in known:
            tags = {"step": step, "cached": "true", PARENT_TAG: parent.run_id, STEP_TAG: settings.kfp_run_id}
            run_id = mlflow_runs.start_parent_run(settings, name, tags)
            client.set_terminated(run_id, "FINISHED")


def correct_decision(settings: Settings, parent: ParentRun, said: str, happened: str) -> None:
    """Replace the decision on the parent where something else came of it."""
    client = TrackingClient(settings)
    if client.get_run(parent.run_id).data.tags.get("decision") == said:
        client.set_tag(parent.run_id, "decision", happened)


def end(settings: Settings, parent: ParentRun, status: mlflow_runs.Status) -> None:
    """End the parent. Steps (and their trials) that are RUNNING are of pods that were killed; a step without a parent
    was begun while MLflow was away. Raises MlflowError.
    """
    client = TrackingClient(settings)
    experiments = client.experiment_ids()
    for run in client.find_runs(f"tags.{STEP_TAG} = '{settings.kfp_run_id}'", experiments):
        if PARENT_TAG not in run.data.tags:
            client.set_tag(run.info.run_id, PARENT_TAG, parent.run_id)
        if run.info.status == "RUNNING":
            for trial in client.find_runs(f"tags.{PARENT_TAG} = '{run.info.run_id}'", experiments):
                _end_as_killed(client, trial)
            _end_as_killed(client, run)
    client.set_terminated(parent.run_id, status)


def running_parents(settings: Settings) -> set[str]:
    """The KFP runs whose parents, made by pods, are RUNNING."""
    client = TrackingClient(settings)
    condition = f"attributes.status = 'RUNNING' and tags.{OURS_TAG} = 'true'"
    return {run.data.tags[RUN_TAG] for run in client.find_runs(condition, client.experiment_ids())}


def _end_as_killed(client: TrackingClient, run: Any) -> None:
    if run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, "KILLED")
