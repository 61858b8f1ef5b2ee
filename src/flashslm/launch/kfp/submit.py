"""Submit a recipe to KFP: package, pipeline version, experiment, run."""

import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from flashslm.config import HOOK_URL_VARIABLE, DataConfig, GpuType, PlatformConfig, RunConfig, digest
from flashslm.data.source_paths import reads_s3
from flashslm.data.sources import local_directories, source_digest, with_revisions
from flashslm.evaluation.task_files import is_file
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.storage.s3 import s3_client
from flashslm.launch.compiling import arguments_for, pipeline_arguments, with_short_sections
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.cluster_pass import OWN_ARGUMENTS, ClusterPackage, for_cluster
from flashslm.launch.processes import LaunchError


@dataclass(frozen=True)
class Submission:
    """What was started, and where it is seen."""

    run_id: str
    name: str
    url: str
    pipeline: str
    version: str
    experiment: str

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def submit(client: KfpClient, config: RunConfig, pipeline: str, experiment: str = "") -> Submission:
    """Start one run of a pipeline with a recipe; the experiment is the recipe's name unless given."""
    config = config.model_copy(update={"data": with_revisions(config.data)})
    package = for_cluster(pipeline, config.platform)
    arguments = stored_arguments(package, config, cluster_source_digest(config.data))
    version = client.publish(package)
    found = client.experiment(experiment or config.name)
    name = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    run = client.start(version, found, name, arguments, config.platform.service_account)
    url = client.run_url(run.run_id)
    return Submission(run.run_id, name, url, package.name, package.version, found.display_name)


def stored_arguments(package: ClusterPackage, config: RunConfig, source: str) -> dict[str, Any]:
    """`cluster_arguments`, the long ones of which are in the object store of this environment's settings."""
    return with_short_sections(cluster_arguments(package, config, source), lambda: ObjectStore(Settings.from_env()))


def cluster_arguments(package: ClusterPackage, config: RunConfig, source: str) -> dict[str, Any]:
    """The package's arguments from a recipe, but for its own; the same from whichever machine they are sent."""
    local = {f"lm_eval_tasks: '{task}' is a file" for task in config.evaluation.lm_eval_tasks if is_file(task)}
    local |= {f"task_data: '{of}' is a directory" for of in [config.evaluation.task_data] if of}
    if local:
        raise LaunchError(
            f"evaluation.{min(local)} of this machine, which pods do not have: run the recipe here, or leave it out"
        )
    if config.gate.promotion_hook.url and not config.platform.hook_secret:
        raise LaunchError(
            f"gate.promotion_hook.url is a secret and does not travel with a pipeline: put the address as "
            f"{HOOK_URL_VARIABLE} and its key as {config.gate.promotion_hook.secret_variable} into a Secret of the "
            "namespace, and give its name as platform.hook_secret"
        )
    known = pipeline_arguments(config, "", source, device_digest(config.platform))
    return arguments_for(package.spec, {name: value for name, value in known.items() if name not in OWN_ARGUMENTS})


def device_digest(platform: PlatformConfig) -> str:
    """Where the latency table is measured, as far as a recipe says: part of profile_latency's cache key."""
    resources = platform.resources("profile_latency")
    kind = platform.gpu_types.get(resources.gpu_type, GpuType()) if resources.gpus else None
    return digest([resources.cpu, resources.gpus, resources.gpu_type, kind and kind.model_dump()])


def cluster_source_digest(data: DataConfig) -> str:
    """`source_digest`, of what a cluster can read. Objects in S3 are looked at with this environment's settings."""
    own = [path for path in data.paths if not path.startswith("s3://")] if data.source == "files" else []
    if own:
        raise LaunchError(
            f"data.paths: {', '.join(own)} is on this machine, where a cluster's steps cannot read it: "
            "upload it and give its s3:// path"
        )
    for where, name in local_directories(data).items():
        raise LaunchError(
            f"{where}: '{name}' is a directory of this machine, where a cluster's steps cannot read it: give an id of "
            "the hub" + (", or 'train'" if where == "data.tokenizer" else ", or data.source=files with s3:// paths")
        )
    return source_digest(data, s3_client(Settings.from_env()) if reads_s3(data) else None)
