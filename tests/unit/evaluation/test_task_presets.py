import math
from pathlib import Path

import pytest

from flashslm.config import EvaluationConfig, RunConfig
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation import task_presets, tasks
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.models.hybrid import HybridLM
from flashslm.steps.recipe_checks import problems, problems_before_a_run

GENERATED = """task: made
dataset_path: ""
custom_dataset: !function made.rows
output_type: generate_until
test_split: test
doc_to_text: "{{input}}"
doc_to_target: "{{outputs}}"
process_results: !function made.process
metric_list:
  - {metric: "4096", aggregation: !function made.mean, higher_is_better: true}
  - {metric: "64", aggregation: !function made.mean, higher_is_better: true}
generation_kwargs: {max_gen_toks: 4, until: []}
"""
FUNCTIONS = """
import datasets
def rows(tokenizer, max_seq_lengths, **_):
    rows = [{"input": f"{len(tokenizer)} {i}", "outputs": "x", "found": i % 2} for i in range(5)]
    return {"test": datasets.Dataset.from_list([row | {"lengths": str(max_seq_lengths)} for row in rows])}
def process(doc, results):
    assert doc["lengths"] == "[]" and doc["input"].split()[0] != "0"
    return {"4096": -1.0, "64": float(doc["found"])}
def mean(values):
    values = [value for value in values if value != -1]
    return sum(values) / len(values) if values else -1
"""


def test_presets_give_their_tasks_once_and_the_harness_has_them_all() -> None:
    names = [task_presets.PREFIX + name for name in task_presets.PRESETS]
    expanded = task_presets.expand(["piqa", *names])
    assert expanded.count("piqa") == 1 and expanded[0] == "piqa"
    assert len(task_presets.PRESETS["commonsense_8"].metrics) == 8
    assert len(task_presets.PRESETS["commonsense_6"].metrics) == 6
    manager = tasks.find_tasks(names)
    assert set(expanded) <= set(manager.all_tasks)
    assert manager.shots == {"mmlu": 5, "gsm8k": 5}


def test_the_average_has_the_standard_error_of_independent_tasks() -> None:
    metrics = task_presets.PRESETS["recall"].metrics
    errors = (0.01, 0.02, 0.04)
    results = {
        task: {"contains": 0.1 * i, "contains_stderr": error, "samples": 100.0}
        for i, (task, error) in enumerate(zip(metrics, errors, strict=True))
    }
    (name, row), *others = task_presets.averages(["piqa", "preset:recall", "preset:mmlu"], results).items()
    assert name == "recall" and not others
    assert row["average"] == pytest.approx(0.1) and row["samples"] == 300
    assert row["average_stderr"] == pytest.approx(math.sqrt(sum(e * e for e in errors)) / 3)
    del results["fda"]["contains_stderr"]
    assert "average_stderr" not in task_presets.averages(["preset:recall"], results)["recall"]
    del results["fda"]
    assert task_presets.averages(["preset:recall"], results) == {}


def recipe(*names: str, **model: int) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "evaluation": {"lm_eval_tasks": names}, "model": model})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("preset:comonsense_8",), "there is no 'preset:comonsense_8'; did you mean preset:commonsense_8?"),
        (("mmlu", "preset:mmlu"), "'mmlu' is also in 'preset:mmlu', with 5 shots: name one of the two"),
    ],
)
def test_a_preset_that_cannot_be_used_is_said_before_a_run(names: tuple[str, ...], expected: str) -> None:
    (problem,) = problems_before_a_run(recipe(*names))
    assert expected in problem


@pytest.mark.usefixtures("few_harness_tasks")
def test_tasks_that_run_what_the_model_writes_must_be_allowed() -> None:
    found = problems_before_a_run(recipe("preset:code"))
    assert len(found) == 4 and all("set evaluation.run_generated_code to true" in problem for problem in found)
    allowed = EvaluationConfig(lm_eval_tasks=("preset:code",), run_generated_code=True)
    assert problems_before_a_run(RunConfig(name="x", evaluation=allowed)) == []


def test_ruler_needs_positions_for_its_shortest_text() -> None:
    (found,) = [p for p in problems(recipe("preset:ruler", max_position_embeddings=4096)) if "lm_eval_tasks" in p]
    assert found.startswith("evaluation.lm_eval_tasks: 4096 and ")
    assert task_presets.ruler_lengths(20_000) == [4096, 8192, 16384]


def test_text_made_for_a_tokenizer_gets_it_and_lengths_not_asked_for_are_left_out(
    model: HybridLM, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "made.yaml").write_text(GENERATED)
    (tmp_path / "made.py").write_text(FUNCTIONS)
    tokenizer = load_tokenizer(dataset / "tokenizer")
    results, items = run_tasks(model, tokenizer, Asked(["made"], include_path=tmp_path))
    assert results["made"]["64"] == 0.4 and "4096" not in results["made"]
    assert results["made"]["64_stderr"] == pytest.approx(math.sqrt(0.4 * 0.6 / 4))
    assert items["made"]["64"].totals == (0.0, 1.0, 0.0, 1.0, 0.0)
