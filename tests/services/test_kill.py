"""A short form of benchmarks/kill.py: promotions killed at random moments, with the services in half of the rounds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.services


def rounds(kills: int, directory: Path) -> dict[str, Any]:
    """The record after `kills` rounds of killed steps, those of an earlier call included."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", str(kills), "--seed", "3"]
    command += ["--kinds", "promotion", "step", "--directory", str(directory), "--output", str(directory / "kill.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads((directory / "kill.json").read_text()))


def test_a_promotion_killed_anywhere_is_whole_and_its_hook_is_called(tmp_path: Path) -> None:
    assert rounds(3, tmp_path)["kills"] == 3
    kills, record = 0, dict[str, Any]()
    # Moments are drawn over the usual duration: where it was long when it was measured, most of them come too late.
    while not record or promotions_met(record) < 2:
        kills += 8
        record = rounds(kills, tmp_path)
        assert record["kills"] == kills <= 64 and record["problems"] == {}
    promotion, step = record["outcomes"]["promotion"], record["outcomes"]["step"]
    assert promotion["rounds"] == step["rounds"] == kills // 2
    assert promotion["services killed: none"] == step["services killed: none"] == kills // 4


def promotions_met(record: dict[str, Any]) -> int:
    return int(record["outcomes"]["promotion"].get("killed before its end", 0))
