"""Tasks read a directory in place of the hub: the harness's own, which are looked up by name, over rows made here."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from flashslm.config import EvaluationConfig, ModelConfig, RunConfig
from flashslm.config.paths import with_absolute_paths
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation import task_files, tasks
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.evaluation.task_data import LocalSets, read_rows, set_name
from flashslm.launch.compiling import pipeline_arguments
from flashslm.launch.kfp.submit import cluster_arguments
from flashslm.launch.processes import LaunchError
from flashslm.models.hybrid import HybridLM
from flashslm.steps.recipe_checks import problems_before_a_run, problems_before_a_run_here

QUESTION = {"choices": ["blue", "green", "seven", "dogs"], "answer": 1, "question": "the river is"}
pytestmark = pytest.mark.usefixtures("few_harness_tasks")
ROWS: dict[str, list[dict[str, Any]]] = {
    "piqa_validation": [{"goal": f"the {i} dogs", "sol1": "sleeps", "sol2": "river", "label": i % 2} for i in range(6)],
    "arc_easy_test": [
        {"question": "often", "choices": {"text": ["the stone", "cats"], "label": ["A", "B"]}, "answerKey": "B"}
    ],
    "mmlu_test": [QUESTION | {"subject": of} for of in ("anatomy", "anatomy", "virology")],
    "mmlu_dev": [QUESTION | {"subject": of} for of in ("anatomy",) * 5 + ("virology",)],
    "gsm8k_test": [{"question": "How many cats?", "answer": "1 + 1\n#### 2"}],
    "gsm8k_train_fewshot": [{"question": f"How many {i}?", "answer": f"#### {i}"} for i in range(6)],
}


def write(directory: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four sets; what is not there would be fetched, and is refused."""
    for name, rows in ROWS.items():
        write(tmp_path, name, rows)
    fetch = datasets.load_dataset

    def refuse(path: str, *arguments: Any, **options: Any) -> Any:
        assert path == "json", f"{path} would be fetched"
        return fetch(path, *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    return tmp_path


def section(sets: Path, *names: str, **more: Any) -> EvaluationConfig:
    return EvaluationConfig(lm_eval_tasks=names, task_data=str(sets), **more)


def test_the_harness_s_tasks_read_the_directory(sets: Path, model: HybridLM, dataset: Path) -> None:
    before = datasets.load_dataset
    asked = Asked(("piqa", "arc_easy", "mmlu_anatomy"), task_data=str(sets))
    found, items = run_tasks(model, load_tokenizer(dataset / "tokenizer"), asked)
    assert {task: found[task]["samples"] for task in found} == {"piqa": 6, "arc_easy": 1, "mmlu_anatomy": 2}
    assert found["piqa"]["acc"] == sum(items["piqa"]["acc"].totals) / 6
    assert datasets.load_dataset is before


def test_examples_come_from_the_training_rows(sets: Path) -> None:
    manager = tasks.find_tasks(["gsm8k"], task_data=str(sets))
    (task,) = manager.load(["gsm8k"])["tasks"].values()
    task.set_fewshot_seed(1234)
    prompt = task.fewshot_context(task.eval_docs[0], task.config.num_fewshot)
    assert prompt.count("Question: How many") == 6 and prompt.endswith("Question: How many cats?\nAnswer:")
    write(sets, "gsm8k_train_fewshot", ROWS["gsm8k_train_fewshot"][:3])
    with pytest.raises(ValueError, match=r"fewer than the 5 examples that gsm8k shows first.*SET_train_fewshot"):
        tasks.find_tasks(["gsm8k"], task_data=str(sets)).load(["gsm8k"])


def test_what_is_missing_is_named_before_a_run(sets: Path) -> None:
    recipe = RunConfig(name="x", evaluation=section(sets, "piqa", "mmlu_virology", "hellaswag", "mmlu_anatomy"))
    (sets / "mmlu_dev.jsonl").unlink()
    write(sets, "mmlu_test", ROWS["mmlu_test"][:2])
    virology, hellaswag, anatomy = problems_before_a_run(recipe)
    assert f"task_data: hellaswag: '{sets}' has no hellaswag_validation.jsonl (nor .jsonl.zst" in hellaswag
    assert "mmlu_virology: " in virology and "mmlu_dev.jsonl" in virology and "mmlu_dev.jsonl" in anatomy
    write(sets, "mmlu_dev", ROWS["mmlu_dev"])
    virology, _ = problems_before_a_run(recipe)
    assert "mmlu_test in" in virology and "has no subject virology" in virology


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("piqa_validation", [], "piqa_validation in '{sets}' has no rows: fetch the set again"),
        ("piqa_validation", [{"goal": 3}], "its rows are not as on the hub, column by column (ValueError: "),
        ("arc_easy_test", [{"question": "often", "choices": 3}], "(UndefinedError: "),
        ("mmlu_test", [], "has no subject anatomy"),
    ],
)
def test_rows_that_a_task_cannot_read_are_a_problem(sets: Path, name: str, rows: list[Any], message: str) -> None:
    write(sets, name, rows)
    (problem,) = problems_before_a_run(
        RunConfig(name="x", evaluation=section(sets, "piqa", "arc_easy", "mmlu_anatomy"))
    )
    assert problem.startswith("evaluation.task_data: ") and message.format(sets=sets) in problem


