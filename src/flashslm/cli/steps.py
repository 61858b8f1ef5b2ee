"""Commands that run one step (or one stage) of the pipeline."""

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
    load_recipe,
    show,
)


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
        from flashslm.launch.local.single_step import run_single

        show(run_single(step, load_recipe(config, overrides), inputs, outputs, artifacts, home), as_json)

    return command


def search(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Search the architecture. Start it in several shells to add workers: they share the study."""
    from flashslm.launch.local.single_step import run_single

    recipe = load_recipe(config, overrides)
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
    from flashslm.launch.local.single_step import checkpoint_name, run_single

    recipe = load_recipe(config, overrides)
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
    from flashslm.launch.local.single_step import checkpoint_name, run_single

    recipe = load_recipe(config, overrides)
    names = [checkpoint_name(variant) for variant in recipe.variants()]
    inputs: dict[str, Any] = {"dataset": "prepare-data", "checkpoints": ("pretrain", names)}
    show(run_single("compare_weight_norm", recipe, inputs, ("ablation", "chosen"), artifacts, home), as_json)
