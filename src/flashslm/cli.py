"""The `flashslm` command: one sub-command a step and a launch; it parses, calls and prints."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flashslm import config_file
from flashslm.config import RunConfig

if TYPE_CHECKING:
    from flashslm.platform.stack import StackStatus

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Design, train, evaluate and deploy latency-optimal hybrid small language models.",
)
stack_app = typer.Typer(no_args_is_help=True, help="The embedded S3 and MLflow of this machine.")
models_app = typer.Typer(no_args_is_help=True, help="The model registry.")
app.add_typer(stack_app, name="stack")
app.add_typer(models_app, name="models")
console = Console(stderr=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The recipe, for example configs/demo.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides such as training.steps=50.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
HomeOption = Annotated[Path, typer.Option("--home", help="Where the embedded stack and caches live.")]
ArtifactsOption = Annotated[Path, typer.Option("--artifacts", help="Where manifests of inputs and outputs live.")]

HOME = Path(".flashslm")
ARTIFACTS = Path("artifacts")


def main() -> None:
    """Entry point: an error is one clear message and exit code 1; FLASHSLM_DEBUG=1 shows the traceback."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("FLASHSLM_DEBUG"):
            raise
        console.print("[bold red]error:[/]", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def load_recipe(path: Path, overrides: list[str] | None) -> RunConfig:
    from flashslm.steps.recipe import problems

    return config_file.load(path, overrides, checks=problems)


def show(result: Any, as_json: bool) -> None:
    """One JSON object, or aligned lines for a person."""
    if as_json:
        print(json.dumps(result, default=str))
        return
    out = Console()
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        shown = f"{value:.5g}" if isinstance(value, float) else value
        out.print(f"{key:<{width}}  {shown}", highlight=False, markup=False, soft_wrap=True)


def show_stack(status: "StackStatus", as_json: bool) -> None:
    if as_json:
        print(status.model_dump_json())
        return
    if not status.services:
        Console().print(f"no stack in '{status.home}': start it with `flashslm stack up`", highlight=False)
    for service in status.services:
        state = "healthy" if service.healthy else "not answering" if service.running else "stopped"
        Console().print(
            f"{service.name:<8}{state:<15}{service.address}  log {service.log}", highlight=False, soft_wrap=True
        )


@app.command()
def run(
    config: ConfigOption, overrides: Overrides = None, home: HomeOption = HOME, as_json: JsonOption = False
) -> None:
    """Run the whole design_and_train pipeline on this machine, from the compiled YAML."""
    from flashslm.launch.run import run_pipeline

    outcome = run_pipeline(load_recipe(config, overrides), home=home, quiet=as_json)
    show(outcome.facts(), as_json)
    raise typer.Exit(outcome.local.exit_code)


@app.command("compile")
def compile_command(
    pipeline: Annotated[str, typer.Option(help="Directory name under pipelines/.")] = "design_and_train",
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")] = Path("pipeline.yaml"),
) -> None:
    """Compile a pipeline to the YAML that runs on a cluster and here."""
    from flashslm.launch.compiling import compile_pipeline

    compile_pipeline(pipeline, output)
    console.print(f"wrote {output}", highlight=False)


def step_command(step: str, inputs: dict[str, str], outputs: tuple[str, ...]) -> Any:
    """Make the command of a step whose inputs and outputs are single manifests (input name -> producing command)."""

    def command(
        config: ConfigOption,
        overrides: Overrides = None,
        artifacts: ArtifactsOption = ARTIFACTS,
        home: HomeOption = HOME,
        as_json: JsonOption = False,
    ) -> None:
        from flashslm.launch.single import run_single

        show(run_single(step, load_recipe(config, overrides), inputs, outputs, artifacts, home), as_json)

    return command


app.command("prepare-data", help="Text to tokenizer and token shards.")(step_command("prepare_data", {}, ("dataset",)))
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


@app.command()
def search(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Search the architecture. Start it in several shells to add workers: they share the study."""
    from flashslm.launch.single import run_single

    recipe = load_recipe(config, overrides)
    inputs = {"dataset": "prepare-data", "latency_table": "profile", "scaling_law": "fit-scaling-law"}
    run_single("search_architecture", recipe, inputs, (), artifacts, home)
    show(run_single("select_architecture", recipe, inputs, ("architecture",), artifacts, home), as_json)


@app.command()
def pretrain(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Train every variant of the recipe (weight norm on and off, each seed), resuming what was begun."""
    from flashslm.launch.single import checkpoint_name, run_single

    recipe = load_recipe(config, overrides)
    inputs = {"dataset": "prepare-data", "architecture": "search"}
    results = {}
    for variant in recipe.variants():
        name = checkpoint_name(variant)
        outputs = {"checkpoint": name}
        results[name] = run_single("pretrain", recipe, inputs, outputs, artifacts, home, parameters=variant)
    show(results, as_json)


@app.command("compare-weight-norm")
def compare_weight_norm(
    config: ConfigOption,
    overrides: Overrides = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare the pretraining runs; choose the checkpoint that goes on."""
    from flashslm.launch.single import checkpoint_name, run_single

    recipe = load_recipe(config, overrides)
    names = [checkpoint_name(variant) for variant in recipe.variants()]
    inputs: dict[str, Any] = {"dataset": "prepare-data", "checkpoints": ("pretrain", names)}
    show(run_single("compare_weight_norm", recipe, inputs, ("ablation", "chosen"), artifacts, home), as_json)


@app.command()
def generate(
    model: Annotated[Path, typer.Option(help="An exported directory, e.g. runs/latest/export/huggingface.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Continue a text with an exported model, by the project's own decode engine."""
    from flashslm.export.generate import generate_text

    result = generate_text(model, prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if as_json:
        show(result, as_json)
    else:
        print(prompt + result["text"])


@app.command()
def doctor(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Try every service with your settings: object store, MLflow, registry, disk."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform.doctor import diagnose

    checks = diagnose(resolve_settings(home))
    if as_json:
        print(json.dumps({"checks": [check.model_dump() for check in checks]}))
    else:
        for check in checks:
            mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
            text = "; ".join(filter(None, (check.detail, check.hint)))
            Console().print(f"{mark} {check.name:<20} {check.time_ms:8.1f} ms  {text}", highlight=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@stack_app.command("up")
def stack_up(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Start what is not running; safe to repeat."""
    from flashslm.platform import stack

    stack.up(home)
    show_stack(stack.status(home), as_json)


@stack_app.command("status")
def stack_status(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Say what runs, where, and whether it answers."""
    from flashslm.platform import stack

    show_stack(stack.status(home), as_json)


@stack_app.command("down")
def stack_down(home: HomeOption = HOME) -> None:
    """Stop both services; data stays."""
    from flashslm.platform import stack

    stack.down(home)
    console.print(f"stopped; data stays in {home}", highlight=False)


@models_app.command("list")
def models_list(name: str = "flashslm", home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """List the versions of a model with their aliases and measures."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform import registry

    versions = [v.model_dump() for v in registry.list_versions(resolve_settings(home), name)]
    if as_json:
        print(json.dumps({"model": name, "versions": versions}, default=str))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("version", "aliases", "perplexity", "ms/token", "parameters", "object"):
        table.add_column(column, overflow="fold", no_wrap=column != "object")
    for v in versions:
        facts = v["facts"]
        numbers = (f"{facts['perplexity']:.3f}", f"{facts['latency_ms']:.3f}", f"{facts['parameters']:,}")
        table.add_row(v["version"], ", ".join(v["aliases"]), *numbers, v["uri"])
    Console().print(table if versions else f"no version of '{name}' is registered")


@models_app.command("promote")
def models_promote(version: str, name: str = "flashslm", home: HomeOption = HOME) -> None:
    """Make a version champion; the present champion becomes previous."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform import registry

    settings = resolve_settings(home)
    current = registry.champion(settings, name)
    registry.promote(settings, name, version, expected_champion=current.version if current else "")
    console.print(f"{name} version {version} is champion", highlight=False)


@models_app.command("rollback")
def models_rollback(name: str = "flashslm", home: HomeOption = HOME) -> None:
    """Make the previous champion champion again."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform import registry

    version = registry.rollback(resolve_settings(home), name)
    console.print(f"{name} version {version} is champion again", highlight=False)
