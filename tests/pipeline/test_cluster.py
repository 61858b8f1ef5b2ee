"""The cluster pass: the same DAG as the local one, and what each step asks of Kubernetes."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, dsl, kubernetes
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.testing import CliRunner

from components.end_run.component import end_run
from components.images import IMAGES
from flashslm.cli.app import app
from flashslm.config import DESIGN_STEPS, GPU_STEPS, PlatformConfig
from flashslm.config.file import load
from flashslm.launch.compiling import code_digest, compile_pipeline, load_pipeline, project_root
from flashslm.launch.kfp.cluster_pass import (
    OWN_ARGUMENTS,
    STEP_RETRIES,
    ClusterPackage,
    for_cluster,
    short_command,
)
from flashslm.launch.kfp.definition import defined_tasks
from flashslm.launch.kfp.exit_task import BODY, TASK
from flashslm.launch.labels import step_of
from flashslm.launch.parity_lint import Compiled, lint
from flashslm.launch.processes import LaunchError
from tests.pipeline.recorded_kfp import recorded_nodes

Document = dict[str, Any]

H200 = {"node_selector": {"nvidia.com/gpu.product": "NVIDIA-H200"}}
PLATFORM = PlatformConfig.model_validate(
    {
        "image": "registry.example/flashslm@sha256:" + "ab" * 32,
        "image_pull_secret": "registry",
        "gpu_types": {"h200": H200},
        "gpu_steps": {"memory": "96Gi"},
        "steps": {
            "pretrain": {"gpus": 8, "gpu_type": "h200", "cpu": 64, "timeout_s": 604_800},
            "gate": {"cpu": "500m"},
        },
        "deadline_s": 1_000_000,
    }
)


@pytest.fixture(scope="module")
def package() -> ClusterPackage:
    return for_cluster("design_and_train", PLATFORM)


def executors(package: ClusterPackage) -> dict[str, tuple[Document, Document]]:
    """step -> its container and its pod's settings."""
    containers = package.spec["deploymentSpec"]["executors"]
    pods = package.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {step_of(value["container"]): (value["container"], pods[name]) for name, value in containers.items()}


def without_resources(spec: Document) -> Document:
    bare = copy.deepcopy(spec)
    for executor in bare["deploymentSpec"]["executors"].values():
        del executor["container"]["image"]
        executor["container"]["command"] = [short_command(part) for part in executor["container"]["command"]]
        executor["container"].pop("resources", None)
        executor["container"].pop("env", None)
    for name in OWN_ARGUMENTS:
        for field in ("defaultValue", "isOptional"):
            bare["root"]["inputDefinitions"]["parameters"][name].pop(field, None)
    return bare


def test_every_step_knows_its_retries_and_its_patience(package: ClusterPackage) -> None:
    for executor in package.spec["deploymentSpec"]["executors"].values():
        assert {"name": STEP_RETRIES, "value": str(PLATFORM.retries)} in executor["container"]["env"]
        assert {"name": "FLASHSLM_PATIENCE_S", "value": str(PLATFORM.patience_s)} in executor["container"]["env"]


def test_the_short_source_of_a_component_is_the_function_that_its_specification_declares(
    package: ClusterPackage,
) -> None:
    declared = package.spec["components"]
    for step, (container, _) in executors(package).items():
        namespace: dict[str, Any] = {}
        exec(container["command"][-1], namespace)  # as the SDK's executor does, which reads the annotations
        parameters = inspect.signature(namespace[step]).parameters
        component = declared["comp-" + step.replace("_", "-")]
        sides = [component.get(side, {}) for side in ("inputDefinitions", "outputDefinitions")]
        assert parameters.keys() >= {name for side in sides for name in side.get("artifacts", {})}
        assert parameters.keys() >= sides[0].get("parameters", {}).keys()
        assert container["command"][-1].count("\n") < 12, "one line for the signature"


def test_dag_is_the_local_one(package: ClusterPackage, tmp_path: Path) -> None:
    file = compile_pipeline("design_and_train", tmp_path / "local.yaml", retries=PLATFORM.retries)
    local, *platform = yaml.safe_load_all(file.read_text())
    assert platform == [], "what only a cluster knows is added by the pass"
    body, end = split(package.spec)
    assert without_resources(body) == without_resources(local)
    assert end["dag"]["tasks"].keys() == {BODY, TASK}


