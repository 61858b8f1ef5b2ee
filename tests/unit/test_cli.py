"""The command line: what a person sees when something is wrong, and what scripts read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flashslm import __version__
from flashslm.cli.app import app
from flashslm.config.file import ConfigError
from flashslm.infra.stack import daemons
from flashslm.infra.stack.doctor import Check
from flashslm.launch.kfp.api import Connection

ROOT = Path(__file__).parents[2]


def flashslm(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flashslm", *arguments], cwd=cwd, capture_output=True, text=True)


def test_mistakes_of_a_recipe_come_before_anything_starts(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("name: bad\ntraining: {stepz: 3, steps: -1}\nscaling: {block: DXQ}\n", encoding="utf-8")
    result = flashslm("run", "--config", str(recipe), cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for expected in ("has 3 problem(s)", "training.stepz: unknown key", "training.steps", "scaling.block"):
        assert expected in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]


@pytest.mark.parametrize("command", ["run", "prepare-data", "profile", "search", "pretrain", "evaluate", "export"])
def test_commands_take_config_overrides_and_json(command: str) -> None:
    result = flashslm(command, "--config", "configs/smoke.yaml", "training.steps=0", "--json")
    assert result.returncode == 1 and "training.steps: Input should be greater than or equal to 1" in result.stderr


def test_compile_writes_the_golden_pipeline(tmp_path: Path) -> None:
    output = tmp_path / "pipeline.yaml"
    assert flashslm("compile", "--pipeline", "design_and_train", "-o", str(output)).returncode == 0
    spec = next(yaml.safe_load_all(output.read_text(encoding="utf-8")))
    assert spec["pipelineInfo"]["name"] == "design-and-train"


def test_unknown_pipeline_names_the_known_ones(tmp_path: Path) -> None:
    result = flashslm("compile", "--pipeline", "nothing", "-o", str(tmp_path / "x.yaml"))
    assert result.returncode == 1 and "design_and_train" in result.stderr


def test_a_run_of_an_unknown_pipeline_starts_nothing(tmp_path: Path) -> None:
    result = flashslm("run", "--pipeline", "nothing", str(ROOT / "configs/smoke.yaml"), cwd=tmp_path)
    assert result.returncode == 1 and "pipeline 'nothing' is not in" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("pretrain", "missing.yaml"),
        ("pretrain", "--json", "missing.yaml"),
        ("compile", "--output", "other.yaml", "missing.yaml"),
        ("compile", "missing.yaml", "--output", "other.yaml"),
        ("schedule", "create", "nightly", "missing.yaml", "--cron", "0 2 * * *"),
        ("models", "register", "directory", "missing.yaml"),
        ("models", "notify", "missing.yaml"),
        ("kernels", "warm", "missing.yaml"),
    ],
    ids=" ".join,
)
def test_a_recipe_is_an_argument_too(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = flashslm(*arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr  # 2 where --config is missed
    if "notify" not in arguments:  # which asks for a stack first
        assert "recipe 'missing.yaml' not found" in result.stderr


def test_status_of_a_stack_that_never_ran(tmp_path: Path) -> None:
    result = flashslm("stack", "status", "--json", cwd=tmp_path)
    assert json.loads(result.stdout) == {"home": str(tmp_path / ".flashslm"), "services": [], "healthy": False}


def test_a_path_is_printed_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "a [red] [" / "] b" / ("long" * 20)
    place.mkdir(parents=True)
    recipe = shutil.copy(ROOT / "configs" / "smoke.yaml", place)
    for command in (
        ["stack", "status", "--home", str(place)],
        ["stack", "down", "--home", str(place)],
        ["config", "check", str(recipe)],
        ["compile", "--pipeline", "design_and_train", "-o", str(place / "pipeline.yaml")],
        ["runs", "list", "--runs", str(place)],
    ):
        result = flashslm(*command)
        assert result.returncode == 0, result.stderr
        assert str(place) in result.stdout + result.stderr


def test_what_doctor_found_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Check(name="disk space", ok=False, time_ms=1.0, detail="[Errno 28] /a [/] b", hint="see [red]")
    monkeypatch.setattr("flashslm.infra.stack.services.existing_settings", lambda _: None)
    monkeypatch.setattr("flashslm.infra.stack.doctor.diagnose", lambda _: [found])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "FAIL" in result.output
    assert f"{found.detail}; {found.hint}" in result.output


def test_generate_from_a_directory_that_is_no_model(tmp_path: Path) -> None:
    result = flashslm("generate", "--model", str(tmp_path), "--prompt", "x")
    assert result.returncode == 1 and "Traceback" not in result.stderr and str(tmp_path) in result.stderr


WITH_A_RECIPE = [
    *(["prepare-data"], ["profile"], ["fit-scaling-law"], ["search"], ["pretrain"], ["compare-weight-norm"]),
    *(["evaluate"], ["export"], ["run"], ["compile"], ["submit", "--host", "http://127.0.0.1:9"]),
    ["schedule", "create", "nightly", "--cron", "0 2 * * *"],
    ["models", "register", "somewhere"],
]


def test_tasks_are_looked_up_before_a_model_is_evaluated(tmp_path: Path) -> None:
    recipe = ["--config", str(ROOT / "configs" / "smoke.yaml"), "evaluation.lm_eval_tasks=[preset:nothing]"]
    result = CliRunner().invoke(app, ["evaluate", *recipe, "--home", str(tmp_path)])
    assert "there is no 'preset:nothing'" in str(result.exception)


@pytest.mark.parametrize("command", WITH_A_RECIPE, ids=" ".join)
def test_no_command_takes_an_inconsistent_recipe(tmp_path: Path, command: list[str]) -> None:
    """Each field by itself is allowed: only the check of the whole recipe sees that the table lacks the width."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\nprofiling: {widths: [1024]}\nsearch: {widths: [1280]}\nlatency: {target_ms: 1}\n")
    home = [] if command[0] in ("compile", "submit") else ["--home", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--config", str(recipe), *home])
    assert result.exit_code == 1 and isinstance(result.exception, ConfigError), result.output
    assert "search.widths: [1280] not in profiling.widths [1024]" in str(result.exception)


@pytest.mark.parametrize("command", ["run", "prepare-data", "submit"])
def test_the_recipe_may_stand_without_its_option(tmp_path: Path, command: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ntraining: {stepz: 3}\n")
    host = ["--host", "http://127.0.0.1:9"] if command == "submit" else []
    result = CliRunner().invoke(app, [command, str(recipe), "training.steps=0", *host])
    assert isinstance(result.exception, ConfigError), result.output
    assert "training.stepz" in str(result.exception) and "training.steps: Input" in str(result.exception)


def test_the_version_and_the_groups_of_commands() -> None:
    assert flashslm("--version").stdout == f"flashslm {__version__}\n"
    text = flashslm("--help").stdout
    groups = ["Pipelines and runs", "Recipes", "Models and measurements", "Services of this machine", "Single steps"]
    assert [group for group in groups if group not in text] == []


@pytest.mark.parametrize("command", [["list"], ["show", "x"], ["logs", "x", "gate"], ["cancel", "x"]])
def test_a_dead_host_is_named_at_once(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = daemons.free_ports(1)
    monkeypatch.setattr(Connection, "_wait", lambda *_: pytest.fail("there is another attempt"))
    result = CliRunner().invoke(app, ["runs", *command, "--host", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1 and f"nothing answers at http://127.0.0.1:{port}" in str(result.exception)
