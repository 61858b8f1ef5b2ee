"""Schedules on a cluster: KFP's recurring runs, of a pipeline's latest version, one at a time, without catching up."""

import re
from typing import Any

from flashslm.config import RunConfig
from flashslm.launch.kfp.api import NotFound
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.cluster_pass import ClusterPackage, for_cluster
from flashslm.launch.kfp.submit import stored_arguments
from flashslm.launch.parity_lint import Compiled
from flashslm.launch.processes import LaunchError
from flashslm.launch.schedule.cron import Cron, CronError

# KFP puts the time in where its version knows the macro; nothing that is cached may depend on it (_check_fresh).
_SOURCE = "[[ScheduledTime]]"
_ZONE = re.compile(r" in ([A-Za-z_/+-]+[0-9]*)$")


def create(client: KfpClient, name: str, config: RunConfig, pipeline: str, cron: Cron, experiment: str = "") -> Any:
    """Make a V2beta1RecurringRun, or return the one of the same name and settings: it takes the version published here.

    Raises LaunchError where the name has other settings, where the installation's clock is in another zone, or where
    the pipeline would read its data only once.
    """
    import kfp_server_api as api

    _check_zone(cron, config.platform.cron_time_zone)
    package = for_cluster(pipeline, config.platform)
    _check_fresh(package)
    version = client.publish(package)
    wanted = api.V2beta1RecurringRun(
        display_name=name,
        description=f"{pipeline} with recipe {config.name}, {cron.six_fields} in {cron.zone.key}",
        experiment_id=client.experiment(experiment or config.name).experiment_id,
        # without a version: each run takes the latest
        pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline_id=version.pipeline_id),
        runtime_config=api.V2beta1RuntimeConfig(parameters=stored_arguments(package, config, _SOURCE)),
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron.six_fields)),
        mode="ENABLE",
        max_concurrency="1",
        no_catchup=True,
        service_account=config.platform.service_account or None,
        **({"namespace": client.namespace} if client.namespace else {}),
    )
    found = client.create_schedule(wanted)
    other_account = wanted.service_account and found.service_account != wanted.service_account
    if other_account or _settings(found) != _settings(wanted):
        raise LaunchError(f"schedule '{name}' exists with other settings: delete it first, or choose another name")
    return found


def times_of(schedule: Any) -> Cron | None:
    """When a V2beta1RecurringRun is due, in the zone that `create` wrote into its description (UTC if it did not)."""
    trigger = schedule.trigger.cron_schedule if schedule.trigger else None
    zone = _ZONE.search(schedule.description or "")
    try:
        return Cron.parse(trigger.cron, zone[1] if zone else "UTC") if trigger else None
    except CronError:  # made elsewhere, in a form that only KFP reads
        return None


def find(client: KfpClient, name: str) -> Any:
    """The recurring run of that name; LaunchError lists the names there are."""
    found = client.schedule(name)
    if found is None:
        known = ", ".join(sorted(s.display_name for s in client.schedules())) or "none"
        raise NotFound(f"schedule '{name}' does not exist; there are: {known}")
    return found


def _settings(recurring: Any) -> tuple[Any, ...]:
    reference, cron = recurring.pipeline_version_reference, recurring.trigger.cron_schedule.cron
    return recurring.experiment_id, reference.pipeline_id, cron, recurring.runtime_config.parameters


def _check_zone(cron: Cron, installed: str) -> None:
    """KFP has one zone for all schedules and no field for another."""
    if cron.zone.key != installed:
        raise LaunchError(
            f"time zone '{cron.zone.key}': this installation reads cron in '{installed}' (platform.cron_time_zone). "
            f"Give --time-zone {installed}, or set cronScheduleTimezone of its pipeline-install-config and "
            "platform.cron_time_zone to yours"
        )


def _check_fresh(package: ClusterPackage) -> None:
    """A cached step that reads the source would do so in the first run only: what a schedule passes never changes."""
    for dag, name, task in Compiled(package.spec, package.platform).tasks():
        cached = task.get("cachingOptions", {}).get("enableCache")
        if cached and "source_digest" in task.get("inputs", {}).get("parameters", {}):
            raise LaunchError(
                f"{dag}/{name} reads the data source and is cached: scheduled runs would never see new data. "
                "set_caching_options(False) in the pipeline"
            )
