"""`flashslm models promote` and `rollback`: they call the hook that a pipeline's promotion calls."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from flashslm.cli.app import app
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import Lineage, RegistryError
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs

pytestmark = pytest.mark.services


class Team:
    """A model with two versions, and the recipe whose hook writes what it hears into a file."""

    def __init__(self, settings: Settings, store: ObjectStore, directory: Path) -> None:
        self.settings, self.directory, self.name = settings, directory, f"model-{os.urandom(4).hex()}"
        run_id = mlflow_runs.start_parent_run(settings, self.name)
        for text in ("one", "two"):
            exported = store.put_tree(tree_of(directory, text), "exported")
            model_registry.register(settings, self.name, exported, run_id, {"perplexity": 3.0})
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

    def days(self) -> set[str]:
        """On which the versions were registered: two, where that is around midnight."""
        versions = model_registry.list_versions(self.settings, self.name)
        return {time.strftime("%Y-%m-%d", time.localtime(version.created_ms / 1e3)) for version in versions}

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


def test_a_hook_is_skipped_only_where_that_is_asked_for(team: Team) -> None:
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


def measured(team: Team, store: ObjectStore, text: str, data: Manifest, **facts: float) -> str:
    """Register a version that was measured on a data set; returns its number."""
    exported = store.put_tree(tree_of(team.directory, text), "exported")
    known = facts | {"dataset_sha256": data.sha256, "device": "cpu-x", "parameters": 1234567}
    lineage = Lineage(data=(data,), commit="0123456789abcdef")
    run_id = mlflow_runs.start_parent_run(team.settings, text)
    mlflow_runs.finish_run(team.settings, run_id, "FINISHED")
    return model_registry.register(team.settings, team.name, exported, run_id, known, lineage=lineage)


def tree_of(directory: Path, text: str) -> Path:
    tree = directory / text
    tree.mkdir(exist_ok=True)
    (tree / "weights").write_text(text)
    return tree


def test_versions_of_different_data_are_listed_apart(team: Team, store: ObjectStore) -> None:
    facts = {"source": "code", "train_tokens": 5000}
    python = store.put_tree(tree_of(team.directory, "python"), "dataset", facts)
    prose = store.put_tree(tree_of(team.directory, "prose"), "dataset", facts | {"source": "text"})
    measured(team, store, "three", python, perplexity=3.25, latency_ms=1.5)
    measured(team, store, "four", prose, perplexity=2.5, latency_ms=1.25)
    measured(team, store, "five", python, perplexity=3.125, latency_ms=1.75)
    listed = team.models("list", "--name", team.name).output
    code, text, unknown = (listed.index(s) for s in ("(code, 5,000 train", "(text, 5,000 train", "is not recorded"))
    assert code < listed.index("3.125") < listed.index("3.250") < text < listed.index("2.500") < unknown
    assert "01234567" in listed and team.days() <= set(listed.split()) and "1,234,567" in listed


def test_a_list_fits_80_columns(team: Team, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = store.put_tree(tree_of(team.directory, "python"), "dataset", {})
    measured(team, store, "three", data, perplexity=12345.678, latency_ms=1234.567)
    for version in ("3", "1"):
        assert team.models("promote", version, "--config", team.recipe()).exit_code == 0
    lines = team.models("list", "--name", team.name).output.splitlines()
    rows = [line.split() for line in lines if team.days() & set(line.split())]
    assert rows[0][:5] == ["3", "previous", "12345.678", "1235", "1,234,567"] and rows[-1][:2] == ["1", "champion"]
    origin = next(line for line in lines if line.startswith("version 3: commit 01234567"))
    assert "timed on device cpu-x; hook delivered in attempt 1" in origin


@pytest.mark.parametrize(
    ("wanted", "content"), [("@champion", "one"), ("", "one"), ("@challenger", "two"), ("@2", "two")]
)
def test_a_version_is_pulled_by_alias_or_number(team: Team, tmp_path: Path, wanted: str, content: str) -> None:
    model_registry.promote(team.settings, team.name, "1", "")
    target = tmp_path / "pulled"
    for _ in range(2):  # a directory that holds the version already is left as it is
        pulled = team.models("pull", team.name + wanted, "-o", str(target), "--json")
        assert pulled.exit_code == 0, pulled.exception
        assert (target / "weights").read_text() == content
    other = team.models("pull", f"{team.name}@{'2' if content == 'one' else '1'}", "-o", str(target))
    assert isinstance(other.exception, ValueError) and "or another version" in str(other.exception)
    assert (target / "weights").read_text() == content


def test_a_version_that_is_not_there_is_not_pulled(team: Team, tmp_path: Path) -> None:
    refused = team.models("pull", f"{team.name}@champion", "-o", str(tmp_path / "pulled"))
    assert isinstance(refused.exception, RegistryError) and "has no version champion" in str(refused.exception)
    assert not (tmp_path / "pulled").exists()


def test_a_version_is_promoted_by_its_alias(team: Team) -> None:
    promoted = team.models("promote", "challenger", "--name", team.name)
    assert f"{team.name} version 2 is champion" in promoted.output and team.champion().version == "2"


def test_a_shell_gets_the_services_from_stack_env(stack_home: Path, settings: Settings, monkeypatch: Any) -> None:
    for name in [*settings.as_env(), "AWS_PROFILE"]:
        monkeypatch.delenv(name, raising=False)
    exports = CliRunner().invoke(app, ["stack", "env", "--home", str(stack_home)])
    assert exports.exit_code == 0, exports.exception
    shell = ["sh", "-c", f"{exports.stdout}\nenv"]
    env = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{name}={value}" for name, value in settings.as_env().items()} <= set(env)
