"""A refactoring changes no bit of a training: its losses are those of a file, which `make golden-losses` writes.

Bits depend on the instructions that a processor has, so the losses are computed in a process of its own with those that
every x86-64 processor has, on one thread. Another version of torch, or its libraries on another maker's processor, may
round otherwise: then the losses are only close.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden"
RECIPES = ("smoke",)
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}


def computed(recipe: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.training.golden_losses", f"configs/{recipe}.yaml"],
        cwd=ROOT,
        env=os.environ | PORTABLE | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the file has the bits of x86-64 processors")
@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_the_golden_ones(recipe: str) -> None:
    found, file = computed(recipe), GOLDEN / f"losses_{recipe}.json"
    if os.environ.get("FLASHSLM_UPDATE_GOLDEN"):
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(file.read_text(encoding="utf-8"))
    same_rounding = all(found[key] == golden[key] for key in ("torch", "arithmetic"))
    for variant, losses in golden["weight_norm"].items():
        values = [float.fromhex(loss) for loss in found["weight_norm"][variant]]
        expected = [float.fromhex(loss) for loss in losses]
        assert values == (expected if same_rounding else pytest.approx(expected, rel=1e-4))
        assert values[-2] < values[0]
