"""Every script of benchmarks/ can be started: what it imports from this project is there."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"
ELSEWHERE = {"cuda"}  # packages of a machine with a GPU


@pytest.mark.parametrize("script", sorted(file.stem for file in FOLDER.glob("*.py")))
def test_it_can_be_imported(script, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # where Python looks when a script is started
    try:
        importlib.import_module(f"benchmarks.{script}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ELSEWHERE:
            raise
        pytest.skip(f"{error.name} is not installed")
