"""Imports go one way, and what is heavy stays where it belongs: read from the sources, nothing is imported."""

import ast
import graphlib
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "flashslm"

LEAVES = {"config", "data", "hardware", "infra", "statistics"}
SHARED_TABLES = {
    "flashslm.evaluation.task_metrics",
    "flashslm.models.operator_spec",
}  # without imports of their own: everyone may read them
BELOW_INFERENCE = {"inference", "models", "ops"}
MIDDLE = {"evaluation", "export", "profiling", "scaling", "search", "training"}

# What each subpackage of src/flashslm may import besides itself and the leaves.
ALLOWED: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "ops": set(),
    "models": {"ops"},
    "inference": {"models", "ops"},
    "evaluation": BELOW_INFERENCE,
    "export": BELOW_INFERENCE,
    "profiling": BELOW_INFERENCE,
    "training": BELOW_INFERENCE,
    "scaling": BELOW_INFERENCE | {"profiling", "training"},
    "search": BELOW_INFERENCE | {"profiling", "training"},
    "benchmarking": BELOW_INFERENCE | {"export", "profiling", "training"},
    "reporting": {"models"},
    "serving": BELOW_INFERENCE | {"export"},
    "steps": MIDDLE | BELOW_INFERENCE | {"reporting"},
    "experiments": MIDDLE | BELOW_INFERENCE | {"benchmarking", "steps"},
    "launch": MIDDLE | BELOW_INFERENCE | {"reporting", "steps"},
    "cli": MIDDLE | BELOW_INFERENCE | {"benchmarking", "experiments", "launch", "reporting", "serving", "steps"},
    "__main__": {"cli"},
    "__init__": set(),
}
KFP_SUBPACKAGES = {"launch"}
WITHOUT_TORCH = (
    "config/",
    "infra/",
    "launch/",
    "models/architecture.py",
    "models/accounting.py",
    "models/operator_spec.py",
)
HEAVY = {"kfp", "matplotlib", "mlflow", "torch", "transformers"}


@dataclass(frozen=True)
class Import:
    """`module` is dotted and absolute; `at_top` is false inside a function; `names` are what is taken from it."""

    module: str
    line: int
    at_top: bool
    names: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def subpackage(self) -> str:
        """The first part below this project's package; empty for the package itself and for other packages."""
        first, _, rest = self.module.partition(".")
        return rest.split(".")[0] if first == PACKAGE else ""


