"""From pipelines/<name>/pipeline.py to the YAML that every runner takes, and the arguments a recipe gives it."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import flashslm
from flashslm.config import RunConfig
from flashslm.hardware import machine_digest
from flashslm.infra.storage.long_sections import shortened
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.launch.processes import LaunchError

PACKAGE = Path(flashslm.__file__).parent


def project_root(start: Path | None = None) -> Path:
    """The directory that holds pipelines/ and components/: here, above here, or the checkout this package runs from."""
    here = (start or Path.cwd()).resolve()
    for directory in (here, *here.parents, PACKAGE.parents[1]):
        if (directory / "pipelines").is_dir() and (directory / "components").is_dir():
            return directory
    raise LaunchError(f"no pipelines/ and components/ in '{here}' or above it: run this in a checkout of the project")


def pipeline_names(root: Path) -> list[str]:
    return sorted(file.parent.name for file in (root / "pipelines").glob("*/pipeline.py"))


def pipeline_file(name: str, root: Path) -> Path:
    """pipelines/<name>/pipeline.py; LaunchError lists the names there are."""
    names = pipeline_names(root)
    if name not in names:
        raise LaunchError(f"pipeline '{name}' is not in {root / 'pipelines'}; there are: {', '.join(names) or 'none'}")
    return root / "pipelines" / name / "pipeline.py"


def load_pipeline(name: str, root: Path) -> Any:
    """The pipeline function `name`; LaunchError where there is none."""
    file = pipeline_file(name, root)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    # By its file and not by its name: another checkout's module of that name may be loaded already.
    spec = importlib.util.spec_from_file_location(f"pipelines.{name}.pipeline", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def compile_pipeline(name: str, output: Path, *, root: Path | None = None, retries: int | None = None) -> Path:
    """Write the pipeline's YAML: the same bytes for the same sources. `retries` replaces every step's own number."""
    from kfp.compiler import Compiler

    output.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(load_pipeline(name, root or project_root()), str(output))
    if retries is not None:
        documents = list(yaml.safe_load_all(output.read_text(encoding="utf-8")))
        _set_retries(documents[0], retries)
        output.write_text(yaml.safe_dump_all(documents, sort_keys=True), encoding="utf-8")
    return output


def _set_retries(spec: dict[str, Any], retries: int) -> None:
    for component in (spec["root"], *spec["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            if retries and "retryPolicy" in task:
                task["retryPolicy"]["maxRetryCount"] = retries
            elif not retries:
                task.pop("retryPolicy", None)


def pipeline_arguments(config: RunConfig, digest: str, source: str, device: str = "") -> dict[str, Any]:
    """Arguments of every pipeline: the sections of the recipe, and the digests of code, source and device.
    `arguments_for` picks those of one.

    `device` stands for a cluster's hardware that the latency table is measured on: this machine if it is empty.
    """
    return config.as_parameters() | {
        "code_digest": digest,
        "image": "",  # none on this machine; a cluster's package has its own
        "source_digest": source,
        "device_digest": device or machine_digest(),
    }


def with_short_sections(arguments: dict[str, Any], open_store: Callable[[], ObjectStore]) -> dict[str, Any]:
    """Arguments whose long sections (a recipe may name thousands of paths) are objects in the store."""
    return {k: shortened(v, open_store) if isinstance(v, dict) else v for k, v in arguments.items()}


def arguments_for(spec: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Those of the `known` arguments that a compiled pipeline declares; LaunchError names what it needs besides."""
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    missing = [name for name, value in declared.items() if name not in known and not value.get("isOptional")]
    if missing:
        name = spec["pipelineInfo"]["name"]
        raise LaunchError(f"pipeline '{name}' needs {', '.join(missing)}: a recipe gives only {', '.join(known)}")
    return {name: known[name] for name in declared if name in known}


def code_digest() -> str:
    """A sha256 over the package's sources and templates and, in a checkout, the components: part of every cache key."""
    trees = [PACKAGE]
    if (components := PACKAGE.parents[1] / "components").is_dir():
        trees.append(components)
    return tree_digest(trees)


def tree_digest(trees: list[Path]) -> str:
    """A sha256 over the relative path and the bytes of every file; compiled Python and hidden files do not count."""
    total = hashlib.sha256()
    for tree in trees:
        for file in sorted(path for path in tree.rglob("*") if path.is_file() and _is_source(path.relative_to(tree))):
            name = f"{tree.name}/{file.relative_to(tree).as_posix()}"
            total.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _is_source(path: Path) -> bool:
    return not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