def split(spec: Document) -> tuple[Document, Document]:
    """What the exit handler holds, as a specification, and the root around it."""
    spec = copy.deepcopy(spec)
    root, components = spec["root"], spec["components"]
    body, end = components.pop(f"comp-{BODY}"), components.pop(f"comp-{TASK}")
    del spec["deploymentSpec"]["executors"][end["executorLabel"]]
    passed = root["dag"]["tasks"][BODY]["inputs"]["parameters"]
    assert passed == {name: {"componentInputParameter": name} for name in body["inputDefinitions"]["parameters"]}
    return spec | {"root": body}, root


def test_the_exit_handler_is_what_the_sdk_writes(package: ClusterPackage, tmp_path: Path) -> None:
    @dsl.component(base_image="image", install_kfp_package=False)
    def work() -> None:
        pass

    @dsl.pipeline(name="sdk")
    def by_the_sdk() -> None:
        end = end_run().set_caching_options(False).set_display_name("End the run")
        with dsl.ExitHandler(end, name="Pipeline"):
            work()

    compiler.Compiler().compile(by_the_sdk, str(tmp_path / "sdk.yaml"))
    expected = next(yaml.safe_load_all((tmp_path / "sdk.yaml").read_text()))
    ours = copy.deepcopy(package.spec)
    del ours["root"]["dag"]["tasks"][BODY]["inputs"]
    assert ours["root"]["dag"] == expected["root"]["dag"]
    assert ours["components"][f"comp-{TASK}"] == expected["components"][f"comp-{TASK}"]
    container = executors(package)["end_run"][0]
    given = expected["deploymentSpec"]["executors"][f"exec-{TASK}"]["container"]
    assert container["args"] == given["args"]
    assert container["command"] == [short_command(part) for part in given["command"]]
    assert "  --component_module_path" in given["command"][2] and "  " not in container["command"][2]
    assert container["resources"]["resourceMemoryLimit"] == "1Gi" and container["image"] == PLATFORM.image


def test_pods_know_their_run_without_an_argument(package: ClusterPackage) -> None:
    """An argument would be part of the cache keys."""
    for _, pod in executors(package).values():
        assert pod["fieldPathAsEnv"] == [
            {"name": "FLASHSLM_KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
        ]


def test_the_exit_task_is_no_step_of_the_pipeline(package: ClusterPackage, tmp_path: Path) -> None:
    file = compile_pipeline("design_and_train", tmp_path / "local.yaml", retries=PLATFORM.retries)
    local = next(yaml.safe_load_all(file.read_text()))
    arguments = {"workers": ["0", "1"]}
    tasks = defined_tasks(package.spec, arguments)
    assert [t.label for t in tasks if not t.is_exit_task] == [t.label for t in defined_tasks(local, arguments)]
    assert [t.step for t in tasks if t.is_exit_task] == ["end_run"]
    assert all(t.path[0] == BODY for t in tasks if not t.is_exit_task)


@pytest.mark.parametrize("pipeline", ["design_and_train", "retraining"])
def test_a_version_says_what_code_and_image_it_runs(pipeline: str) -> None:
    """By its own defaults: what a schedule passes was fixed when it was made."""

    def origin(values: Document) -> tuple[str, str]:
        spec = for_cluster(pipeline, PlatformConfig.model_validate(values)).spec
        declared = spec["root"]["inputDefinitions"]["parameters"]
        assert all(declared[name]["isOptional"] for name in OWN_ARGUMENTS)
        return tuple(declared[name]["defaultValue"] for name in OWN_ARGUMENTS)

    step = "pretrain" if pipeline == "design_and_train" else "continue_pretraining"
    assert origin({}) == (code_digest(), IMAGES["cuda"])
    assert origin({"image": "all@sha256:1"})[1] == "all@sha256:1"
    assert origin({"image": "all@sha256:1", "steps": {step: {"image": "own@sha256:2"}}})[1] == "own@sha256:2"


def test_every_step_on_a_gpu_has_a_retry_and_a_timeout(package: ClusterPackage) -> None:
    steps = executors(package)
    assert {
        step for step, (container, _) in steps.items() if "accelerator" in container["resources"]
    } == GPU_STEPS & set(DESIGN_STEPS)
    assert {int(pod["activeDeadlineSeconds"]) for _, pod in steps.values()} == {3600, 86_400, 604_800}
    compiled = Compiled(package.spec, package.platform)
    retries = [task["retryPolicy"]["maxRetryCount"] for *_, task in compiled.tasks() if "retryPolicy" in task]
    assert retries == [PLATFORM.retries] * len(DESIGN_STEPS)
    assert lint(package.spec, package.platform) == []


def test_steps_get_the_resources_of_their_kind_and_their_own(package: ClusterPackage) -> None:
    steps = executors(package)
    assert set(steps) == {*DESIGN_STEPS, "end_run"}
    assert steps["pretrain"][0]["resources"] == {
        "resourceCpuRequest": "64",
        "resourceCpuLimit": "64",
        "resourceMemoryRequest": "96Gi",
        "resourceMemoryLimit": "96Gi",
        "accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": "8"},
    }
    assert steps["gate"][0]["resources"]["resourceCpuLimit"] == "500m"
    assert "accelerator" not in steps["gate"][0]["resources"]
    assert "emptyDirMounts" not in steps["gate"][1] and "tolerations" not in steps["gate"][1]
    assert steps["pretrain"][1]["nodeSelector"] == {"labels": H200["node_selector"]}
    assert "labels" not in steps["evaluate"][1]["nodeSelector"]
    assert {container["image"] for container, _ in steps.values()} == {PLATFORM.image}