def imports_of(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        at_top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == PACKAGE:
                yield from (Import(f"{PACKAGE}.{alias.name}", node.lineno, at_top) for alias in node.names)
            else:
                yield Import(module, node.lineno, at_top, tuple(alias.name for alias in node.names))


def violations(root: Path) -> list[str]:
    """Every import of the project under `root` that goes the wrong way, as file:line: reason."""
    found = []
    for area, rule in (("src/flashslm", _package), ("components", _components), ("pipelines", _pipelines)):
        for file in sorted((root / area).rglob("*.py")):
            inner = file.relative_to(root / area).as_posix()
            if "/templates/" in inner:  # text that goes into an exported directory, not modules of this project
                continue
            for item in imports_of(file):
                reason = "relative import: write it in full" if item.module.startswith(".") else rule(inner, item)
                if reason:
                    found.append(f"{area}/{inner}:{item.line}: {reason}")
    return found


def _package(file: str, item: Import) -> str:
    subpackage = file.split("/")[0].removesuffix(".py")
    if subpackage not in ALLOWED:
        return f"subpackage '{subpackage}' has no rule: say in ALLOWED what it may import"
    if item.package in ("components", "pipelines"):
        return f"the package imports {item.package}"
    if item.module in SHARED_TABLES:
        return ""
    if f"{PACKAGE}.{file.removesuffix('.py').replace('/', '.')}" in SHARED_TABLES and item.package == PACKAGE:
        return f"{file} imports {item.module}"
    version = file == "__init__.py" or item.subpackage in ("", "__version__")
    if not version and item.subpackage not in ALLOWED[subpackage] | LEAVES | {subpackage}:
        return f"{subpackage} imports {item.subpackage}"
    if subpackage in LEAVES and item.subpackage and item.subpackage not in LEAVES:
        return f"{subpackage} imports {item.subpackage}"
    if item.package == "kfp" and subpackage not in KFP_SUBPACKAGES:
        return f"{subpackage} imports kfp"
    if item.package == "torch" and file.startswith(WITHOUT_TORCH):
        return f"{file} imports torch"
    if file.endswith("__init__.py") and item.package in HEAVY:
        return f"a package imports {item.package} when it is imported"
    return ""


def _components(file: str, item: Import) -> str:
    if item.package in sys.stdlib_module_names:
        return ""
    if file in ("images.py", "step_task.py"):  # read where a pipeline is compiled, and in no step
        return "" if item.module in (f"{PACKAGE}.config", "kfp") else f"{file} imports {item.module}"
    if item.at_top and item.package != "kfp" and item.module != "components.images":
        return f"a component imports {item.module} at its top: only its body runs in the step"
    if file == "end_run/component.py" and item.subpackage == "launch":  # it ends a run, as the local launcher does
        return ""
    if not item.at_top and item.subpackage != "steps":
        return f"a component's body imports {item.module}: call one function of {PACKAGE}.steps"
    return ""


def _pipelines(file: str, item: Import) -> str:
    allowed = item.package in sys.stdlib_module_names or item.package in ("kfp", "components")
    return "" if allowed else f"a pipeline imports {item.module}"


def test_imports_go_one_way() -> None:
    assert violations(ROOT) == []


def module_of(file: Path, source: Path) -> str:
    return ".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def circle(root: Path) -> list[str]:
    """Modules of the package that import each other in a ring, also by an import inside a function; [] if none do."""
    source = root / "src"
    files = {module_of(file, source): file for file in source.rglob("*.py") if "templates" not in file.parts}
    graph = {name: set(_modules(file, files.keys())) for name, file in files.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _modules(file: Path, known: Set[str]) -> Iterator[str]:
    """The modules that a file imports: of `from package import name` the one of that name, if there is one."""
    for item in imports_of(file):
        inner = [f"{item.module}.{name}" for name in item.names if f"{item.module}.{name}" in known]
        yield from inner or ({item.module} & known)


def test_no_modules_import_each_other() -> None:
    assert circle(ROOT) == []


def test_a_circle_is_seen_also_inside_a_function(tmp_path: Path) -> None:
    package = tmp_path / "src" / PACKAGE / "ops"
    package.mkdir(parents=True)
    (package / "a.py").write_text("from flashslm.ops import b")
    (package / "b.py").write_text("def f():\n    from flashslm.ops.c import g")
    (package / "c.py").write_text("import torch")
    assert circle(tmp_path) == []
    (package / "c.py").write_text("import flashslm.ops.a")
    assert set(circle(tmp_path)) == {f"flashslm.ops.{name}" for name in "abc"}


BAD = [
    ("src/flashslm/ops/a.py", "from flashslm.models.hybrid import HybridLM", "ops imports models"),
    ("src/flashslm/models/a.py", "def f():\n    import flashslm.training.trainer", "models imports training"),
    ("src/flashslm/data/a.py", "from flashslm import steps", "data imports steps"),
    ("src/flashslm/training/a.py", "from flashslm.search import study", "training imports search"),
    ("src/flashslm/evaluation/a.py", "from flashslm.export import parity", "evaluation imports export"),
    ("src/flashslm/search/a.py", "from flashslm.scaling import law", "search imports scaling"),
    ("src/flashslm/steps/a.py", "from flashslm.launch.local import launcher", "steps imports launch"),
    ("src/flashslm/steps/a.py", "import kfp.dsl", "steps imports kfp"),
    ("src/flashslm/steps/a.py", "from .run import run_step", "relative import"),
    ("src/flashslm/steps/a.py", "from components.gate.component import gate", "the package imports components"),
    ("src/flashslm/config/a.py", "import torch", "config/a.py imports torch"),
    ("src/flashslm/infra/storage/a.py", "def f():\n    from torch import nn", "infra/storage/a.py imports torch"),
    ("src/flashslm/launch/a.py", "import torch.distributed", "launch/a.py imports torch"),
    ("src/flashslm/models/architecture.py", "import torch", "models/architecture.py imports torch"),
    ("src/flashslm/models/__init__.py", "import torch", "a package imports torch"),
    ("src/flashslm/models/operator_spec.py", "from flashslm.ops import ssd", "imports flashslm.ops"),
    ("src/flashslm/config/a.py", "from flashslm.models.architecture import Architecture", "config imports models"),
    ("src/flashslm/fresh/a.py", "import json", "subpackage 'fresh' has no rule"),
    ("components/gate/component.py", "import boto3", "a component imports boto3 at its top"),
    ("components/gate/component.py", "from flashslm.steps.run import run_step", "at its top"),
    (
        "components/gate/component.py",
        "def gate():\n    from flashslm.infra import settings",
        "body imports",
    ),
    ("components/images.py", "from flashslm.steps.run import run_step", "images.py imports flashslm.steps.run"),
    ("pipelines/a/pipeline.py", "from flashslm.config import load", "a pipeline imports flashslm.config"),
]


@pytest.mark.parametrize(("file", "source", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_checker_sees(tmp_path: Path, file: str, source: str, reason: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{file}:") and reason in found


GOOD = [
    ("src/flashslm/config/a.py", "from flashslm.models.operator_spec import OPERATORS"),
    ("src/flashslm/models/hybrid.py", "import torch\nfrom flashslm.ops import ssd"),
    ("src/flashslm/training/a.py", "from flashslm.infra.storage.object_store import ObjectStore"),
    ("src/flashslm/search/a.py", "from flashslm.training.proxy import proxy_training"),
    ("src/flashslm/steps/a.py", "from flashslm.search import study\nimport torch"),
    ("src/flashslm/launch/a.py", "import kfp\nfrom flashslm import config"),
    ("components/gate/component.py", "import json\nfrom kfp import dsl\nfrom components.images import RUNTIME_IMAGE"),
    ("components/gate/component.py", "def gate():\n    import json\n    from flashslm.steps.run import run_step"),
    ("components/images.py", "from flashslm.config import GPU_STEPS"),
    ("pipelines/a/pipeline.py", "from kfp import dsl\nfrom components.gate.component import gate"),
]


@pytest.mark.parametrize(("file", "source"), GOOD, ids=[f"{file}-{i}" for i, (file, _) in enumerate(GOOD)])
def test_checker_allows(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []
