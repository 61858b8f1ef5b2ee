"""Recipes: every problem in one message, overrides, the sections a step reads."""

import json
from pathlib import Path

import pytest

from flashslm.config import STEP_SECTIONS, RunConfig, from_step_json
from flashslm.config.file import ConfigError, dump, load
from flashslm.steps.recipe import problems

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load(path, checks=problems).name == path.stem


def test_three_mistakes_are_named_in_one_message(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntraining: {stepz: 3, steps: -1}\nsearch: {widths: [1000]}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, checks=problems)
    message = str(caught.value)
    assert "training.stepz: unknown key; allowed here: batch_size" in message
    assert "training.steps: Input should be greater than or equal to 1 (given: -1)" in message
    assert "search.widths: [1000] not in profiling.widths" in message


def test_mistakes_in_overrides_and_sections_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path, "name: Not Allowed\ndata: {source: files}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, ["nonsense", "gate.colour=red", "name.first=x"], checks=problems)
    message = str(caught.value)
    for expected in (
        "override 'nonsense'",
        "override 'name.first=x'",
        "gate.colour: unknown key",
        "data: source 'files'",
    ):
        assert expected in message
    assert "name: String should match pattern" in message and "name: Field required" not in message


def test_override_replaces_one_value(tmp_path: Path) -> None:
    config = load(write(tmp_path, "name: x\ntraining: {steps: 7}\n"), ["training.steps=50", "training.seeds=[1, 2]"])
    assert config.training.steps == 50 and config.training.seeds == (1, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("name: x\nseed: 1\nseed: 2\n", "(?s)key 'seed' is there twice.*line 3"),
        ("name: x\ntraining: {steps: 1, steps: 2}\n", "key 'steps' is there twice"),
    ],
)
def test_unreadable_recipe(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(write(tmp_path, text))


def test_missing_recipe_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="give the path of a YAML file"):
        load("nowhere.yaml")


def test_step_json_holds_only_the_sections_the_step_reads() -> None:
    config = RunConfig.model_validate({"name": "x", "training": {"steps": 3}, "gate": {"max_perplexity": 9}})
    for step, sections in STEP_SECTIONS.items():
        assert set(json.loads(config.for_step(step))) == set(sections)
    assert from_step_json(config.for_step("pretrain")).training.steps == 3
    other = config.model_copy(update={"gate": RunConfig(name="x").gate})
    assert other.for_step("pretrain") == config.for_step("pretrain")


def test_dump_round_trips(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"name": "x", "training": {"seeds": [3, 4]}})
    assert load(write(tmp_path, dump(config))) == config


def test_meta_tokens_count_against_the_longest_position(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nmodel: {max_position_embeddings: 8192, num_meta_tokens: 1}\n")
    with pytest.raises(ConfigError, match=r"latency\.context: 8192 and 1 meta tokens exceed"):
        load(path, checks=problems)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.steps=", "evaluation.needle_lengths=[99999]"], ["training.steps", "evaluation.needle_lengths"]),
        (["profiling.widths=[a,b]"], ["profiling.widths.0", "profiling.widths.1"]),
        (["training=5"], ["training"]),
        (["search.widths=[]"], ["search.widths"]),
        (["profiling.sweep_block=ZZ"], ["profiling.sweep_block"]),
    ],
)
def test_every_mistake_is_named_and_none_is_invented(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(RECIPES[-1], overrides, checks=problems)
    named = [line.split(". ", 1)[1].split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert named == expected


def test_bare_on_and_off_are_words(tmp_path: Path) -> None:
    config = load(write(tmp_path, "name: x\ntraining: {weight_norm: [on, off]}\n"))
    assert config.training.weight_norm == ("on", "off")