def test_an_own_image_replaces_the_platforms() -> None:
    values = {"image": "runtime@sha256:ab", "steps": {"export_model": {"image": "trt@sha256:cd"}}}
    steps = executors(for_cluster("design_and_train", PlatformConfig.model_validate(values)))
    assert (steps["export_model"][0]["image"], steps["evaluate"][0]["image"]) == ("trt@sha256:cd", "runtime@sha256:ab")


def without_second_names(value: Any) -> Any:
    """The SDK writes the name of each object twice, as a text and as a parameter; drivers read either."""
    if isinstance(value, list):
        return [without_second_names(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        k: without_second_names(v)
        for k, v in value.items()
        if k not in ("secretNameParameter", "configMapNameParameter")
    }


def test_pod_settings_are_those_the_sdk_writes(package: ClusterPackage, tmp_path: Path) -> None:
    @dsl.component(base_image="image", install_kfp_package=False)
    def pretrain() -> None:
        pass

    @dsl.pipeline(
        name="sdk",
        pipeline_config=dsl.PipelineConfig(active_deadline_seconds=1_000_000, ttl_seconds_after_finished=604_800),
    )
    def by_the_sdk() -> None:
        task = pretrain()
        for purpose in ("s3", "mlflow"):
            kubernetes.use_secret_as_volume(task, f"flashslm-{purpose}", f"/etc/flashslm/{purpose}", optional=True)
        kubernetes.use_config_map_as_volume(task, "flashslm", "/etc/flashslm/config", optional=True)
        kubernetes.use_field_path_as_env(task, "FLASHSLM_KFP_RUN_ID", "metadata.labels['pipeline/runid']")
        kubernetes.set_timeout(task, 604_800)
        kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "flashslm")
        kubernetes.add_pod_label(task, "app.kubernetes.io/component", "pretrain")
        kubernetes.add_pod_annotation(task, "cluster-autoscaler.kubernetes.io/safe-to-evict", "false")
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.set_image_pull_secrets(task, ["registry"])
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="16Gi")
        kubernetes.add_node_selector(task, "nvidia.com/gpu.product", "NVIDIA-H200")
        kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")

    compiler.Compiler().compile(by_the_sdk, str(tmp_path / "sdk.yaml"))
    _, platform = yaml.safe_load_all((tmp_path / "sdk.yaml").read_text())
    expected = without_second_names(platform["platforms"]["kubernetes"])
    assert executors(package)["pretrain"][1] == expected["deploymentSpec"]["executors"]["exec-pretrain"]
    assert package.platform["platforms"]["kubernetes"]["pipelineConfig"] == expected["pipelineConfig"]


