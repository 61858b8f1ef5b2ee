"""Which home a command finds, and that looking starts nothing."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashslm.cli import steps
from flashslm.cli.app import app
from flashslm.infra.stack.daemons import StackError
from flashslm.infra.stack.services import existing_settings, find_home


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_the_nearest_home_upwards_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "project" / "configs" / "deep"
    inner.mkdir(parents=True)
    assert find_home(inner) == inner / ".flashslm"
    for owner in (tmp_path, tmp_path / "project"):
        (owner / ".flashslm").mkdir()
        assert find_home(inner) == owner / ".flashslm"


def test_another_users_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".flashslm").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / ".flashslm").stat().st_uid + 1)
    with pytest.raises(StackError, match="belongs to another user"):
        find_home(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["models", "list"],
        ["models", "promote", "1"],
        ["models", "rollback"],
        ["schedule", "list"],
        ["schedule", "run"],
        ["doctor"],
        ["stack", "status"],
        ["stack", "down"],
    ],
    ids=" ".join,
)
def test_commands_that_look_make_no_home(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, command)
    assert command[0] == "stack" or isinstance(result.exception, StackError), result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [name for name, _, _ in steps.COMMANDS])
def test_commands_of_one_step_make_no_home(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("name: x\n")
    for variable in ("FLASHSLM_CACHE", "FLASHSLM_SPOOL"):
        monkeypatch.setenv(variable, "unused")  # the command sets them where they are not
    umask = os.umask(0o022)
    result = CliRunner().invoke(app, [command, "--config", "recipe.yaml"])
    os.umask(umask)
    assert isinstance(result.exception, StackError | ValueError), result.output
    assert "`flashslm stack up` or `flashslm run` makes one" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_stack_that_does_not_run_is_named(tmp_path: Path) -> None:
    ports = dict.fromkeys(("s3", "mlflow", "master", "volume", "filer", "admin"), 1)
    state = {"access_key": "a", "secret_key": "b", "ports": ports}
    (tmp_path / "stack.json").write_text(json.dumps(state))
    with pytest.raises(StackError, match=r"does not run \(s3, mlflow\): start it with `flashslm stack up`"):
        existing_settings(tmp_path)
