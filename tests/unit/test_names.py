"""One name is one thing: no two public classes or type aliases of the package share a name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "flashslm"
TYPES = {"TypeVar", "ParamSpec", "NewType"}


def defined_names(file: Path) -> Iterator[str]:
    """Public classes, and aliases such as `Step = Callable[[], None]`; not type variables."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            called = node.value.func if isinstance(node.value, ast.Call) else None
            is_alias = not name.isupper() and name[:1].isupper() and not name.endswith("Option")
            if is_alias and not (isinstance(called, ast.Name) and called.id in TYPES):
                yield name


def test_a_name_is_defined_once() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        if "templates" not in file.parts:  # text of exported directories
            for name in defined_names(file):
                if not name.startswith("_"):
                    homes[name].append(file.relative_to(SOURCE).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