def test_a_steps_executor_takes_at_most_sixty_percent_of_what_was_recorded() -> None:
    """In Argo's node statuses, which hold it twice, and six times in what KFP's driver makes of it."""
    status = recorded_nodes("succeeded_compressed")
    recorded = {}
    for node in status.values():
        inputs = {p["name"]: p.get("value", "") for p in node.get("inputs", {}).get("parameters", [])}
        if inputs.get("container"):
            step = step_of(json.loads(inputs["container"]))
            recorded[step] = len(inputs["container"]) + len(inputs["kubernetes-config"])
    options = ["platform.image=ghcr.io/flashslm/runtime:0.1.0", "platform.gpu_steps.gpus=0"]
    platform = load(project_root() / "configs" / "smoke.yaml", options).platform
    now = {
        step: sum(len(json.dumps(part, separators=(",", ":"))) for part in parts)
        for step, parts in executors(for_cluster("design_and_train", platform)).items()
    }
    assert set(now) - set(recorded) == {"check_recipe", "end_run", "plan_data", "merge_data"}
    assert sum(now[step] / size for step, size in recorded.items()) <= 0.6 * len(recorded)


def test_package_is_read_by_the_sdk(package: ClusterPackage) -> None:
    spec, platform = yaml.safe_load_all(package.text())
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    json_format.ParseDict(spec["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig())


def test_kubernetes_objects_are_those_the_sdk_writes(tmp_path: Path) -> None:
    pipeline = load_pipeline("design_and_train", project_root())
    options = KubernetesManifestOptions(pipeline_version_name="v", namespace="team", include_pipeline_manifest=True)
    compiler.Compiler().compile(
        pipeline,
        str(tmp_path / "sdk.yaml"),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    expected = list(yaml.safe_load_all((tmp_path / "sdk.yaml").read_text()))
    spec = expected[1]["spec"]["pipelineSpec"]
    package = ClusterPackage(spec, {"platforms": {}})
    ours = list(yaml.safe_load_all(package.manifests("team")))
    assert ours[1]["spec"].pop("platformSpec") == {"platforms": {}}
    assert ours[1]["metadata"].pop("name") == ours[1]["spec"].pop("displayName") == package.version
    del expected[1]["metadata"]["name"], expected[1]["spec"]["displayName"]
    assert ours == expected


def test_version_is_a_function_of_the_definition(package: ClusterPackage) -> None:
    assert for_cluster("design_and_train", PLATFORM).version == package.version
    other = PLATFORM.model_copy(update={"image": "registry.example/flashslm@sha256:" + "cd" * 32})
    changed = for_cluster("design_and_train", other)
    assert changed.version != package.version and changed.name == package.name == "design-and-train"
    assert package.version.startswith("design-and-train-") and len(package.version) <= 63


def test_a_gpu_without_a_retry_is_refused() -> None:
    with pytest.raises(LaunchError, match="/evaluate: uses a GPU without a retry"):
        for_cluster("design_and_train", PLATFORM.model_copy(update={"retries": 0}))


def test_compile_command_writes_what_a_cluster_takes(tmp_path: Path) -> None:
    recipe = tmp_path / "toy.yaml"
    recipe.write_text("name: toy\nplatform: {namespace: team}\n", encoding="utf-8")

    def compiled(*options: str) -> list[Document]:
        output = tmp_path / "out" / "pipeline.yaml"
        result = CliRunner().invoke(app, ["compile", "-o", str(output), "--config", str(recipe), *options])
        assert result.exit_code == 0, result.output
        return list(yaml.safe_load_all(output.read_text()))

    spec, platform = compiled("platform.cpu_steps.cpu=3")
    assert spec["deploymentSpec"]["executors"]["exec-gate"]["container"]["resources"]["resourceCpuLimit"] == "3"
    pipeline, version = compiled("--kubernetes")
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert pipeline["metadata"]["namespace"] == version["metadata"]["namespace"] == "team"
    assert version["spec"]["platformSpec"] == platform
    refused = CliRunner().invoke(app, ["compile", "--kubernetes", "-o", str(tmp_path / "x.yaml")])
    assert "need --config" in str(refused.exception) and not (tmp_path / "x.yaml").exists()
