"""Run one step from the command line: manifests are files in a directory, one a name."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.launch.compiling import code_digest
from flashslm.steps.run import run_step


def resolve_settings(home: Path) -> Settings:
    """The environment's services if it names any, else the embedded stack, started if need be."""
    if os.environ.get("AWS_ENDPOINT_URL_S3") and os.environ.get("MLFLOW_TRACKING_URI"):
        return Settings.from_env()
    return embedded_stack.up(home)


def checkpoint_name(variant: Mapping[str, str]) -> str:
    return f"checkpoint-{variant['weight_norm']}-{variant['seed']}"


def run_single(
    step: str,
    recipe: RunConfig,
    inputs: Mapping[str, str | tuple[str, Sequence[str]]],
    outputs: Sequence[str] | Mapping[str, str],
    artifacts: Path,
    home: Path,
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `step` with manifests from `artifacts/<recipe name>/<name>.json`.

    `inputs` maps an input to the command that makes it, or to (command, file names) where the step collects several;
    `outputs` maps an output to its file name, or names both at once. Raises ValueError for a missing input.
    """
    directory = artifacts / recipe.name
    embedded_stack.use_home(home)
    os.environ.update(resolve_settings(home).as_env())
    named = outputs if isinstance(outputs, Mapping) else {name: name for name in outputs}
    result = run_step(
        step,
        config=recipe.for_step(step),
        inputs={name: _input(directory, name, source) for name, source in inputs.items()},
        outputs={name: str(directory / f"{file}.json") for name, file in named.items()},
        parameters=dict(parameters or {}) | {"code_digest": code_digest()},
    )
    return result | {name: str(directory / f"{file}.json") for name, file in named.items()}


def _input(directory: Path, name: str, source: str | tuple[str, Sequence[str]]) -> str | list[str]:
    if isinstance(source, str):
        return _existing(directory / f"{name}.json", source)
    command, files = source
    return [_existing(directory / f"{file}.json", command) for file in files]


def _existing(path: Path, command: str) -> str:
    if not path.is_file():
        raise ValueError(f"'{path}' not found: run `flashslm {command}` with the same --config and --artifacts first")
    return str(path)
