"""Recipes: every problem in one message, overrides, the sections a step reads."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import STEP_SECTIONS, RunConfig, UndeclaredSection, digest, from_step_json
from flashslm.config.file import ConfigError, dump, load
from flashslm.steps.recipe_checks import problems

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
    assert "training.stepz: unknown key; did you mean 'steps'? allowed here: activation_checkpointing" in message
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


def test_a_name_that_matches_no_pattern_is_explained_in_words(tmp_path: Path) -> None:
    """A person cannot be asked to read a regular expression."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "name: My_Run\ngate: {model_name: org/slm}\n"))
    assert "1 to 63 small letters, digits and '-', with a letter or digit at both ends (given: 'My_Run')" in str(
        caught.value
    )
    assert "'_', '.', '-' and blanks, with a letter, digit or '_' at both ends (given: 'org/slm')" in str(caught.value)


def test_override_replaces_one_value(tmp_path: Path) -> None:
    config = load(write(tmp_path, "name: x\ntraining: {steps: 7}\n"), ["training.steps=50", "training.seeds=[1, 2]"])
    assert config.training.steps == 50 and config.training.seeds == (1, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("name: x\nseed: 1\nseed: 2\n", r"recipe\.yaml:3: key 'seed' is there twice"),
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
    assert from_step_json("pretrain", config.for_step("pretrain")).training.steps == 3
    other = config.model_copy(update={"gate": RunConfig(name="x").gate})
    assert other.for_step("pretrain") == config.for_step("pretrain")


@pytest.mark.parametrize("step", sorted(STEP_SECTIONS))
def test_a_step_reads_what_it_declares_and_nothing_else(step: str) -> None:
    recipe = RunConfig.model_validate({"name": "x", "seed": 3, "gate": {"max_perplexity": 9}})
    config = from_step_json(step, recipe.for_step(step))
    for section in RunConfig.model_fields:
        if section in STEP_SECTIONS[step]:
            assert getattr(config, section) == getattr(recipe, section)
        else:
            with pytest.raises(UndeclaredSection, match=f"step '{step}' reads '{section}' .* config/steps.py"):
                getattr(config, section)


def test_an_undeclared_section_stays_out_of_copies_and_of_other_steps() -> None:
    config = from_step_json("evaluate", RunConfig(name="x").for_step("evaluate"))
    changed = config.model_copy(update={"seed": 5})
    assert changed.seed == 5
    with pytest.raises(UndeclaredSection, match="reads 'data'"):
        changed.data  # noqa: B018
    assert config.for_step("evaluate") == RunConfig(name="x").for_step("evaluate")
    with pytest.raises(UndeclaredSection, match="reads 'model'"):
        config.for_step("pretrain")


@pytest.mark.parametrize("change", [{"gate": {}}, {"training": None}])
def test_a_step_s_configuration_has_just_its_sections(change: dict[str, Any]) -> None:
    values = json.loads(RunConfig(name="x").for_step("pretrain")) | change
    text = json.dumps({name: value for name, value in values.items() if value is not None})
    with pytest.raises(ValueError, match=r"step 'pretrain' has the sections .*must have kernels, model, training"):
        from_step_json("pretrain", text)


def test_digest_is_one_of_contents_and_not_of_their_order() -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "x"}}
    assert digest(value) == digest({"b": {"c": "x"}, "a": (1, 2.5, None, True)})
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of "{}"
    assert len({digest(v) for v in (value, {"a": [1, 2.5, None, False]}, "1", 1, 1.0, True, None, [], [[]])}) == 9


