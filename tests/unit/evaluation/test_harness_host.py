"""The harness with less work on the host: the same outcome, templates compiled once, no bars in a log."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task, tqdm
from lm_eval.tasks import TaskManager
from lm_eval.utils import env

from flashslm.config import EvaluationConfig
from flashslm.evaluation.harness import BOOTSTRAPS, Asked, harness_outcome
from flashslm.evaluation.harness_host import lean_harness, processed_once, without_bars
from flashslm.evaluation.tasks import problems

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/rows.jsonl}}}}
test_split: test
process_docs: !function rows.numbered
doc_to_text: "{{{{number}}}}: {{{{question}}}}"
"""
CHOICE = """output_type: multiple_choice
doc_to_target: answer
doc_to_choice: "{{[first, second]}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """output_type: loglikelihood
doc_to_target: " {{first}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc}]
"""
ROWS = [
    {"question": f"the {i} dogs", "first": "sl" * (i % 3 + 1), "second": "river", "answer": i % 2} for i in range(9)
]
NUMBERED = (
    "def numbered(rows):\n    return rows.map(lambda row, number: {**row, 'number': number}, with_indices=True)\n"
)


class ScoredByLength(TemplateLM):
    """No model: a continuation's score follows from its length and its context's."""

    eot_token_id = 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(string.encode())

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return [(-len(end) - len(start) % 7 / 10, len(start) % 2 == 0) for _, start, end in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    generate_until = loglikelihood_rolling


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two tasks over nine rows."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "rows.py").write_text(NUMBERED)
    for name, rest in (("choice", CHOICE), ("words", PERPLEXITY)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, directory=tmp_path) + rest)
    return tmp_path


def test_the_outcome_is_the_harness_s_own(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = harness_outcome(ScoredByLength(), Asked(["choice", "words"], include_path=directory))
    assert capsys.readouterr().out == ""
    manager = TaskManager(include_path=str(directory), include_defaults=False)
    expected = lm_eval.simple_evaluate(
        ScoredByLength(), tasks=["choice", "words"], task_manager=manager, bootstrap_iters=BOOTSTRAPS
    )
    for key in ("results", "samples", "n-samples", "n-shot", "versions", "higher_is_better"):
        assert found[key] == expected[key], key
    assert found["results"]["words"]["perplexity_stderr,none"] > 0
    assert 0 < found["results"]["choice"]["acc,none"] < 1


def test_a_template_is_compiled_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_source = [], env.compile

    def count(source: Any, *arguments: Any, **options: Any) -> Any:
        compiled.append(source)
        return compile_source(source, *arguments, **options)

    monkeypatch.setattr(env, "compile", count)
    harness_outcome(ScoredByLength(), Asked(["choice", "words"], include_path=directory))
    assert len(compiled) == len(set(compiled)) > 2


def test_documents_are_processed_once_per_data_set() -> None:
    rows, others = (datasets.Dataset.from_list([{"a": value}]) for value in (1, 2))
    seen: list[Any] = []

    def process(dataset: Any) -> Any:
        """What a task says of its rows."""
        seen.append(dataset)
        return dataset.map(lambda row: {"a": -row["a"]})

    documents = processed_once(process)
    assert [documents(of)["a"][0] for of in (rows, others, rows, others)] == [-1, -2, -1, -2]
    assert seen == [rows, others]
    assert documents.__doc__ == process.__doc__
    as_list = processed_once(lambda dataset: [dict(row) for row in dataset])
    assert as_list(rows) is not as_list(rows)  # its rows could be changed


def test_what_is_replaced_comes_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "as before")
    build, begin = Task.build_all_requests, tqdm.__init__
    with pytest.raises(RuntimeError), lean_harness():
        assert Task.build_all_requests is not build
        raise RuntimeError
    assert (Task.build_all_requests, tqdm.__init__) == (build, begin)
    assert "from_string" not in vars(env) and datasets.is_progress_bar_enabled()
    assert os.environ["DISABLE_MULTIPROC"] == "as before"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_for_terminals_and_lines_for_logs(
    is_terminal: bool,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with caplog.at_level(logging.INFO, "flashslm"):
        harness_outcome(ScoredByLength(), Asked(["choice"], include_path=directory))
    assert ("9/9" in capsys.readouterr().err) is is_terminal
    assert "choice: 9 items, 18 requests made in " in caplog.text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_looking_tasks_up_draws_bars_on_a_terminal_only(
    directory: Path, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "sets").mkdir()
    shutil.copy(directory / "rows.jsonl", directory / "sets" / "json_test.jsonl")
    config = EvaluationConfig(lm_eval_tasks=(str(directory / "choice.yaml"),), task_data=str(directory / "sets"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert list(problems(config)) == []
    assert ("Map:" in capsys.readouterr().err) == is_terminal


def test_a_working_directory_without_a_checkout_is_no_error(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """git would print one into the step's log."""
    monkeypatch.chdir(tmp_path)
    outcome = harness_outcome(ScoredByLength(), Asked(["choice"], include_path=directory))
    assert "fatal" not in capfd.readouterr().err
    assert "pretty_env_info" not in outcome, "asking for it takes seconds"


def test_bars_of_datasets_are_silenced_too(capsys: pytest.CaptureFixture[str]) -> None:
    rows = datasets.Dataset.from_list([{"a": 1}])
    with without_bars():
        rows.map(lambda row: {"a": row["a"] + 1})
    assert capsys.readouterr().err == ""
    rows.map(lambda row: {"a": row["a"] + 2})
    assert "1/1" in capsys.readouterr().err
