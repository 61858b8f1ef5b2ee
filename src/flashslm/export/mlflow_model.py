"""What makes an exported object a model of MLflow, which then loads it without this project (MLflow, "MLmodel" format).

Beside `huggingface/` lie MLmodel, an input example, the requirements, and the code that loads it. The same bytes for
every model, without times and ids: the object is addressed by its content.
"""

import json
import shutil
from pathlib import Path

import yaml

from flashslm.export.files import write_json
from flashslm.export.model_code import TEMPLATES

LOADER = "nemotron_flash_pyfunc"
_REQUIREMENTS = ("mlflow>=3.17,<3.19", "torch>=2.11", "transformers>=5.0,<6")
_PYTHON = "3.11.0"
_EXAMPLE = {"columns": ["text"], "data": [["def main():"]]}
_SIGNATURE = {
    "inputs": [{"type": "string", "name": "text", "required": True}],
    "outputs": [{"type": "string", "required": True}],
    "params": [{"name": "max_new_tokens", "type": "long", "default": 32, "shape": None}],
}
_MODEL = {
    "flavors": {
        "python_function": {
            "loader_module": LOADER,
            "code": "code",
            "data": "huggingface",
            "python_version": _PYTHON,
            "env": {"virtualenv": "python_env.yaml"},
        }
    },
    "mlflow_version": "3.17.0",
    "saved_input_example_info": {
        "artifact_path": "input_example.json",
        "type": "dataframe",
        "pandas_orient": "split",
    },
    "signature": {name: json.dumps(columns) for name, columns in _SIGNATURE.items()},
}


def write_mlflow_model(directory: Path) -> None:
    """Add the files to an object whose model is in `directory`/huggingface."""
    (directory / "code").mkdir()
    shutil.copyfile(TEMPLATES / f"{LOADER}.py", directory / "code" / f"{LOADER}.py")
    write_json(directory / "input_example.json", _EXAMPLE)
    (directory / "MLmodel").write_text(yaml.safe_dump(_MODEL), encoding="utf-8")
    (directory / "requirements.txt").write_text("\n".join(_REQUIREMENTS) + "\n", encoding="utf-8")
    environment = {"python": _PYTHON, "dependencies": ["-r requirements.txt"]}
    (directory / "python_env.yaml").write_text(yaml.safe_dump(environment), encoding="utf-8")
