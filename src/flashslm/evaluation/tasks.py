"""Tasks of lm-evaluation-harness by name. No torch here, and lm_eval only where tasks are named: it needs an extra."""

import difflib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashslm.config import EvaluationConfig
from flashslm.evaluation import task_files, task_presets
from flashslm.evaluation.harness_host import bars_on_a_terminal
from flashslm.evaluation.task_data import LocalSets, TaskDataError

if TYPE_CHECKING:
    from flashslm.evaluation.task_manager import RecipeTaskManager


def is_installed() -> bool:
    return find_spec("lm_eval") is not None


def find_tasks(
    names: Sequence[str],
    include_path: str | Path | None = None,
    task_data: str = "",
    facts: dict[str, Any] | None = None,
) -> "RecipeTaskManager":
    """A task manager that knows the tasks; lm_eval's own are looked for only when they are needed.

    `names` are tasks, presets and files. `task_data` is a directory of sets in place of the hub, `facts` what the
    functions of a task that makes its own text are given. Raises ValueError for names that lm_eval does not have.
    """
    from flashslm.evaluation import task_index
    from flashslm.evaluation.task_manager import RecipeTaskManager

    tasks = [task for task in task_presets.expand(names) if not task_files.is_file(task)]
    data = LocalSets(task_data) if task_data else None
    for of_harness in (False, True):
        index = task_index.index_of(tasks) if of_harness else {}
        manager = RecipeTaskManager(include_path, index, task_presets.shots_of(names), data, facts or {})
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if not unknown:
            return manager
    near = difflib.get_close_matches(unknown[0], manager.all_tasks) or ["arc_easy", "hellaswag", "piqa"]
    raise ValueError(f"lm_eval has no task {', '.join(unknown)}; did you mean {', '.join(near)}?")


def specifications(names: Sequence[str]) -> list[Any]:
    """What the harness's loader takes: names, and of files what they say."""
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = task_presets.expand(names)
    return [load_yaml(Path(task)) if task_files.is_file(task) else task for task in tasks]


def not_decontaminated(config: EvaluationConfig) -> list[str]:
    """The tasks, presets expanded, whose sets `evaluation.task_data` does not hold: no text of them was kept out of the
    training text. Tasks that make their own text are none of these; a group of the harness's is named as a whole.
    """
    manager = find_tasks(config.lm_eval_tasks)
    return [
        task
        for task in task_presets.expand(config.lm_eval_tasks)
        if not manager.says(task, "custom_dataset") and not (config.task_data and task_files.takes_task_data(task))
    ]


def problems(config: EvaluationConfig, text_positions: int | None = None, runs_here: bool = False) -> Iterator[str]:
    """What the harness finds wrong with a recipe's tasks, before anything runs.

    `text_positions` are those of the model, None: not known yet. With local data every task is loaded, apart from those
    that make their own text to the measure of a tokenizer; else the names are looked up: loading would fetch the sets.
    With `runs_here` this machine needs the packages that those tasks import.
    """
    try:
        manager = find_tasks(config.lm_eval_tasks, task_data=config.task_data)
    except ValueError as error:
        yield f"evaluation.lm_eval_tasks: {error}"
        return
    for task in task_presets.expand(config.lm_eval_tasks):
        if manager.says(task, "unsafe_code") and not config.run_generated_code:
            yield (
                f"evaluation.lm_eval_tasks: {task} runs the programs that the model writes, on this machine: set "
                "evaluation.run_generated_code to true where that is safe, or leave the task out"
            )
        elif text_positions is not None and (tokens := manager.generated_tokens(task)) >= text_positions:
            yield (
                f"evaluation.lm_eval_tasks: {task} generates up to {tokens} tokens, and the model has positions for "
                f"{text_positions} of text, prompt included: raise model.max_position_embeddings, or leave the task out"
            )
        elif manager.says(task, "custom_dataset"):  # its text is made to the measure of a tokenizer
            if runs_here and (lacking := manager.missing_package(task)):
                yield f"evaluation.lm_eval_tasks: {task}: {lacking}"
        elif config.task_data:
            try:
                with bars_on_a_terminal():
                    manager.load(specifications([task]))
            except TaskDataError as error:
                yield f"evaluation.task_data: {task}: {error}"
            except Exception as error:  # templates and functions of tasks raise anything for rows they do not expect
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                yield f"evaluation.task_data: {task}: its rows are not as on the hub, column by column ({reason})"
