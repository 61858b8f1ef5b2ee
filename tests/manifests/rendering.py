"""The overlays as kustomize renders them, with the kubectl that a Python package brings: no server, no network."""

import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from manifests.pin_images import IN_MANIFESTS, OUTPUT, component

Document = dict[str, Any]

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
KUBECTL = Path(sys.executable).parent / "kubectl"


def pinned() -> dict[str, str]:
    """Every image by a digest that no registry has."""
    return {name: f"registry.test/{name}@sha256:{number:064x}" for number, name in enumerate(IN_MANIFESTS, start=1)}


@cache
def rendered(overlay: str) -> tuple[Document, ...]:
    """Every object of an overlay whose images are pinned."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(shutil.copytree(MANIFESTS, Path(directory) / "manifests"))
        file = root / OUTPUT.relative_to(MANIFESTS)
        file.parent.mkdir(exist_ok=True)
        file.write_text(component(pinned()), encoding="utf-8")
        done = kustomize(root / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def kustomize(overlay: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KUBECTL, "kustomize", overlay], check=False, capture_output=True, text=True, timeout=120)


def sources() -> list[Path]:
    return sorted(MANIFESTS.rglob("*.yaml"))


def key(document: Document) -> tuple[str, str, str]:
    """Kind, namespace, name."""
    return document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"]


def find(documents: tuple[Document, ...], kind: str, name: str, namespace: str = "") -> Document:
    (found,) = [d for d in documents if key(d) == (kind, namespace, name)]
    return found


def pods(document: Document) -> list[Document]:
    """Pod templates anywhere inside an object: metadata and spec."""
    found: list[Document] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            spec = value.get("spec")
            if isinstance(spec, dict) and isinstance(spec.get("containers"), list):
                found.append(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    return found


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
