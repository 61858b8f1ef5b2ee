"""The cluster pass: the one compiled pipeline with what Kubernetes must know, from the recipe's `platform` section.

Only executors, the platform document and defaults of arguments change. Components, tasks, dependencies, inputs and
conditions stay those of the local run, inside an exit handler (`exit_task`).
"""

import ast
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flashslm.config import MULTI_NODE_STEPS, GpuType, PlatformConfig, StepResources, digest
from flashslm.config.platform_section import SHARED_MEMORY
from flashslm.infra.kubernetes.train_job import VARIABLE as TRAIN_JOB
from flashslm.infra.mounted_environment import mount_path
from flashslm.infra.settings import VARIABLES, pod_variables
from flashslm.launch.compiling import code_digest, compile_pipeline, project_root
from flashslm.launch.kfp import exit_task
from flashslm.launch.kfp.train_job_template import STAYS, step_labels, train_job_template
from flashslm.launch.labels import step_of
from flashslm.launch.parity_lint import lint
from flashslm.launch.processes import LaunchError

RUN_ID_LABEL = "metadata.labels['pipeline/runid']"  # that KFP gives to every pod of a run
_API_VERSION = "pipelines.kubeflow.org/v2beta1"

# Arguments that say what a version is made of: its own defaults, so that a schedule, whose arguments never change, runs
# the latest version under the digest of that version's code.
OWN_ARGUMENTS = ("code_digest", "image")

_NAMES = "from kfp.dsl import *\nfrom typing import *\n"  # that annotations of components use
_SDK_IMPORTS = f"\nimport kfp\nfrom kfp import dsl\n{_NAMES}\n"
STEP_RETRIES = "FLASHSLM_STEP_RETRIES"  # read by flashslm.steps.attempts
# Keys of `platform` that name a secret which only some steps may read.
OWN_SECRETS = {
    "search_architecture": ("database_secret",),
    "select_architecture": ("database_secret",),
    "register_model": ("hook_secret",),
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
    root = root or project_root()
    with tempfile.TemporaryDirectory(prefix="flashslm-compile-") as directory:
        file = compile_pipeline(pipeline, Path(directory) / "pipeline.yaml", root=root, retries=platform.retries)
        spec, *_ = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    exit_task.add_exit_task(spec, root)
    executors = {}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        step = step_of(executor["container"])
        resources = exit_task.RESOURCES if step == exit_task.STEP else platform.pod_resources(step)
        executor["container"] |= {"resources": _resources(resources, platform)}
        executor["container"]["command"] = [short_command(part) for part in executor["container"]["command"]]
        if image := resources.image or platform.image:
            executor["container"]["image"] = image
        executor["container"]["env"] = [
            {"name": STEP_RETRIES, "value": str(platform.retries)},
            *pod_variables(platform),
        ]
        if platform.has_train_job(step):
            objects = {"secret": _secrets(platform, step), "configMap": _config_maps(platform)}
            job = train_job_template(step, platform, executor["container"]["image"], objects)
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


def short_command(command: str) -> str:
    """A part of a container's command without what Argo would record eight times for nothing.

    One part is the component's source: it loses its line breaks, and of the SDK's imports those of whole modules.
    Another writes this source (`$0`) into a file of its own and runs the SDK's executor on it: it loses its padding,
    and names are short.
    """
    if command.startswith(_SDK_IMPORTS):
        return _NAMES + ast.unparse(ast.parse(command.removeprefix(_SDK_IMPORTS)))
    command = re.sub(' {2,}(?=--|")', " ", command)
    return command.replace('"$program_path/ephemeral_component.py"', "$p/c.py").replace("program_path=", "p=")


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
        "podMetadata": {"labels": step_labels(step), "annotations": dict(STAYS)},
        "securityContext": {"runAsNonRoot": True},  # KFP itself sets the rest of what "restricted" asks for
    }
    if platform.image_pull_secret:
        pod["imagePullSecret"] = [{"secretName": platform.image_pull_secret}]
    if resources.shared_memory:
        volume = {"volumeName": SHARED_MEMORY, "mountPath": "/dev/shm", "medium": "Memory"}
        pod["emptyDirMounts"] = [volume | {"sizeLimit": resources.shared_memory}]
    if resources.gpus:
        kind = platform.gpu_types.get(resources.gpu_type, GpuType())
        pod["nodeSelector"] = {"labels": kind.node_selector}
        pod["tolerations"] = [toleration.model_dump() for toleration in kind.tolerations]
    return dict(json_format.MessageToDict(json_format.ParseDict(pod, KubernetesExecutorConfig())))


def _environment(platform: PlatformConfig, step: str) -> dict[str, Any]:
    """What the step reads of the environment contract (`infra/mounted_environment.py`)."""
    return {
        "secretAsVolume": [_mounted("secretName", *entry) for entry in _secrets(platform, step).items()],
        "configMapAsVolume": [_mounted("configMapName", *entry) for entry in _config_maps(platform).items()],
        # Not an argument of the steps: it would be part of their cache keys.
        "fieldPathAsEnv": [{"name": VARIABLES["kfp_run_id"], "fieldPath": RUN_ID_LABEL}],
    }


def _secrets(platform: PlatformConfig, step: str) -> dict[str, str]:
    """The secrets of a step by what they are for."""
    fields = ("s3_secret", "mlflow_secret", *OWN_SECRETS.get(step, ()))
    names = {field.removesuffix("_secret"): str(getattr(platform, field)) for field in fields}
    return {purpose: name for purpose, name in names.items() if name}


def _config_maps(platform: PlatformConfig) -> dict[str, str]:
    return {"config": platform.config_map} if platform.config_map else {}


def _mounted(field: str, purpose: str, name: str) -> dict[str, Any]:
    """By the plain name, which every driver reads; the form for names that are parameters would say it twice."""
    return {field: name, "mountPath": mount_path(purpose), "optional": True}
