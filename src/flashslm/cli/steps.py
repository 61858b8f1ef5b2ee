"""Commands that run one step (or one stage) of the pipeline."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from flashslm.cli.options import ARTIFACTS, HOME, STEPS, ArtifactsOption, HomeOption, JsonOption
from flashslm.cli.output import show
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, warn_of_no_effect
from flashslm.config import STEP_SECTIONS, RunConfig
from flashslm.config.file import load
from flashslm.steps.recipe_checks import problems, problems_before_a_run_here


@dataclass(frozen=True)
class StepRunner:
    """A recipe, and where its commands keep the manifests of inputs and outputs and the services' data."""

    recipe: RunConfig
    artifacts: Path
    home: Path

    def run(
        self,
        step: str,
        inputs: Mapping[str, str | tuple[str, Sequence[str]]],
        outputs: Sequence[str] | Mapping[str, str],
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run `step` with manifests from `artifacts/<recipe name>/<name>.json`.

        `inputs` maps an input to the command that makes it, or to (command, file names) where the step collects
        several; `outputs` maps an output to its file name, or names both at once. Raises ValueError if one is missing.
        """
        from flashslm.infra.settings import FROM_PLATFORM
        from flashslm.infra.stack import embedded_stack
        from flashslm.infra.stack.services import resolve_settings
        from flashslm.launch.compiling import code_digest
        from flashslm.steps.run import run_step

        directory = self.artifacts / self.recipe.name
        embedded_stack.use_home(self.home)
        of_platform = {field: getattr(self.recipe.platform, field) for field in FROM_PLATFORM}
        settings = resolve_settings(self.home).model_copy(update=of_platform)
        os.environ.update(settings.as_env())
        if "gate" in STEP_SECTIONS[step]:
            os.environ.update(self.recipe.gate.promotion_hook.environment(os.environ))
        named = outputs if isinstance(outputs, Mapping) else {name: name for name in outputs}
        written = {name: str(directory / f"{file}.json") for name, file in named.items()}
        result = run_step(
            step,
            config=self.recipe.for_step(step),
            inputs={name: _input(directory, name, source) for name, source in inputs.items()},
            outputs=written,
            parameters=dict(parameters or {}) | {"code_digest": code_digest()},
        )
        return result | written


Work = Callable[[StepRunner], dict[str, Any]]


def register(app: typer.Typer) -> None:
    for name, work, text in COMMANDS:
        checks = problems_before_a_run_here if name == "evaluate" else problems  # to look tasks up takes seconds
        app.command(name, help=text, cls=RecipeCommand, rich_help_panel=STEPS)(command(work, checks))


def command(work: Work, checks: Callable[[RunConfig], list[str]] = problems) -> Callable[..., None]:
    """The command that does this work for a recipe and shows its result."""

    def run(
        config: ConfigOption,
        overrides: Overrides = None,
        artifacts: ArtifactsOption = ARTIFACTS,
        home: HomeOption = HOME,
        as_json: JsonOption = False,
    ) -> None:
        recipe = load(config, overrides, checks=checks)
        warn_of_no_effect(recipe)
        show(work(StepRunner(recipe, artifacts, home)), as_json)

    return run


def one_step(step: str, inputs: Mapping[str, str], output: str) -> Work:
    """The work of a step whose inputs and output are single manifests (input name -> producing command)."""
    return lambda runner: runner.run(step, inputs, (output,))


def prepare_data(runner: StepRunner) -> dict[str, Any]:
    """Plan, the pieces of every worker one after the other, and the data set of them."""
    runner.run("plan_data", {}, ("plan",))
    workers = [f"pieces-{worker}" for worker in range(runner.recipe.data.workers)]
    for worker, pieces in enumerate(workers):
        runner.run("prepare_data", {"plan": "prepare-data"}, {"pieces": pieces}, {"worker": str(worker)})
    return runner.run("merge_data", {"plan": "prepare-data", "pieces": ("prepare-data", workers)}, ("dataset",))


def search(runner: StepRunner) -> dict[str, Any]:
    """Work on the study until it is finished, and read off its result."""
    inputs = {"dataset": "prepare-data", "latency_table": "profile", "scaling_law": "fit-scaling-law"}
    runner.run("search_architecture", inputs, ())
    return runner.run("select_architecture", inputs, ("architecture",))


def pretrain(runner: StepRunner) -> dict[str, Any]:
    """The result of each variant by the name of its checkpoint."""
    inputs = {"dataset": "prepare-data", "architecture": "search"}
    return {
        name: runner.run("pretrain", inputs, {"checkpoint": name}, variant)
        for name, variant in _checkpoints(runner.recipe).items()
    }


def compare_weight_norm(runner: StepRunner) -> dict[str, Any]:
    """The comparison of all variants."""
    checkpoints = ("pretrain", list(_checkpoints(runner.recipe)))
    return runner.run("compare_weight_norm", {"checkpoints": checkpoints}, ("ablation", "chosen"))


COMMANDS: tuple[tuple[str, Work, str], ...] = (
    ("prepare-data", prepare_data, "Text to tokenizer and token shards."),
    (
        "profile",
        one_step("profile_latency", {"dataset": "prepare-data"}, "latency_table"),
        "Measure the latency table on this device.",
    ),
    (
        "fit-scaling-law",
        one_step("fit_scaling_law", {"dataset": "prepare-data", "latency_table": "profile"}, "scaling_law"),
        "Fit the depth-width law and choose under the latency budget.",
    ),
    (
        "evaluate",
        one_step("evaluate", {"dataset": "prepare-data", "chosen": "compare-weight-norm"}, "evaluation"),
        "Perplexity, bits per byte, needle retrieval, lm-eval tasks.",
    ),
    (
        "export",
        one_step(
            "export_model",
            {"dataset": "prepare-data", "chosen": "compare-weight-norm", "latency_table": "profile"},
            "exported",
        ),
        "Hugging Face directory, TensorRT-LLM bundle, parity proof, measured latency.",
    ),
    (
        "search",
        search,
        "Search the architecture. Start it in several shells to add workers: they share the study.",
    ),
    (
        "pretrain",
        pretrain,
        "Train every variant of the recipe (weight norm on and off, each seed), resuming what was begun.",
    ),
    (
        "compare-weight-norm",
        compare_weight_norm,
        "Compare the pretraining runs; choose the checkpoint to evaluate and export.",
    ),
)


def _checkpoints(recipe: RunConfig) -> dict[str, dict[str, str]]:
    """The file name of each variant's checkpoint, and the variant."""
    return {f"checkpoint-{variant['weight_norm']}-{variant['seed']}": variant for variant in recipe.variants()}


def _input(directory: Path, name: str, source: str | tuple[str, Sequence[str]]) -> str | list[str]:
    if isinstance(source, str):
        return _existing(directory / f"{name}.json", source)
    command, files = source
    return [_existing(directory / f"{file}.json", command) for file in files]


def _existing(path: Path, command: str) -> str:
    if not path.is_file():
        raise ValueError(f"'{path}' not found: run `flashslm {command}` with the same --config and --artifacts first")
    return str(path)
