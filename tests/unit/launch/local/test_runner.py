"""Names of tasks, and the command a task is started with."""

import sys
from pathlib import Path

import pytest

from flashslm.launch.local import runner
from flashslm.launch.local.runner import Job, describe_exit, make_task


@pytest.fixture(autouse=True)
def no_names_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_taken", set())


def test_task_is_named_after_its_step_and_its_variant(tmp_path: Path) -> None:
    arguments = {
        "training": {"steps": 3.0},
        "code_digest": "abc",
        "weight_norm": "on",
        "seed": "0",
        "workers": ["a"],
        "note": "x" * 99,
        "image": "",
    }
    task = make_task("pre_train", arguments, tmp_path)
    assert (task.step, task.label) == ("pre_train", "pre_train seed=0 weight_norm=on")
    assert task.log == tmp_path / "pre_train-seed=0-weight_norm=on.log"


def test_tasks_with_one_name_get_logs_of_their_own(tmp_path: Path) -> None:
    logs = [make_task("search", {"worker": "a b/c"}, tmp_path).log.name for _ in range(3)]
    assert logs == ["search-worker=a-b-c.log", "search-worker=a-b-c-2.log", "search-worker=a-b-c-3.log"]


def test_only_the_executors_shell_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python3")
    script = "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path x"
    exec_line = "export _KFP_RUNTIME=true; exec '/opt/my python/bin/python3' -m kfp.dsl.executor_main"
    assert runner._in_this_interpreter(script) == f"{exec_line} --component_module_path x"
    assert runner._in_this_interpreter('{"paths": ["/usr/lib/python3"]}') == '{"paths": ["/usr/lib/python3"]}'


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "exit code 1"),
        (-15, "killed by SIGTERM"),
        (143, "killed by SIGTERM"),
        (-9, "killed by SIGKILL (out of memory?)"),
    ],
)
def test_exit_in_words(code: int, text: str) -> None:
    assert describe_exit(code) == text


def test_job_survives_its_file(tmp_path: Path) -> None:
    job = Job(tmp_path / "p.yaml", {"workers": ["0"], "config": '{"a": 1}'}, tmp_path / "run", tmp_path / "home", 3)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
