"""`flashslm models promote` and `rollback`: they call the hook that a pipeline's promotion calls."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from flashslm.cli.app import app
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import RegistryError
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import mlflow_runs

pytestmark = pytest.mark.services


class Team:
    """A model with two versions, and the recipe whose hook writes what it hears into a file."""

    def __init__(self, settings: Settings, store: ObjectStore, directory: Path) -> None:
        self.settings, self.directory, self.name = settings, directory, f"model-{os.urandom(4).hex()}"
        run_id = mlflow_runs.start_parent_run(settings, self.name)
        for text in ("one", "two"):
            tree = directory / text
            tree.mkdir()
            (tree / "weights").write_text(text)
            model_registry.register(settings, self.name, store.put_tree(tree, "exported"), run_id, {"perplexity": 3.0})
        mlflow_runs.finish_run(settings, run_id, "FINISHED")

    def recipe(self, script: str = "cat >> heard && echo >> heard") -> str:
        hook = {"command": ["sh", "-c", f"cd {self.directory} && {script}"], "attempts": 1}
        file = self.directory / "recipe.yaml"
        file.write_text(yaml.safe_dump({"name": "x", "gate": {"model_name": self.name, "promotion_hook": hook}}))
        return str(file)

    def heard(self) -> list[tuple[Any, ...]]:
        file = self.directory / "heard"
        messages = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [(m["event"], m["model"], m["version"], m["previous_version"]) for m in messages]

    def models(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["models", *arguments])

    def champion(self) -> model_registry.ModelVersion:
        found = model_registry.champion(self.settings, self.name)
        assert found is not None
        return found


@pytest.fixture
def team(platform_env: Settings, store: ObjectStore, tmp_path: Path) -> Team:
    return Team(platform_env, store, tmp_path)


def test_both_call_the_recipes_hook_and_keep_what_came_of_it(team: Team) -> None:
    for version in ("1", "2"):
        assert team.models("promote", version, "--config", team.recipe()).exit_code == 0
    for _ in range(2):  # the second time nothing changes, and no hook is called
        result = team.models("rollback", "--config", team.recipe())
        assert result.exit_code == 0 and f"{team.name} version 1 is champion again" in result.output
    assert team.heard() == [
        ("promotion", team.name, "1", ""),
        ("promotion", team.name, "2", "1"),
        ("rollback", team.name, "1", "2"),
    ]
    assert team.champion().version == "1" and team.champion().hook.startswith("delivered in attempt 1: sh exited")


def test_nobody_is_passed_over_unless_that_is_said(team: Team) -> None:
    assert team.models("promote", "1", "--name", team.name).exit_code == 0, "no promotion of this model called a hook"
    assert team.models("promote", "2", "--config", team.recipe()).exit_code == 0
    for command in (["promote", "1"], ["rollback"]):
        refused = team.models(*command, "--name", team.name)
        assert isinstance(refused.exception, RegistryError) and "or --no-hook to promote" in str(refused.exception)
    assert team.champion().version == "2"
    assert team.models("rollback", "--name", team.name, "--no-hook").exit_code == 0
    assert team.champion().version == "1" and len(team.heard()) == 1


def test_a_hook_that_fails_undoes_nothing_and_can_be_called_again(team: Team) -> None:
    failed = team.models("promote", "1", "--config", team.recipe("echo no room; exit 3"))
    assert failed.exit_code == 1 and "hook failed in attempt 1 of 1: sh exited with 3: no room" in failed.output
    assert "flashslm models promote 1" in failed.output
    assert team.champion().version == "1" and team.champion().hook.startswith("failed")
    assert team.models("promote", "1", "--config", team.recipe()).exit_code == 0
    assert team.heard() == [("promotion", team.name, "1", "")] and team.champion().hook.startswith("delivered")


def test_what_a_hook_has_not_heard_is_sent_by_the_next_command(team: Team) -> None:
    model_registry.promote(team.settings, team.name, "1", "", notify=True)  # and killed before the hook was called
    failed = team.models("promote", "2", "--config", team.recipe("exit 3"))
    assert failed.exit_code == 1 and team.heard() == []
    heard = team.models("notify", "--config", team.recipe())
    assert heard.exit_code == 0 and "hook delivered" in heard.output
    assert team.heard() == [("promotion", team.name, "1", ""), ("promotion", team.name, "2", "1")]
    assert "nothing is pending" in team.models("notify", "--config", team.recipe()).output and len(team.heard()) == 2


def test_a_silent_change_ends_what_was_pending(team: Team) -> None:
    model_registry.promote(team.settings, team.name, "1", "", notify=True)
    assert team.models("promote", "2", "--name", team.name, "--no-hook").exit_code == 0
    assert team.models("notify", "--config", team.recipe()).exit_code == 0
    assert team.heard() == [], "version 1 is not champion any more"


def test_a_name_that_no_model_has_leads_to_those_that_there_are(team: Team) -> None:
    listed = team.models("list", "--name", "nobody")
    assert listed.exit_code == 0 and "no version of 'nobody' is registered" in listed.output
    assert team.name in listed.output
    refused = team.models("promote", "9", "--name", team.name)
    assert f"see `flashslm models list --name {team.name}`" in str(refused.exception)
