"""Commands that run one step (or one stage) of the pipeline."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from flashslm.cli.common import (
    ARTIFACTS,
    HOME,
    ArtifactsOption,
    ConfigOption,
    HomeOption,
    JsonOption,
    Overrides,
    show,
)
from flashslm.config import STEP_SECTIONS, RunConfig
from flashslm.config.file import load
from flashslm.steps.recipe_checks import problems


def register(app: typer.Typer) -> None:
    app.command("prepare-data", help="Text to tokenizer and token shards.")(
        step_command("prepare_data", {}, ("dataset",))
    )
    app.command("profile", help="Measure the latency table on this device.")(
        step_command("profile_latency", {"dataset": "prepare-data"}, ("latency_table",))
    )
    app.command("fit-scaling-law", help="Fit the depth-width law and choose under the latency budget.")(
        step_command("fit_scaling_law", {"dataset": "prepare-data", "latency_table": "profile"}, ("scaling_law",))
    )
    app.command("evaluate", help="Perplexity, bits per byte, needle retrieval, lm-eval tasks.")(
        step_command("evaluate", {"dataset": "prepare-data", "chosen": "compare-weight-norm"}, ("evaluation",))
    )
    app.command("export", help="Hugging Face directory, TensorRT-LLM bundle, parity proof, measured latency.")(
        step_command(
            "export_model",
            {"dataset": "prepare-data", "chosen": "compare-weight-norm", "latency_table": "profile"},
            ("exported",),
        )
    )
    app.command()(search)
    app.command()(pretrain)
    app.command("compare-weight-norm")(compare_weight_norm)


def step_command(step: str, inputs: dict[str, str], outputs: tuple[str, ...]) -> Any:
    """Make the command of a step whose inputs and outputs are single manifests (input name -> producing command)."""

    def command(
        config: ConfigOption,
        overrides: Overrides = None,
        artifacts: ArtifactsOption = ARTIFACTS,
        home: HomeOption = HOME,
        as_json: JsonOption = False,
    ) -> None:
        show(run_single(step, load(config, overrides, checks=problems), inputs, outputs, artifacts, home), as_json)

    return command


def search(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Search the architecture. Start it in several shells to add workers: they share the study."""
    recipe = load(config, overrides, checks=problems)
    inputs = {"dataset": "prepare-data", "latency_table": "profile", "scaling_law": "fit-scaling-law"}
    run_single("search_architecture", recipe, inputs, (), artifacts, home)
    show(run_single("select_architecture", recipe, inputs, ("architecture",), artifacts, home), as_json)


def pretrain(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Train every variant of the recipe (weight norm on and off, each seed), resuming what was begun."""
    recipe = load(config, overrides, checks=problems)
    inputs = {"dataset": "prepare-data", "architecture": "search"}
    results = {}
    for variant in recipe.variants():
        name = checkpoint_name(variant)
        outputs = {"checkpoint": name}
        results[name] = run_single("pretrain", recipe, inputs, outputs, artifacts, home, parameters=variant)
    show(results, as_json)


def compare_weight_norm(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare the pretraining runs; choose the checkpoint that goes on."""
    recipe = load(config, overrides, checks=problems)
    names = [checkpoint_name(variant) for variant in recipe.variants()]
    inputs: dict[str, Any] = {"dataset": "prepare-data", "checkpoints": ("pretrain", names)}
    show(run_single("compare_weight_norm", recipe, inputs, ("ablation", "chosen"), artifacts, home), as_json)


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
    from flashslm.infra.stack import embedded_stack
    from flashslm.infra.stack.services import resolve_settings
    from flashslm.launch.compiling import code_digest
    from flashslm.steps.run import run_step

    directory = artifacts / recipe.name
    embedded_stack.use_home(home)
    os.environ.update(resolve_settings(home).as_env())
    if "gate" in STEP_SECTIONS[step]:
        os.environ.update(recipe.gate.promotion_hook.environment(os.environ))
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
