"""The cluster pass: the one compiled pipeline with what Kubernetes must know, from the recipe's `platform` section.

Only executors, the platform document and defaults of arguments change. Components, tasks, dependencies, inputs and
conditions stay those of the local run.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flashslm.config import HOOK_URL_VARIABLE, MULTI_NODE_STEPS, GpuType, PlatformConfig, StepResources, digest
from flashslm.infra.kubernetes.train_job import VARIABLE as TRAIN_JOB
from flashslm.infra.settings import VARIABLES
from flashslm.launch.compiling import code_digest, compile_pipeline
from flashslm.launch.kfp.train_job_template import Source, step_labels, train_job_template
from flashslm.launch.parity_lint import lint
from flashslm.launch.processes import LaunchError

SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
_API_VERSION = "pipelines.kubeflow.org/v2beta1"

# Arguments that say what a version is made of: its own defaults, so that a schedule, whose arguments never change, runs
# the latest version under the digest of that version's code.
OWN_ARGUMENTS = ("code_digest", "image")

STEP_RETRIES = "FLASHSLM_STEP_RETRIES"  # read by flashslm.steps.attempts
# The environment contract (infra/settings.py) by where it comes from; names of keys and of variables are the same.
CONFIG_MAP_VARIABLES = ("AWS_ENDPOINT_URL_S3", "FLASHSLM_BUCKET", "MLFLOW_TRACKING_URI")
CONFIG_MAP_OPTIONAL = ("AWS_REGION", "FLASHSLM_S3_CHECKSUMS", "MLFLOW_EXPERIMENT_NAME")
S3_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_SECRET_OPTIONAL = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")
# What only some steps may read: their names, the key of `platform` that names the secret, the variables.
DATABASE_SECRET_VARIABLES = ("FLASHSLM_STUDY_URL",)
HOOK_SECRET_VARIABLES = ("FLASHSLM_HOOK_SECRET",)
HOOK_SECRET_OPTIONAL = (HOOK_URL_VARIABLE,)  # a hook that is a command has none
OWN_SECRETS = {
    "search_architecture": (("database_secret", DATABASE_SECRET_VARIABLES, False),),
    "select_architecture": (("database_secret", DATABASE_SECRET_VARIABLES, False),),
    "register_model": (("hook_secret", HOOK_SECRET_VARIABLES, False), ("hook_secret", HOOK_SECRET_OPTIONAL, True)),
}


@dataclass(frozen=True)
class ClusterPackage:
    """A pipeline ready for a cluster: its specification and its platform's."""

    spec: dict[str, Any]
    platform: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def description(self) -> str:
        return str(self.spec["pipelineInfo"].get("description", ""))

    @property
    def version(self) -> str:
        """A name that the content decides: the same definition on the same platform is the same version."""
        return f"{self.name}-{digest([self.spec, self.platform])[:12]}"

    def text(self) -> str:
        """The YAML that KFP takes as an upload."""
        return yaml.safe_dump_all([self.spec, self.platform], sort_keys=True)

    def manifests(self, namespace: str) -> str:
        """The same as Kubernetes objects, Pipeline and PipelineVersion, for a KFP with the Kubernetes-native store."""
        about = {"description": self.description} if self.description else {}
        pipeline: dict[str, Any] = {"displayName": self.name} | about
        version: dict[str, Any] = {"displayName": self.version, "pipelineName": self.name} | about
        version |= {"pipelineSpec": self.spec, "platformSpec": self.platform}
        objects = (("Pipeline", self.name, pipeline), ("PipelineVersion", self.version, version))
        documents = [
            {"apiVersion": _API_VERSION, "kind": k, "metadata": {"name": n, "namespace": namespace}, "spec": spec}
            for k, n, spec in objects
        ]
        return yaml.safe_dump_all(documents, sort_keys=True)


def for_cluster(pipeline: str, platform: PlatformConfig, root: Path | None = None) -> ClusterPackage:
    """Compile the pipeline of that name and add the platform's settings to every step.

    Raises LaunchError where the parity lint finds something, such as a step on a GPU without a retry.
    """
    with tempfile.TemporaryDirectory(prefix="flashslm-compile-") as directory:
        file = compile_pipeline(pipeline, Path(directory) / "pipeline.yaml", root=root, retries=platform.retries)
        spec, *_ = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    executors = {}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        step = step_of(executor["container"])
        resources = platform.pod_resources(step)
        executor["container"] |= {"resources": _resources(resources, platform)}
        if image := resources.image or platform.image:
            executor["container"]["image"] = image
        executor["container"]["env"] = [
            {"name": STEP_RETRIES, "value": str(platform.retries)},
            {"name": VARIABLES["patience_s"], "value": str(platform.patience_s)},
        ]
        if platform.has_train_job(step):
            job = train_job_template(
                step, platform, executor["container"]["image"], _secrets(platform, step), _maps(platform)
            )
            executor["container"]["env"].append({"name": TRAIN_JOB, "value": json.dumps(job, separators=(",", ":"))})
        executors[name] = _pod(step, resources, platform)
    _say_what_runs(spec)
    kubernetes: dict[str, Any] = {"deploymentSpec": {"executors": executors}}
    limits = {"activeDeadlineSeconds": platform.deadline_s, "resourceTtlOnCompletion": platform.ttl_s}
    if limits := {name: value for name, value in limits.items() if value}:
        kubernetes["pipelineConfig"] = limits
    package = ClusterPackage(spec, {"platforms": {"kubernetes": kubernetes}})
    if found := lint(package.spec, package.platform):
        listed = "\n".join(f"  {violation}" for violation in found)
        raise LaunchError(f"pipeline '{pipeline}' cannot run on a cluster with this platform section:\n{listed}")
    return package