OWN_TASK = """task: own
dataset_path: own
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""


@pytest.mark.parametrize(
    ("more", "positions", "message"),
    [
        ("", 260, "generates up to 256 tokens, and the model has positions for 256 of text, prompt included"),
        ("", 261, ""),
        ("generation_kwargs: {max_new_tokens: 90, until: [x]}", 94, "generates up to 90 tokens"),
        ("generation_kwargs: {max_new_tokens: 90, until: [x]}", 95, ""),
        ("unsafe_code: true", 1024, "own.yaml runs the programs that the model writes"),
    ],
)
def test_a_task_that_cannot_be_run_is_seen_before_a_run(sets: Path, more: str, positions: int, message: str) -> None:
    """Four of the positions are meta tokens'."""
    write(sets, "own_test", ROWS["gsm8k_test"])
    (sets / "own.yaml").write_text(OWN_TASK + more)
    evaluation = section(sets, str(sets / "own.yaml"), sequence_length=64)
    model = ModelConfig(max_position_embeddings=positions, num_meta_tokens=4)
    found = [
        text
        for text in problems_before_a_run(RunConfig(name="x", model=model, evaluation=evaluation))
        if "own.yaml" in text
    ]
    assert bool(found) == bool(message) and all(message in text for text in found)


@pytest.mark.parametrize(("imported", "is_there"), [("json", True), ("a_package_that_is_not_installed", False)])
def test_a_task_that_makes_its_own_text_needs_its_packages(sets: Path, imported: str, is_there: bool) -> None:
    (sets / "made.py").write_text(f"import {imported}\n\n\ndef texts(**_):\n    raise AssertionError('made')\n")
    (sets / "own.yaml").write_text(OWN_TASK + "custom_dataset: !function made.texts")
    recipe = RunConfig(name="x", evaluation=section(sets, str(sets / "own.yaml")))
    assert [imported in text for text in problems_before_a_run_here(recipe)] == ([] if is_there else [True])
    assert problems_before_a_run(recipe) == [], "an image may have it"


def test_a_directory_that_is_not_there_is_a_problem_and_a_relative_one_is_made_absolute(
    sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RunConfig(name="x", evaluation=section(sets / "none", "piqa"))
    assert problems_before_a_run(recipe) == [f"evaluation.task_data: the directory '{sets / 'none'}' does not exist"]
    monkeypatch.chdir(sets.parent)
    relative = RunConfig(name="x", evaluation=section(Path(sets.name), "piqa"))
    assert with_absolute_paths(relative).evaluation.task_data == str(sets)


def test_other_rows_are_other_work(sets: Path) -> None:
    recipe = RunConfig(name="x", evaluation=section(sets, "piqa"))
    before = task_files.with_digests(recipe.evaluation)
    task_files.check_unchanged(before)
    state = (sets / "piqa_validation.jsonl").stat()
    write(sets, "piqa_validation", [row | {"label": 1 - row["label"]} for row in ROWS["piqa_validation"]])
    os.utime(sets / "piqa_validation.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns))
    after = task_files.with_digests(recipe.evaluation)
    arguments = [
        pipeline_arguments(recipe.model_copy(update={"evaluation": of}), "code", "source") for of in (before, after)
    ]
    assert arguments[0] != arguments[1]
    with pytest.raises(ValueError, match="changed after the run began"):
        task_files.check_unchanged(before)
    assert task_files.with_digests(EvaluationConfig(task_data=str(sets))).lm_eval_files == {}  # nothing reads it


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_compressed_and_columnar_files_have_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows, file = ROWS["piqa_validation"], tmp_path / f"piqa_validation{suffix}"
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".jsonl.gz":
        file.write_bytes(gzip.compress(text))
    else:
        with pyarrow.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(text)
    assert LocalSets(tmp_path).rows("piqa_validation") == rows


@pytest.mark.parametrize(
    ("content", "where"), [(b'{"a": 1}\n[1]\n', ":2'"), (b'{"a": 1}\n\n{', ":3'"), (b"\xff\n", "'")]
)
def test_a_file_that_is_not_rows_is_named_with_its_line(tmp_path: Path, content: bytes, where: str) -> None:
    file = tmp_path / "x_test.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as rows") as error:
        read_rows(file)
    assert f"{file}{where}" in str(error.value)


def test_sets_are_named_by_the_hub_s_name() -> None:
    assert set_name("Rowan/hellaswag", None) == "hellaswag"
    assert set_name("openai/gsm8k", "main") == "gsm8k"
    assert set_name("allenai/winogrande", "winogrande_xl") == "winogrande_xl"
    assert set_name("own/set", "hard") == "set_hard"


def test_pods_have_no_such_directory(sets: Path) -> None:
    with pytest.raises(LaunchError, match=r"evaluation.task_data: '.*' is a directory of this machine"):
        cluster_arguments(None, RunConfig(name="x", evaluation=section(sets, "piqa")), "")  # type: ignore[arg-type]
