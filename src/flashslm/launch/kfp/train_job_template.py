"""The TrainJob that training on several nodes becomes: all but its name and command, which the step knows."""

from flashslm.config import GpuType, PlatformConfig
from flashslm.infra.kubernetes.train_job import API_VERSION, NODE, KubernetesObject
from flashslm.infra.process.owners import POD_UID
from flashslm.infra.settings import VARIABLES

MANAGER = "flashslm.dev/pretrain"  # of our entry in runtimePatches, beside those of Kueue and others

Source = tuple[str, tuple[str, ...], bool]  # name of the object, its keys, whether they may be absent


def train_job_template(
    step: str, platform: PlatformConfig, image: str, secrets: list[Source], config_maps: list[Source]
) -> KubernetesObject:
    """The job for `platform.nodes` nodes, each with the resources of the step; one process per GPU."""
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
    if resources.shared_memory:
        pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": resources.shared_memory}}]
        pod["containers"] = [{"name": NODE, "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}]
    trainer: KubernetesObject = {
        "image": image,
        "numNodes": platform.nodes,
        "numProcPerNode": max(1, resources.gpus),
        "resourcesPerNode": {"requests": amounts, "limits": dict(amounts)},
        "env": [
            {"name": POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": VARIABLES["patience_s"], "value": str(platform.patience_s)},
            *_references("secretKeyRef", secrets),
            *_references("configMapKeyRef", config_maps),
        ],
    }
    pods = {"metadata": {"labels": labels}, "spec": {key: value for key, value in pod.items() if value}}
    nodes = {"name": NODE, "template": {"spec": {"template": pods}}}
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": {"labels": dict(labels)},
        "spec": {
            "runtimeRef": {"name": platform.training_runtime},
            "trainer": trainer,
            "activeDeadlineSeconds": resources.timeout_s,
            "runtimePatches": [
                {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [nodes]}}}}
            ],
        },
    }


def step_labels(step: str) -> dict[str, str]:
    """Of every pod that works for the step; network policies know pods by them."""
    return {"app.kubernetes.io/part-of": "flashslm", "app.kubernetes.io/component": step.replace("_", "-")}


def _references(field: str, sources: list[Source]) -> list[KubernetesObject]:
    return [
        {"name": key, "valueFrom": {field: {"name": name, "key": key} | ({"optional": True} if optional else {})}}
        for name, keys, optional in sources
        for key in keys
    ]
