"""Local paths of a recipe, found by their type."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import PromotionHook, RunConfig
from flashslm.config.paths import with_absolute_paths


def test_every_local_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    (tmp_path / "rows").mkdir()
    recipe = RunConfig.model_validate(
        {
            "name": "x",
            "data": {"source": "huggingface", "dataset": "rows", "paths": ["a/*.txt", "s3://b/c"], "tokenizer": "tok"},
            "gate": {"promotion_hook": {"command": ["./deploy.sh", "./argument"]}},
        }
    )
    found = with_absolute_paths(recipe)
    assert found.data.paths == (f"{tmp_path}/a/*.txt", "s3://b/c")
    assert (found.data.dataset, found.data.tokenizer) == (f"{tmp_path}/rows", f"{tmp_path}/tok")
    assert found.gate.promotion_hook.command == (f"{tmp_path}/deploy.sh", "./argument")


def test_a_hooks_program_is_meant_from_the_recipes_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command or the scheduler is started; a relative --config changes nothing."""
    program = tmp_path / "project" / "deploy" / "run.sh"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    hook = PromotionHook(command=("deploy/run.sh", "./argument"))
    with pytest.raises(ValueError, match=r"promotion_hook.command: '.*/deploy/run.sh', from the recipe's"):
        hook.located(tmp_path / "project")  # it cannot be executed
    program.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    assert hook.located(Path("project")).command == (str(program), "./argument")
    monkeypatch.chdir(tmp_path / "project")
    assert hook.located(Path()).command == (str(program), "./argument")
    with pytest.raises(ValueError, match="from the recipe's directory"):
        hook.located(tmp_path)


def test_a_hooks_word_is_looked_for_in_path() -> None:
    hook = PromotionHook(command=("sh", "-c", "x/y"))
    assert hook.located(Path("anywhere")) == hook and PromotionHook().located(Path("x")) == PromotionHook()
    with pytest.raises(ValueError, match="'no-such-program' in PATH is not a program that can be executed"):
        PromotionHook(command=("no-such-program",)).located(Path())


def test_a_run_whose_hook_is_not_there_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "sub" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("name: x\ngate: {promotion_hook: {command: [./deploy.sh]}}\n")
    (tmp_path / "deploy.sh").touch(mode=0o700)  # beside the command, not beside the recipe
    result = CliRunner().invoke(app, ["run", "--config", "sub/recipe.yaml"])
    assert f"'{tmp_path}/sub/./deploy.sh'".replace("/./", "/") in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy.sh", "sub"]


def test_words_programs_and_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"data": {"tokenizer": "org/tok"}, "gate": {"promotion_hook": {"command": ["curl", "./x"]}}}
    recipe = RunConfig.model_validate({"name": "x"} | values)
    assert with_absolute_paths(recipe) == recipe
