"""What a person may have changed in KFP's pages is refused before any work, by the names of section and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import RunConfig, from_step_json
from flashslm.config.section import MAX_INTEGER
from flashslm.config.steps import EVERY_SECTION
from flashslm.infra.events import Events
from flashslm.steps import check_recipe
from flashslm.steps.context import StepContext
from tests.unit.evaluation.choice_task import write_choice_task

NOTHING: Any = None


def check(sections: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({key: {} for key in EVERY_SECTION} | {"name": "toy", "seed": 0} | sections)
    config = from_step_json("check_recipe", text)
    events = Events("check_recipe", "check_recipe", None)
    return check_recipe.run(StepContext("check_recipe", config, NOTHING, NOTHING, NOTHING, events, {}, {}))


def test_sections_that_leave_out_every_default_are_a_recipe() -> None:
    result = check({})
    assert result["variants"] == RunConfig(name="toy").variants()
    assert check({"training": {"seeds": [3.0, 4.0]}})["variants"][-1] == {"weight_norm": "off", "seed": "4"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"steps": 0}}, r"training\.steps: Input should be greater than or equal to 1 \(given: 0\)"),
        ({"training": {"steps": 2.5}}, r"training\.steps: .*valid integer.* \(given: 2\.5\)"),
        ({"training": {"stepz": 3}}, r"training\.stepz: unknown key; allowed here: .*steps"),
        ({"gate": {"promotion_hook": {"attempts": 0}}}, r"gate\.promotion_hook\.attempts: .*\(given: 0\)"),
        ({"data": []}, r"data: Input should be a valid dictionary.* \(given: \[\]\)"),
        ({"data": {"max_bytes": float(2**60)}}, r"data\.max_bytes: \d+ is too large: .* below 2\^53"),
        ({"search": {"workers": 3}}, r"search\.workers: the pipeline's own parameter 'workers' says it"),
        ({"latency": {"context": 7}}, r"latency\.context: 7 is outside profiling\.contexts"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"the recipe cannot be used: {message}"):
        check(sections)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"training\.steps: .*; evaluation\.batch_size: "):
        check({"training": {"steps": 0}, "evaluation": {"batch_size": 0}})


def test_an_integer_that_a_double_rounds_is_refused_before_it_is_sent() -> None:
    assert RunConfig.model_validate({"name": "x", "data": {"max_bytes": MAX_INTEGER - 1}}).data.max_bytes == 2**53 - 1
    with pytest.raises(ValueError, match="9007199254740993 is too large"):
        RunConfig.model_validate({"name": "x", "data": {"max_bytes": 2**53 + 1}})


def test_the_digest_is_that_of_the_sections() -> None:
    assert check({})["config_digest"] == check({"training": {"steps": 10_000}})["config_digest"]
    assert check({})["config_digest"] != check({"seed": 1})["config_digest"]


def test_it_says_before_the_training_which_tasks_are_not_kept_out_of_its_text(tmp_path: Path) -> None:
    own = write_choice_task(tmp_path, 4, "acc")
    for name in ("piqa_validation", "piqa_train"):
        row = {"goal": "how", "sol1": "so", "sol2": "not so", "label": 0}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sets, named = {"task_data": str(tmp_path)}, ["piqa", "niah_single_1", str(own)]
    sizes = {"max_position_embeddings": 16384}

    def said(**evaluation: Any) -> str:
        return str(check({"model": sizes, "evaluation": evaluation})["summary"])

    assert f"the text of piqa, {own} is not kept out of the training text" in said(lm_eval_tasks=named)
    assert f"the text of {own} is not kept out" in said(lm_eval_tasks=named, **sets)
    for silent in (said(), said(lm_eval_tasks=["piqa", "niah_single_1"], **sets)):
        assert "kept out" not in silent
