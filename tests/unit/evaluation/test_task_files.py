"""Task files of a recipe: all that they read is in their digest, and what is wrong with them is said early."""

import os
from pathlib import Path

import pytest

from flashslm.config import EvaluationConfig, RunConfig
from flashslm.config.paths import with_absolute_paths
from flashslm.evaluation import task_files
from flashslm.launch.compiling import pipeline_arguments
from flashslm.steps.recipe_checks import problems_before_a_run

BASE = "output_type: multiple_choice\ndataset_path: json\ntest_split: train\n"
TASK = """
include: base.yaml
task: own
dataset_kwargs: {data_files: {train: [rows.jsonl]}}
doc_to_text: "{{question}}"
doc_to_target: !function helpers.target
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task that includes a file, calls a function and reads local rows, whose path is relative to this directory."""
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    Path("tasks/base.yaml").write_text(BASE)
    Path("tasks/own.yaml").write_text(TASK)
    Path("tasks/helpers.py").write_text("def target(doc): return 0\n")
    Path("rows.jsonl").write_text('{"question": "q"}\n')
    return Path("tasks/own.yaml")


@pytest.mark.parametrize("changed", ["tasks/own.yaml", "tasks/base.yaml", "tasks/helpers.py", "rows.jsonl"])
def test_a_change_of_any_file_that_it_reads_is_other_work(task: Path, changed: str) -> None:
    config = RunConfig(name="x", evaluation=EvaluationConfig(lm_eval_tasks=(str(task),)))
    before = task_files.with_digests(config.evaluation)
    state = Path(changed).stat()
    content = Path(changed).read_text()
    Path(changed).write_text(content.replace("q", "r").replace("0", "1").replace("choice", "chioce"))
    os.utime(changed, ns=(state.st_atime_ns, state.st_mtime_ns))  # the content counts, not the time
    after = task_files.with_digests(config.evaluation)
    arguments = [
        pipeline_arguments(config.model_copy(update={"evaluation": section}), "code", "source")
        for section in (before, after, after)
    ]
    assert arguments[0] != arguments[1] == arguments[2]
    task_files.check_unchanged(after)
    with pytest.raises(ValueError, match="changed after the run began"):
        task_files.check_unchanged(before)


def test_a_good_file_has_no_problems_and_is_made_absolute(task: Path) -> None:
    recipe = RunConfig(name="x", evaluation=EvaluationConfig(lm_eval_tasks=(str(task), "piqa")))
    assert list(task_files.problems(recipe.evaluation.lm_eval_tasks)) == []
    assert with_absolute_paths(recipe).evaluation.lm_eval_tasks == (str(task.absolute()), "piqa")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("task: [a, b]\n", "defines no task: it needs `task: NAME`"),
        ("group: g\n", "defines no task"),
        ("- task\n", "holds no mapping"),
        ("task: {\n", "cannot be read"),
        ("task: piqa\n", "are both the task 'piqa'"),
        (TASK.replace("rows.jsonl", "none.jsonl"), "reads 'none.jsonl', which is not there"),
        ("include: own.yaml\ntask: own\n", "includes itself"),
        ("include: loop.yaml\ntask: own\n", "includes itself"),
        (None, "not found: give the path of a YAML file"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_before_a_run(
    task: Path, content: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashslm.evaluation.tasks.is_installed", lambda: False)  # it would index all of its own
    (task.parent / "loop.yaml").write_text("include: own.yaml\n")
    task.unlink()
    if content is not None:
        task.write_text(content)
    recipe = RunConfig(name="x", evaluation=EvaluationConfig(lm_eval_tasks=("piqa", str(task))))
    (problem,) = task_files.problems(recipe.evaluation.lm_eval_tasks)
    assert expected in problem and str(task) in problem
    assert f"evaluation.lm_eval_tasks: {problem}" in problems_before_a_run(recipe)


def test_another_users_file_is_refused(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions would run as this user."""
    if os.getuid() == 0:
        os.chown("tasks/helpers.py", 4242, -1)
    else:
        monkeypatch.setattr("os.getuid", lambda: 4242)
    (problem,) = task_files.problems([str(task)])
    assert "helpers.py" in problem and "belongs to another user" in problem


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        ("dataset_path: json\ndataset_kwargs: {data_files: own.jsonl}\n", False),
        ("dataset_path: json\ndataset_kwargs: {data_files: 'https://example.org/own.jsonl'}\n", False),
        (
            "dataset_path: parquet\ndataset_kwargs: {data_files: {test: 'hf://datasets/OWNER/NAME/own.parquet'}}\n",
            False,
        ),
        ("dataset_path: baber/piqa\n", True),
    ],
)
def test_a_file_that_names_its_own_data_takes_none_of_the_recipes(source: str, takes: bool, tmp_path: Path) -> None:
    task = tmp_path / "own.yaml"
    task.write_text("task: own\n" + source)
    assert task_files.takes_task_data(str(task)) is takes
    assert task_files.takes_task_data("piqa")
