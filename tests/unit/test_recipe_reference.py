"""The reference of all settings: complete, up to date, and what editors and `flashslm config` make of it."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import RunConfig, TrainingConfig
from flashslm.config.file import ConfigError, load
from flashslm.config.no_effect import without_effect, without_effect_here
from flashslm.config.reference import differences, json_schema, near_settings, page, read_by, settings

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


class Yaml12Loader(yaml.SafeLoader):
    """Integers as YAML 1.2 has them: 1_000 is text there, on and off too."""


Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:bool")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))


def as_an_editor_reads(text: str) -> Any:
    return yaml.load(text, Loader=Yaml12Loader)


def given(**sections: Any) -> list[str]:
    return without_effect(RunConfig.model_validate({"name": "x"} | sections))


def test_the_page_and_the_schema_are_those_of_the_code() -> None:
    again = "is not what the settings say: run `make recipe-reference`"
    assert (ROOT / "docs/recipe.md").read_text(encoding="utf-8") == page() + "\n", f"docs/recipe.md {again}"
    written = json.loads((ROOT / "configs/recipe.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(), f"configs/recipe.schema.json {again}"


def test_every_setting_is_described() -> None:
    every = list(settings())
    assert len(every) > 150 and len({s.key for s in every}) == len(every)
    assert [s.key for s in every if not s.description.endswith(".") or not s.allowed] == []
    assert {s.section for s in every} == set(RunConfig.model_fields)


def test_the_page_says_what_is_allowed_and_who_reads_it() -> None:
    text = page()
    assert "| `training.steps` | integer, >= 1 | `10_000` | Optimizer steps of each run. |" in text
    assert "| `search.workers` | integer, 1 to 64 | `2` |" in text
    assert "| `training.deploy` | best, on, off | `best` |" in text
    assert "`platform.steps.<name>.cpu`" in text and "`platform.gpu_types.<name>.tolerations[].key`" in text
    assert read_by("search") == ["search_architecture", "select_architecture"]
    assert "\n\nRead by `search_architecture`, `select_architecture`.\n" in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_editors_accept_the_shipped_recipes(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    jsonschema.validate(as_an_editor_reads(text), json_schema())
    assert without_effect(load(recipe)) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("training: {stepz: 3}", "'stepz' was unexpected"),
        ("training: {steps: 0}", "0 is less than the minimum of 1"),
        ("training: {steps: many}", "'many' "),
        ("data: {source: web}", "'web' is not one of"),
        ("platform: {cpu_steps: {cpu: none}}", "'none' "),
    ],
)
def test_editors_see_mistakes(text: str, problem: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=re.escape(problem)):
        jsonschema.validate(as_an_editor_reads(f"name: x\n{text}"), json_schema())


def test_editors_accept_every_spelling_that_a_recipe_may_have() -> None:
    text = "name: x\ntraining: {steps: 1_000, weight_norm: [on]}\nplatform: {cpu_steps: {cpu: 8, memory: 4Gi}}"
    jsonschema.validate(as_an_editor_reads(text), json_schema())


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"data": {"paths": ["a"]}}, "data.paths"),
        ({"data": {"dataset": "a/b"}}, "data.dataset"),
        ({"data": {"text_field": "body"}}, "data.text_field"),
        ({"data": {"tokenizer": "a/b", "vocab_size": 300}}, "data.vocab_size"),
        ({"data": {"tokenizer_revision": "main"}}, "data.tokenizer_revision"),
        ({"model": {"original_max_position_embeddings": 64}}, "model.original_max_position_embeddings"),
        ({"model": {"window": 64}}, "model.window"),
        ({"profiling": {"device": "cuda", "threads": 2}}, "profiling.threads"),
        ({"gate": {"max_rounding_loss": 0.1}}, "gate.max_rounding_loss"),
        ({"search": {"strategy": "random", "sample": 4}}, "search.sample"),
        ({"search": {"strategy": "random", "seeding": "none", "population": 4, "sample": 2}}, "search.population"),
        ({"search": {"finalist_seeds": 2}}, "search.finalist_seeds"),
        ({"search": {"sizes": {"ffn_ratio": [3], "head_dim": [64, 128]}}}, "search.sizes.ffn_ratio"),
        ({"search": {"halving_factor": 2}}, "search.halving_factor"),
        ({"search": {"seeding": "law", "seed_designs": ["DF"]}}, "search.seed_designs"),
        ({"data": {"max_bad_rows_fraction": 0.1}}, "data.max_bad_rows_fraction"),
        ({"data": {"workers": 2}}, "data.workers"),
        ({"data": {"source": "huggingface", "dataset": "a/b", "piece_bytes": 9}}, "data.piece_bytes"),
        ({"data": {"source": "huggingface", "dataset": "/", "dataset_revision": "main"}}, "data.dataset_revision"),
        ({"data": {"tokenizer": "/", "tokenizer_revision": "main"}}, "data.tokenizer_revision"),
        ({"kernels": {"gla": "chunked"}}, "kernels.gla"),
        ({"profiling": {"widths": [1024], "compile_processes": 2}}, "profiling.compile_processes"),
        ({"search": {"candidates_per_cycle": 2, "workers": 3}}, "search.workers"),
        ({"search": {"trials": 3, "finalists": 4}}, "search.finalists"),
        ({"platform": {"variants_at_once": 3}}, "platform.variants_at_once"),
        (
            {"platform": {"gpu_types": {"b": {}}, "steps": {"pretrain": {"gpus": 0, "gpu_type": "b"}}}},
            "platform.steps.pretrain.gpu_type",
        ),
        ({"profiling": {"device": "cpu", "compile_processes": 2}}, "profiling.compile_processes"),
        ({"latency": {"target_ms": 2.0, "reference_width": 64}}, "latency.reference_width"),
        ({"search": {"trials": 8, "population": 8, "sample": 3}}, "search.sample"),
        ({"search": {"trials": 2, "population": 2, "sample": 2, "workers": 3}}, "search.workers"),
        ({"scaling": {"depths": [1], "widths": [64, 128], "workers": 4}}, "scaling.workers"),
        ({"training": {"steps": 10, "checkpoint_every_steps": 20}}, "training.checkpoint_every_steps"),
        ({"training": {"steps": 10, "min_learning_rate_ratio": 0.2}}, "training.min_learning_rate_ratio"),
        ({"retraining": {"steps": 10, "min_learning_rate_ratio": 0.2}}, "retraining.min_learning_rate_ratio"),
        ({"training": {"weight_norm": ["on"], "deploy": "on"}}, "training.deploy"),
        ({"training": {"decay_steps": 5}}, "training.decay_steps"),
        (
            {"training": {"processes": 2, "shard_processes": 1, "gather_dtype": "bfloat16"}},
            "training.gather_dtype",
        ),
        ({"training": {"processes": 2, "micro_batch_per_process": True}}, "training.micro_batch_per_process"),
        ({"training": {"gradient_sync": "each"}}, "training.gradient_sync"),
        ({"training": {"weight_norm": ["off"], "weight_norm_rate_factor": 2}}, "training.weight_norm_rate_factor"),
        ({"training": {"deploy_seed": 0}}, "training.deploy_seed"),
        ({"training": {"mixture": [{"name": "own", "weight": 1}]}}, "training.mixture"),
        ({"training": {"isolate_documents": True, "cuda_graph": "auto"}}, "training.cuda_graph"),
        ({"training": {"processes": 2, "cuda_graph": "on"}}, "training.cuda_graph"),
        ({"profiling": {"device": "cpu"}, "search": {"cuda_graph": "on"}}, "search.cuda_graph"),
        ({"profiling": {"proxy_device": "cpu"}, "scaling": {"cuda_graph": "on"}}, "scaling.cuda_graph"),
        ({"evaluation": {"lm_eval_limit": 5}}, "evaluation.lm_eval_limit"),
        ({"evaluation": {"needle_lengths": [], "needle_samples": 5}}, "evaluation.needle_samples"),
        ({"gate": {"promotion_hook": {"attempts": 5}}}, "gate.promotion_hook.attempts"),
        (
            {"gate": {"promotion_hook": {"command": ["a"], "secret_variable": "B"}}},
            "gate.promotion_hook.secret_variable",
        ),
        ({"platform": {"hook_secret": "a"}}, "platform.hook_secret"),
        ({"platform": {"training_runtime": "a"}}, "platform.training_runtime"),
        ({"platform": {"queue": "a"}}, "platform.queue"),
        ({"platform": {"gpu_types": {"h200": {}}}}, "platform.gpu_types.h200"),
        ({"platform": {"gpu_types": {"h200": {}}, "cpu_steps": {"gpu_type": "h200"}}}, "platform.cpu_steps.gpu_type"),
    ],
)
def test_what_has_no_effect_is_named(sections: dict[str, Any], where: str) -> None:
    assert any(text.startswith(f"{where}: no effect: ") for text in given(**sections)), given(**sections)


SHARING = {"shard_processes": 2, "gather_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("training", "where", "expected"),
    [
        (SHARING | {"gradient_sync": "each"}, (1, "cuda", "bfloat16"), {*SHARING, "gradient_sync"}),
        (SHARING, (4, "cuda", "bfloat16"), set()),
        (SHARING, (4, "cpu", "float32"), {"gather_dtype"}),
        (SHARING | {"shard_processes": 1}, (4, "cuda", "bfloat16"), {"gather_dtype"}),
        ({"threads": 4}, (2, "cuda", "bfloat16"), {"threads"}),
        ({"threads": 4}, (2, "cpu", "float32"), set()),
        ({"batch_size": 8, "micro_batch_size": 4, "gradient_sync": "each"}, (2, "cpu", "float32"), set()),
        (
            {"batch_size": 8, "micro_batch_size": 4, "gradient_sync": "each", "micro_batch_per_process": True},
            (2, "cpu", "float32"),
            {"gradient_sync"},
        ),
    ],
)
def test_what_has_no_effect_where_training_runs_is_named(
    training: dict[str, Any], where: tuple[int, str, str], expected: set[str]
) -> None:
    """Of a section as a step gets it, with all fields given."""
    config = TrainingConfig.model_validate(TrainingConfig.model_validate(training).model_dump())
    assert without_effect_here(config, *where).keys() == expected


def test_defaults_are_not_warned_of() -> None:
    assert given() == [] and given(training={"steps": 10}, latency={"target_ms": 1.0}) == []
    assert given(data={"source": "files", "paths": ["a"], "text_field": "body"}) == []
    assert given(search={"strategy": "random", "population": 9}) == [], "half as many known designs are tried first"


def test_a_warning_comes_before_the_work_and_does_not_stop_it(tmp_path: Path) -> None:
    arguments = ["config", "check", str(ROOT / "configs/smoke.yaml"), "evaluation.lm_eval_limit=3", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "warning: evaluation.lm_eval_limit: no effect: there are no lm_eval_tasks" in result.stderr
    assert json.loads(result.stdout)["differences"]["evaluation.lm_eval_limit"] == 3


def test_differences_are_those_from_the_defaults() -> None:
    config = RunConfig.model_validate({"name": "x", "training": {"steps": 3, "batch_size": 64}, "seed": 0})
    assert differences(config) == {"training.steps": 3}
    typed = RunConfig.model_validate({"name": "x", "platform": {"gpu_types": {"a": {}}, "cpu_steps": {"cpu": 4}}})
    assert set(differences(typed)) == {"platform.gpu_types", "platform.cpu_steps.cpu"}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("training.stepz", ["training.steps", "retraining.steps"]),
        ("latency.target", ["latency.target_ms"]),
        ("warmup_steps", ["training.warmup_steps", "retraining.warmup_steps"]),
        ("xyzzy", []),
    ],
)
def test_near_settings(key: str, near: list[str]) -> None:
    assert near_settings(key)[: len(near)] == near and bool(near_settings(key)) == bool(near)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "training: {stepz: 3}",
            "training.stepz: unknown key; did you mean 'steps'? allowed here: activation_checkpointing",
        ),
        (
            "trainning: {steps: 3}",
            "trainning: unknown key; did you mean 'training' or 'retraining'? allowed here: data",
        ),
        ("target_ms: 3", "target_ms: unknown key; did you mean 'latency.target_ms'? allowed here: data"),
        ("gate: {colour: red}", "gate.colour: unknown key; allowed here: cannot_tell, max_accuracy_drop"),
    ],
)
def test_a_key_that_is_nearly_right_is_answered_with_the_right_one(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"name: x\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(hint)):
        load(tmp_path / "recipe.yaml")


def test_explain_a_setting_a_section_and_nothing_known() -> None:
    one = CliRunner().invoke(app, ["config", "explain", "training.steps", "--config", str(ROOT / "configs/demo.yaml")])
    for expected in ("training.steps: Optimizer steps of each run.", "integer, >= 1", "10_000", "pretrain", "  160\n"):
        assert expected in one.stdout
    section = CliRunner().invoke(app, ["config", "explain", "gate"]).stdout
    assert "gate.max_perplexity" in section and "gate.promotion_hook.url" in section and "training.steps" not in section
    unknown = CliRunner().invoke(app, ["config", "explain", "training.stepz"])
    assert unknown.exit_code == 1 and "did you mean training.steps" in str(unknown.exception)
