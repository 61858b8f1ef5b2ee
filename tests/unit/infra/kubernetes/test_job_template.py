"""The TrainJob that a recipe's platform section makes of the pretrain step."""

from pathlib import Path

from flashslm.config import PlatformConfig
from flashslm.infra.kubernetes import train_job
from tests.unit.infra.kubernetes.jobs import PLATFORM, Document, template_of


def test_template_is_a_train_job_of_trainer_2_3(manifest: Document) -> None:
    from tests.manifests.schemas import validate

    validate(manifest)
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], train_job.world_size(manifest)) == (2, 8, 16)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}
    assert manifest["spec"]["activeDeadlineSeconds"] == 604_800
    assert manifest["spec"]["runtimeRef"] == {"name": "flashslm-torch"}
    assert {"name": "FLASHSLM_PATIENCE_S", "value": "900"} in trainer["env"]
    (patch,) = manifest["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "flashslm"
    assert pod["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["spec"]["volumes"] == [  # not the secret of the search's database
        {"name": "flashslm-s3", "secret": {"secretName": "flashslm-s3", "optional": True}},
        {"name": "flashslm-mlflow", "secret": {"secretName": "flashslm-mlflow", "optional": True}},
        {"name": "flashslm", "configMap": {"name": "flashslm", "optional": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    ]


def test_the_steps_own_pod_only_watches() -> None:
    container, template = template_of(PLATFORM)
    assert "accelerator" not in container["resources"] and container["resources"]["resourceMemoryLimit"] == "1Gi"
    assert container["resources"]["resourceCpuRequest"] == "500m"
    assert template["spec"]["trainer"]["image"] == container["image"] == PLATFORM.image
    container, template = template_of(PLATFORM.model_copy(update={"nodes": 1}))
    assert container["resources"]["accelerator"]["resourceCount"] == "8" and template == {}


def test_without_gpus_there_is_one_process_a_node(tmp_path: Path) -> None:
    _, template = template_of(PlatformConfig.model_validate({"nodes": 3, "gpu_steps": {"gpus": 0}}))
    assert train_job.world_size(template) == 3
    assert "nvidia.com/gpu" not in template["spec"]["trainer"]["resourcesPerNode"]["limits"]


def test_without_a_queue_there_is_no_label(manifest: Document) -> None:
    assert not [label for label in manifest["metadata"]["labels"] if "kueue" in label]
