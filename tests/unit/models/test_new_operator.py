"""CONTRIBUTING's "Add an operator", followed on a copy of the package: a layer, its row, its export names, no more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TOY = Path(__file__).parent / "new_operator"
ROW = """
    "T": OperatorSpec(
        name="moving_average",
        label="moving average",
        color="#111827",
        layer="flashslm.models.moving_average:MovingAverage",
        is_mixer=True,
        parameters=lambda a: 2 * a.hidden_size**2,
        state_shapes=lambda a: {"average": (a.hidden_size,)},
        state_flops=3,
        reads=("in_proj",),
        writes=("out_proj",),
    ),
}
OPERATORS ="""
NAMES = """
LAYER_TYPES["T"] = "moving_average"
_LAYERS["T"] = (
    ("norm.weight", "input_layernorm.weight", "h"),
    ("mixer.in_proj.weight", "moving_average.in_proj.weight", "h h"),
    ("mixer.out_proj.weight", "moving_average.out_proj.weight", "h h"),
)
"""


def test_a_new_operator_needs_its_layer_its_row_and_its_export_names(tmp_path: Path) -> None:
    package = shutil.copytree(ROOT / "src" / "flashslm", tmp_path / "flashslm")
    shutil.copy(TOY / "moving_average.py", package / "models")
    table = package / "models" / "operator_spec.py"
    source = table.read_text(encoding="utf-8")
    assert source.count("\n}\nOPERATORS =") == 1
    table.write_text(source.replace("\n}\nOPERATORS =", ROW), encoding="utf-8")
    with (package / "export" / "names.py").open("a", encoding="utf-8") as file:
        file.write(NAMES)
    done = subprocess.run(
        [sys.executable, str(TOY / "journey.py"), str(ROOT / "configs" / "smoke.yaml"), "T", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "the journey is done"
