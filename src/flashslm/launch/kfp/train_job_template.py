"""The TrainJob that training on several nodes becomes: all but its name and command, which the step knows."""

from flashslm.config import GpuType, PlatformConfig
from flashslm.config.platform_section import SHARED_MEMORY
from flashslm.infra.kubernetes.train_job import API_VERSION, NODE, QUEUE_LABEL, KubernetesObject
from flashslm.infra.mounted_environment import mount_path
from flashslm.infra.process.owners import POD_UID
from flashslm.infra.settings import pod_variables

MANAGER = "flashslm.dev/pretrain"  # of our entry in runtimePatches, beside those of Kueue and others


def train_job_template(
    step: str, platform: PlatformConfig, image: str, objects: dict[str, dict[str, str]]
) -> KubernetesObject:
    """The job for `platform.nodes` nodes, each with the resources of the step; one process per GPU.

    `objects` are the names of what its pods mount, by kind of volume and purpose.
    """
    resources, labels = platform.resources(step), step_labels(step)
    kind = platform.gpu_types.get(resources.gpu_type, GpuType())
    amounts = {"cpu": resources.cpu, "memory": resources.memory}
    pod: KubernetesObject = {}
    if resources.gpus:
        amounts[kind.resource] = str(resources.gpus)
        pod["tolerations"] = [{k: v for k, v in t.model_dump().items() if v} for t in kind.tolerations]
        pod["nodeSelector"] = kind.node_selector
    if platform.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": platform.image_pull_secret}]
    volumes = [_volume(source, name) for source, named in objects.items() for name in named.values()]
    mounts = [
        {"name": n, "mountPath": mount_path(purpose)} for named in objects.values() for purpose, n in named.items()
    ]
    if resources.shared_memory:
        in_memory = {"medium": "Memory", "sizeLimit": resources.shared_memory}
        volumes.append({"name": SHARED_MEMORY, "emptyDir": in_memory})
        mounts.append({"name": SHARED_MEMORY, "mountPath": "/dev/shm"})
    if volumes:
        pod |= {"volumes": volumes, "containers": [{"name": NODE, "volumeMounts": mounts}]}
    trainer: KubernetesObject = {
        "image": image,
        "numNodes": platform.nodes,
        "numProcPerNode": max(1, resources.gpus),
        "resourcesPerNode": {"requests": amounts, "limits": dict(amounts)},
        "env": [
            {"name": POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            *pod_variables(platform),
        ],
    }
    about = {"labels": labels, "annotations": dict(STAYS)}
    pods = {"metadata": about, "spec": {key: value for key, value in pod.items() if value}}
    nodes = {"name": NODE, "template": {"spec": {"template": pods}}}
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": {"labels": labels | ({QUEUE_LABEL: platform.queue} if platform.queue else {})},
        "spec": {
            "runtimeRef": {"name": platform.training_runtime},
            "trainer": trainer,
            "activeDeadlineSeconds": resources.timeout_s,
            "runtimePatches": [
                {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [nodes]}}}}
            ],
        },
    }


# Asks autoscalers to leave a step's pod on its node. One that is removed loses work, the restarts of a TrainJob are
# counted, and one that is moved spoils a measurement.
STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def step_labels(step: str) -> dict[str, str]:
    """Of every pod that works for the step; network policies know pods by them."""
    return {"app.kubernetes.io/part-of": "flashslm", "app.kubernetes.io/component": step.replace("_", "-")}


def _volume(kind: str, name: str) -> KubernetesObject:
    return {"name": name, kind: {"secretName" if kind == "secret" else "name": name, "optional": True}}