def _say_what_runs(spec: dict[str, Any]) -> None:
    """Give OWN_ARGUMENTS the values that hold for this package; the image is the one that trains."""
    containers = [executor["container"] for executor in spec["deploymentSpec"]["executors"].values()]
    trainers = [c["image"] for c in containers if step_of(c) in MULTI_NODE_STEPS]
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, value in zip(OWN_ARGUMENTS, (code_digest(), next(iter(trainers), "")), strict=True):
        if name in inputs:
            inputs[name] |= {"defaultValue": value, "isOptional": True}


def step_of(container: dict[str, Any]) -> str:
    """The step whose component a container runs; a step that occurs twice has two executors."""
    arguments = container["args"]
    return str(arguments[arguments.index("--function_to_execute") + 1])


def _resources(resources: StepResources, platform: PlatformConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "resourceCpuRequest": resources.cpu,
        "resourceCpuLimit": resources.cpu,
        "resourceMemoryRequest": resources.memory,
        "resourceMemoryLimit": resources.memory,
    }
    if resources.gpus:
        kind = platform.gpu_types.get(resources.gpu_type, GpuType())
        values["accelerator"] = {"resourceType": kind.resource, "resourceCount": str(resources.gpus)}
    return values


def _pod(step: str, resources: StepResources, platform: PlatformConfig) -> dict[str, Any]:
    """The executor's platform settings, in the form of the message that KFP's driver reads."""
    from google.protobuf import json_format
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig

    pod: dict[str, Any] = _environment(platform, step) | {
        "activeDeadlineSeconds": resources.timeout_s,
        # A pod that is removed from its node is not retried by KFP, and one that is moved spoils a measurement.
        "podMetadata": {"labels": step_labels(step), "annotations": {SAFE_TO_EVICT: "false"}},
        "securityContext": {"runAsNonRoot": True},  # KFP itself sets the rest of what "restricted" asks for
    }
    if platform.image_pull_secret:
        pod["imagePullSecret"] = [_named("secretName", platform.image_pull_secret)]
    if resources.shared_memory:
        volume = {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory"}
        pod["emptyDirMounts"] = [volume | {"sizeLimit": resources.shared_memory}]
    if resources.gpus:
        kind = platform.gpu_types.get(resources.gpu_type, GpuType())
        pod["nodeSelector"] = {"labels": kind.node_selector}
        pod["tolerations"] = [toleration.model_dump() for toleration in kind.tolerations]
    return dict(json_format.MessageToDict(json_format.ParseDict(pod, KubernetesExecutorConfig())))


def _environment(platform: PlatformConfig, step: str) -> dict[str, Any]:
    """What the step reads of the contract; what is optional may be absent from the object that holds it."""
    return {
        "secretAsEnv": [_as_env("secretName", "secretKey", *source) for source in _secrets(platform, step)],
        "configMapAsEnv": [_as_env("configMapName", "configMapKey", *source) for source in _maps(platform)],
    }


def _secrets(platform: PlatformConfig, step: str) -> list[Source]:
    sources = [
        (platform.s3_secret, S3_SECRET_VARIABLES, False),
        (platform.mlflow_secret, MLFLOW_SECRET_OPTIONAL, True),
    ]
    for field, variables, optional in OWN_SECRETS.get(step, ()):
        sources.append((getattr(platform, field), variables, optional))
    return [source for source in sources if source[0]]


def _maps(platform: PlatformConfig) -> list[Source]:
    name = platform.config_map
    return [(name, CONFIG_MAP_VARIABLES, False), (name, CONFIG_MAP_OPTIONAL, True)] if name else []


def _as_env(field: str, key: str, name: str, variables: tuple[str, ...], optional: bool) -> dict[str, Any]:
    return _named(field, name) | {"keyToEnv": [{key: v, "envVar": v} for v in variables], "optional": optional}


def _named(field: str, name: str) -> dict[str, Any]:
    """A reference as older (plain) and newer (parameter) drivers read it."""
    return {field: name, f"{field}Parameter": {"runtimeValue": {"constant": name}}}
