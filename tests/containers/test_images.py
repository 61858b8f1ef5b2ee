"""components/images.py says which step uses which image, and `make images` keeps it by digest."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from components import images
from flashslm.config import GPU_STEPS, STEP_SECTIONS, PlatformConfig
from flashslm.launch.kfp.cluster_pass import for_cluster
from flashslm.launch.labels import step_of
from tests.containers.build import ROOT

# An engine that writes down how it was called; what it pushed has a digest.
ENGINE = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in
  *RepoDigests*) echo other.test/cuda@sha256:0; echo registry.test/cuda@sha256:{digest} ;;
  "image inspect"*) echo "registry.test/cuda:0.1.0 sha256:1 5 bytes" ;;
esac
"""
DIGEST = "07" * 32


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit of what `images/build` needs, an engine first on the path."""
    root = tmp_path / "checkout"
    for name in ("images", "components", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@host.example", "-C", str(root)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "all"], check=True)
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text(ENGINE.format(calls=tmp_path / "calls", digest=DIGEST))
    engine.chmod(0o755)
    return root


def build(checkout: Path, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout.parent / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", "images/build", *names],
        cwd=checkout,
        env=os.environ | {"PATH": path, "REGISTRY": "registry.test", "ENGINE": "docker"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_push_is_recorded_by_digest(checkout: Path) -> None:
    assert build(checkout, "cuda", PUSH="1").returncode == 0
    calls = (checkout.parent / "calls").read_text()
    assert "--tag registry.test/cuda:0.1.0" in calls and "push registry.test/cuda:0.1.0" in calls
    changed = (checkout / "components" / "images.py").read_text().splitlines()
    before = (ROOT / "components" / "images.py").read_text().splitlines()
    differing = [(old, new) for old, new in zip(before, changed, strict=True) if old != new]
    assert [new for _, new in differing] == [f'    "cuda": "registry.test/cuda@sha256:{DIGEST}",']


def test_the_commit_is_built_and_not_the_work_tree(checkout: Path) -> None:
    (checkout / "images" / "cuda" / "new.py").write_text("x = 1\n")
    engine = checkout.parent / "bin" / "docker"
    engine.write_text(
        engine.read_text() + 'for last; do :; done; [ "$1" != build ] || find "$last" -type f > "$0.context"\n'
    )
    assert build(checkout, "cuda").returncode == 0
    context = Path(f"{engine}.context").read_text()
    assert "images/cuda/Containerfile" in context and "new.py" not in context
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert f"COMMIT={head.stdout.strip()}" in (checkout.parent / "calls").read_text()


def test_errors_say_what_to_do(checkout: Path) -> None:
    unknown = build(checkout, "gpu")
    assert unknown.returncode == 1 and "no image 'gpu'; there are: runtime cuda tensorrt-llm" in unknown.stderr
    none = build(checkout, ENGINE="no-such-engine")
    assert none.returncode == 1 and "neither answers here: install one" in none.stderr


def test_what_runs_on_a_gpu_has_the_gpu_image() -> None:
    """One list says which steps ask for a GPU and which run in its image."""
    for step in STEP_SECTIONS:
        assert images.image_of(step) == images.IMAGES["cuda" if step in GPU_STEPS else "runtime"]
    assert images.image_of("pretrain") == images.IMAGES["cuda"] and images.image_of("gate") == images.IMAGES["runtime"]
    assert set(images.IMAGES) == {file.parent.name for file in (ROOT / "images").glob("*/Containerfile")}


def test_a_cluster_gets_them_unless_the_recipe_names_others() -> None:
    package = for_cluster(
        "design_and_train", PlatformConfig.model_validate({"steps": {"gate": {"image": "own@sha256:1"}}})
    )
    containers = [executor["container"] for executor in package.spec["deploymentSpec"]["executors"].values()]
    found = {step_of(container): container["image"] for container in containers}
    assert found.pop("gate") == "own@sha256:1"
    assert found == {step: images.image_of(step) for step in found} and len(found) == 15
