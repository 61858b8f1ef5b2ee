"""Local paths of a recipe, found by their type."""

from pathlib import Path

import pytest

from flashslm.config import RunConfig
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


def test_words_programs_and_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"data": {"tokenizer": "org/tok"}, "gate": {"promotion_hook": {"command": ["curl", "./x"]}}}
    recipe = RunConfig.model_validate({"name": "x"} | values)
    assert with_absolute_paths(recipe) == recipe
