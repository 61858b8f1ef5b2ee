"""Bounds on the size of the sources: a function fits on a screen."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "tests", "components", "pipelines", "plugins", "manifests", "benchmarks")
LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def test_no_function_and_no_file_is_too_long() -> None:
    found = []
    for file in (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))):
        text, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
        if len(text.splitlines()) > LONGEST_FILE:
            found.append(f"{name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                found += [f"{name}:{node.lineno} {node.name}: {length} lines"] if length > LONGEST_FUNCTION else []
    assert found == []