@pytest.mark.parametrize(
    ("unstable", "named"),
    [
        ({"paths": [Path("a")]}, r"value.paths\[0\] is PosixPath\('a'\) \(PosixPath\)"),
        ({"kinds": {"x", "y"}}, r"value.kinds is \{.*\} \(set\)"),
        ([object()], r"value\[0\] is <object object"),
        (math.nan, "value is nan"),
        ({"a": {"limit": math.inf}}, "value.a.limit is inf"),
        ({1: "x"}, r"value has the key 1 \(int\)"),
        (b"x", r"value is b'x' \(bytes\)"),
        (RunConfig(name="x"), r"value is RunConfig"),
    ],
)
def test_digest_refuses_what_has_no_stable_identity(unstable: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        digest(unstable)


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
    named = [line.split(". ", 1)[1].split(": ")[1] for line in str(caught.value).splitlines()[1:]]
    assert named == expected


def test_bare_on_and_off_are_words(tmp_path: Path) -> None:
    config = load(write(tmp_path, "name: x\ntraining: {weight_norm: [on, off]}\n"))
    assert config.training.weight_norm == ("on", "off")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: x\nnull: 1\n2020-01-01: 1\n1.5: 2\n",
            [":2: null: unknown", ":3: 2020-01-01: unknown", ":4: 1.5: unknown"],
        ),
        ("name: x\ntraining:\n  steps: .inf\n", [":3: '.inf' is not a float of a recipe (numbers are finite)"]),
        ("name: x\nsearch: {trials: " + "9" * 5000 + "}\n", [":2: ", "it has 5,000 characters"]),
        ("name: {{ name }}\n", [":1: a mapping stands where a key is expected", "template that was not rendered"]),
        ("a: 1\n{% if x %}\n", [":2: not valid YAML", "template that was not rendered"]),
        ("name: x\n# a\x00b\n", [":2: character U+0000 is not allowed"]),
        ("name: &a [*a]\n", [":1: alias '*a' is within the value"]),
        ("name: x\nseed: *s\n", [":2: alias '*s' has no anchor"]),
        ("name: x\nseed: !!python/object:os.system 1\n", [":2: tag 'tag:yaml.org,2002:python/object:os.system'"]),
        ("name: " + "[" * 5000, [":1: more than 20 levels"]),
        ("name: x\n---\nname: y\n", [":2: a second document"]),
        ("name: x\n\nscaling:\n  widths: [1000000000000]\n", [":4: scaling.widths.0: Input should be less than"]),
        ("name: x\nscaling: {block: (DFMF)x9999999999}\n", [":2: scaling.block:", "more than 4096"]),
        ("name: x\ntraining:\n  seeds: [1, 1]\n", [":3: training.seeds: 1 is there more than once"]),
    ],
)
def test_a_message_says_where_and_what(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), checks=problems)
    for part in expected:
        assert part in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = write(tmp_path, "\n".join(["a0: &a0 [x, x, x]", *levels]))
    with pytest.raises(ConfigError, match=r"recipe\.yaml:\d+: aliases make more than 100,000 values"):
        load(path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8-sig"])
def test_encodings_other_than_utf_8_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("name: x\n# größe\n".encode(encoding))
    if encoding == "utf-8-sig":
        assert load(path).name == "x"
        return
    with pytest.raises(ConfigError, match=r"recipe\.yaml:[12]: .*save .* as UTF-8"):
        load(path)


def test_an_override_of_an_aliased_section_changes_that_section_only(tmp_path: Path) -> None:
    common = "{steps: 7, batch_size: 8, sequence_length: 64, learning_rate: 0.01}"
    path = write(tmp_path, f"name: x\nscaling: &short {common}\nsearch: *short\ntraining:\n  <<: *short\n  steps: 9\n")
    config = load(path, ["scaling.steps=50"])
    assert (config.scaling.steps, config.search.steps, config.training.steps) == (50, 7, 9)
    assert config.training.batch_size == 8


def test_of_a_merge_list_the_first_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntraining: {<<: [{steps: 3}, {steps: 4, batch_size: 6}]}\n")
    assert (load(path).training.steps, load(path).training.batch_size) == (3, 6)


def test_a_merged_mapping_gives_way_to_the_line_of_its_own_key(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntraining:\n  steps: 0\n  <<: {steps: 3}\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml:3: training\.steps"):
        load(path)


def test_a_long_message_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\n" + "".join(f"key{i}: 1\n" for i in range(200)))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "200 problem(s)" in str(caught.value) and str(caught.value).endswith("… and 150 more")


def test_the_table_measures_the_sizes_of_the_search_and_its_own(tmp_path: Path) -> None:
    given = {
        "search": {"sizes": {"ffn_ratio": [2, 3]}},
        "profiling": {"sizes": {"ffn_ratio": [3, 4], "head_dim": [32]}},
    }
    config = RunConfig.model_validate({"name": "x"} | given)
    assert config.profiling.sizes.ffn_ratio == (2.0, 3.0, 4.0) and config.profiling.sizes.head_dim == (32,)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    step = from_step_json("profile_latency", config.for_step("profile_latency"))
    assert step.profiling.sizes == config.profiling.sizes


def test_the_order_of_searched_sizes_measures_no_table_again() -> None:
    first, second = (
        RunConfig.model_validate({"name": "x", "search": {"sizes": {"head_dim": values}}}).for_step("profile_latency")
        for values in ([64, 128, 32], [128, 32, 64])
    )
    assert first == second


def test_a_recipe_without_sizes_is_what_it_was_before_there_were_any() -> None:
    """Steps' configurations, and so cache keys and studies, do not have the setting where it is empty."""
    empty = {"search": {"sizes": {"ffn_ratio": []}}, "profiling": {"sizes": {}}}
    plain, emptied = RunConfig(name="x"), RunConfig.model_validate({"name": "x"} | empty)
    for step in ("profile_latency", "search_architecture"):
        assert plain.for_step(step) == emptied.for_step(step)
        sections = json.loads(plain.for_step(step))
        assert all("sizes" not in section for section in sections.values() if isinstance(section, dict))
    assert "sizes" not in str(plain.as_parameters()) and "sizes" not in str(emptied.as_parameters())


@pytest.mark.parametrize("name", ["head_dim", "ffn_ratio", "mamba_state", "mamba_expand"])
def test_a_slip_of_a_digit_in_a_size_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, json.dumps({"name": "x", "model": {name: 100_000}}))
    with pytest.raises(ConfigError, match=f"model.{name}: Input should be less than or equal to"):
        load(path)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"ffn_ratio": [0]}, "search.sizes.ffn_ratio.0: Input should be greater than 0"),
        ({"mamba_state": [2]}, "search.sizes.mamba_state.0: Input should be greater than or equal to 4"),
        ({"mamba_state": [2048]}, "search.sizes.mamba_state.0: Input should be less than or equal to 1024"),
        ({"head_dim": [64, 64]}, "search.sizes.head_dim: 64 is there more than once"),
        ({"ratio": [2]}, "search.sizes.ratio: unknown key"),
        (3, "search.sizes: Input should be a valid dictionary"),
    ],
)
def test_a_mistake_in_the_sizes_is_named_once(tmp_path: Path, sizes: Any, expected: str) -> None:
    path = write(tmp_path, json.dumps({"name": "x", "search": {"sizes": sizes}}))
    with pytest.raises(ConfigError, match="has 1 problem") as refused:
        load(path)
    assert expected in str(refused.value)
