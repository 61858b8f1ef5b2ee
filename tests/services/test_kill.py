"""A short form of benchmarks/kill.py: promotions killed at random moments, with the services in half of the rounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.services


def test_a_promotion_killed_anywhere_is_whole_and_its_hook_is_called(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", "10", "--seed", "3"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "kill.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / "kill.json").read_text())
    assert record["kills"] == 10 and record["problems"] == {} and record["promotions_heard_of"] == 13
    assert record["outcomes"]["services killed: none"] == 5 and record["outcomes"]["killed before its end"] >= 5
