"""Commands on the whole pipeline: run, compile, doctor."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flashslm.cli.options import HOME, PIPELINES, SERVICES, HomeOption, JsonOption, PipelineOption, writable_file
from flashslm.cli.output import AS_IT_IS, console, show
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, load_recipe, located_here
from flashslm.steps.recipe_checks import problems, problems_before_a_run_here

if TYPE_CHECKING:
    from flashslm.infra.stack.doctor import Check


def register(app: typer.Typer) -> None:
    app.command(cls=RecipeCommand, rich_help_panel=PIPELINES)(run)
    app.command("compile", cls=RecipeCommand, rich_help_panel=PIPELINES)(compile_command)
    app.command(rich_help_panel=SERVICES)(doctor)


def run(
    config: ConfigOption,
    overrides: Overrides = None,
    pipeline: PipelineOption = "design_and_train",
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Run a whole pipeline on this machine, from the compiled YAML."""
    from flashslm.launch.local.full_run import run_pipeline

    recipe = located_here(load_recipe(config, overrides, problems_before_a_run_here), config)
    outcome = run_pipeline(recipe, home=home, quiet=as_json, pipeline=pipeline)
    show(outcome.facts(), as_json)
    raise typer.Exit(outcome.local.exit_code)


def compile_command(
    overrides: Overrides = None,
    pipeline: PipelineOption = "design_and_train",
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=writable_file, help="The YAML file to write.")
    ] = Path("pipeline.yaml"),
    config: Annotated[Path | None, typer.Option("--config", help="Add the recipe's platform section.")] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write Pipeline and PipelineVersion objects.")
    ] = False,
) -> None:
    """Compile a pipeline to the YAML that runs here and, with --config, to what a cluster takes."""
    from flashslm.launch.compiling import compile_pipeline
    from flashslm.launch.kfp.cluster_pass import for_cluster

    if config:
        platform = load_recipe(config, overrides, problems).platform
        package = for_cluster(pipeline, platform)
        output.parent.mkdir(parents=True, exist_ok=True)
        text = package.manifests(platform.namespace) if kubernetes else package.text()
        output.write_text(text, encoding="utf-8")
    elif kubernetes or overrides:
        raise ValueError("--kubernetes and overrides need --config: a recipe whose platform section says how steps run")
    else:
        compile_pipeline(pipeline, output)
    console.print(f"wrote {output}", **AS_IT_IS)


def doctor(
    home: HomeOption = HOME,
    as_json: JsonOption = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Also measure the gradients of this machine's kernels.")] = False,
) -> None:
    """Try every service with your settings: object store, MLflow, registry, disk."""
    from flashslm.infra.stack.doctor import diagnose
    from flashslm.infra.stack.services import existing_settings

    checks = diagnose(existing_settings(home)) + (_check_gradients() if gpu else [])
    if as_json:
        print(json.dumps({"checks": [check.model_dump() for check in checks]}))
    else:
        for check in checks:
            mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
            text = escape("; ".join(filter(None, (check.detail, check.hint))))
            Console().print(f"{mark} {check.name:<20} {check.time_ms:8.1f} ms  {text}", highlight=False, soft_wrap=True)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _check_gradients() -> "list[Check]":
    """One check for each operation that training takes on CUDA."""
    from flashslm.hardware import pick_device
    from flashslm.infra.stack.doctor import Check
    from flashslm.ops.gradient_check import TOLERANCE, check_gradients

    if pick_device("auto") != "cuda":
        hint = "run doctor --gpu where the steps run"
        return [Check(name="gradients", ok=False, time_ms=0.0, detail="this machine has no usable GPU", hint=hint)]
    return [
        Check(
            name=f"gradient {e.operation}",
            ok=e.passed,
            time_ms=e.time_ms,
            detail=e.problem or f"{e.relative:.2%} off the naive backend in fp32, allowed {TOLERANCE:.0%}",
            hint="" if e.passed else f"take other versions of its libraries, or set kernels.{e.operation} to torch's",
        )
        for e in check_gradients()
    ]
