"""Who may talk to whom by the rendered network policies, also where the steps are in a namespace of their own."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flashslm.config import PlatformConfig
from manifests.pin_images import OUTPUT, component
from tests.manifests.network import OUTSIDE, Pod, allowed
from tests.manifests.rendering import MANIFESTS, OVERLAYS, key, kustomize, pinned, rendered

SERVICES, STEPS = "flashslm", PlatformConfig().namespace
MLFLOW = Pod.of(SERVICES, part_of="flashslm", name="mlflow")
BACKUP = Pod.of(SERVICES, part_of="flashslm", name="mlflow-backup")
POSTGRES = Pod.of(SERVICES, part_of="flashslm", name="postgres")
SEAWEEDFS = Pod.of(SERVICES, part_of="flashslm", name="seaweedfs")
STEP = Pod.of(STEPS, part_of="flashslm", component="evaluate")
WORKER = Pod.of(STEPS, part_of="flashslm", component="pretrain")
RETRAINING = Pod.of(STEPS, part_of="flashslm", component="continue-pretraining")
KFP = Pod(STEPS, (("app", "ml-pipeline"),))
DRIVER = Pod(STEPS, (("pipelines.kubeflow.org/v2_component", "true"),))
KFP_PAGES = Pod(STEPS, (("app", "ml-pipeline-ui"),))
STRANGER = Pod.of("elsewhere", part_of="flashslm")
INGRESS = Pod.of("ingress-nginx", name="ingress-nginx")


@pytest.mark.parametrize(
    ("overlay", "source", "target", "port", "expected"),
    [
        ("local", STEP, MLFLOW, 5000, True),
        ("local", WORKER, MLFLOW, 5000, True),
        ("local", STEP, SEAWEEDFS, 8333, True),
        ("local", STEP, POSTGRES, 5432, True),
        ("local", MLFLOW, POSTGRES, 5432, True),
        ("local", MLFLOW, SEAWEEDFS, 8333, True),
        ("local", BACKUP, POSTGRES, 5432, True),
        ("local", BACKUP, MLFLOW, 5000, False),
        ("local", KFP, MLFLOW, 5000, True),
        ("production", KFP, MLFLOW, 5000, True),
        ("local", DRIVER, MLFLOW, 5000, True),
        ("production", DRIVER, MLFLOW, 5000, True),
        ("local", DRIVER, POSTGRES, 5432, False),
        ("local", DRIVER, MLFLOW, 22, False),
        ("local", KFP, SEAWEEDFS, 8333, False),
        ("local", KFP_PAGES, MLFLOW, 5000, False),
        ("local", STRANGER, MLFLOW, 5000, False),
        ("local", STRANGER, POSTGRES, 5432, False),
        ("local", STEP, MLFLOW, 22, False),
        ("local", MLFLOW, OUTSIDE, 443, False),
        ("local", POSTGRES, OUTSIDE, 443, False),
        ("local", OUTSIDE, MLFLOW, 5000, False),
        ("production", STEP, MLFLOW, 5000, True),
        ("production", STEP, OUTSIDE, 5432, True),
        ("production", MLFLOW, OUTSIDE, 443, True),
        ("production", MLFLOW, OUTSIDE, 5432, True),
        ("production", MLFLOW, OUTSIDE, 80, False),
        ("production", INGRESS, MLFLOW, 5000, True),
        ("production", STRANGER, MLFLOW, 5000, False),
        ("production", STEP, KFP, 8887, True),
        ("production", STEP, OUTSIDE, 443, True),
        ("production", STEP, OUTSIDE, 80, False),
        ("production", WORKER, WORKER, 29500, True),
        ("production", RETRAINING, RETRAINING, 29500, True),
        ("production", STEP, WORKER, 29500, False),
        ("production", STEP, RETRAINING, 29500, False),
        ("production", STRANGER, WORKER, 29500, False),
        ("production", KFP, STEP, 8080, False),
    ],
)
def test_only_what_is_needed_may_talk(overlay: str, source: Pod, target: Pod, port: int, expected: bool) -> None:
    policies = [d for d in rendered(overlay) if d["kind"] == "NetworkPolicy"]
    assert allowed(policies, source, target, port) is expected


def test_steps_in_a_users_namespace_reach_kfp() -> None:
    """As where KFP serves several users: the policies of manifests/base/steps are in that namespace."""
    policies = yaml.safe_load(json.dumps([d for d in rendered("production") if d["kind"] == "NetworkPolicy"]))
    for policy in policies:
        policy["metadata"]["namespace"] = policy["metadata"]["namespace"].replace(STEPS, "team")
    step = Pod.of("team", part_of="flashslm", component="evaluate")
    assert allowed(policies, step, KFP, 8887)
    assert not allowed(policies, step, STRANGER, 8887)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_page_moves_all_that_steps_need_to_a_users_namespace(overlay: str, tmp_path: Path) -> None:
    """The commands of docs/kubernetes.md: of ours nothing stays in KFP's namespace, and its rights go along."""
    root = Path(shutil.copytree(MANIFESTS, tmp_path / "manifests"))
    pinning = root / OUTPUT.relative_to(MANIFESTS)
    pinning.parent.mkdir(exist_ok=True)
    pinning.write_text(component(pinned()), encoding="utf-8")
    page = (MANIFESTS.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith(("grep -rl", "sed -i")) and "team" in line]
    assert len(commands) == 2
    subprocess.run(["sh", "-ec", "\n".join(commands)], cwd=tmp_path, check=True)
    done = kustomize(root / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    moved = tuple(yaml.safe_load_all(done.stdout))
    before = [key(d) for d in rendered(overlay)]
    assert {key(d) for d in moved} == {(kind, where.replace(STEPS, "team"), name) for kind, where, name in before}
    (binding,) = [d for d in moved if d["kind"] == "RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "flashslm-pipeline", "namespace": "team"}]
    policies = [d for d in moved if d["kind"] == "NetworkPolicy"]
    step = Pod.of("team", part_of="flashslm", component="evaluate")
    assert allowed(policies, step, MLFLOW, 5000) and allowed(policies, step, KFP, 8887)
    driver = Pod("team", DRIVER.labels)
    assert allowed(policies, KFP, MLFLOW, 5000) and allowed(policies, driver, MLFLOW, 5000), "KFP's plug-in for MLflow"
    assert overlay == "production" or allowed(policies, step, SEAWEEDFS, 8333)
    assert not allowed(policies, STEP, MLFLOW, 5000)
