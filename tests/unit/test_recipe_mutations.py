"""The recipe reader is total: any bytes give a recipe or messages with a place."""

import json
import subprocess
import sys
from pathlib import Path

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_any_recipe_gives_values_or_messages_with_a_place() -> None:
    """10,000 mutations of the shipped recipes, each within 2 s of CPU time and 500 MB."""
    command = [sys.executable, str(Path(__file__).with_name("recipe_mutations.py")), "0", "10000", *map(str, RECIPES)]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert result["failures"] == [] and result["inputs"] == 10_000
    assert result["peak_bytes"] < 500_000_000
