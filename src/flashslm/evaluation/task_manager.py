"""The harness's task manager with a recipe's shots and local data. Imported only where lm_eval is installed."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from flashslm.evaluation.harness_host import processed_once
from flashslm.evaluation.task_data import LocalSets, TaskDataError
from flashslm.evaluation.task_files import is_file
from flashslm.evaluation.task_metrics import DEFAULT_NEW_TOKENS


class RecipeTaskManager(TaskManager):
    """Knows the tasks of `index`, the harness's own, and those below `include_path`, which come first.

    `shots` by task or group, where they are not the harness's own; with `data` nothing is fetched.
    """

    def __init__(
        self,
        include_path: str | Path | None,
        index: dict[str, Any],
        shots: dict[str, int],
        data: LocalSets | None,
        facts: dict[str, Any],
    ):
        super().__init__(include_path=include_path, include_defaults=False, metadata=facts)
        self.shots, self.data = shots, data
        self._index: dict[str, Any] = {**index, **self.task_index}
        self._all_tasks = sorted(self._index)

    def load(self, task_list: Any) -> Any:
        """As the harness does. Raises TaskDataError where a set, its examples or a package is missing."""
        try:
            with self.data.serving() if self.data else nullcontext():
                loaded = super().load(task_list)
        except (ImportError, KeyError, OSError) as error:
            raise TaskDataError(f"lm_eval cannot load it: {' '.join(str(error).split())}") from error
        for name, count in self.shots.items():
            group = loaded["groups"].get(name)
            for task in group.get_all_tasks() if group else filter(None, [loaded["tasks"].get(name)]):
                task.set_config(key="num_fewshot", value=count)
        for name, task in loaded["tasks"].items():
            if process := getattr(task.config, "process_docs", None):
                task.config.process_docs = processed_once(process)
            if self.data and (count := task.config.num_fewshot or 0) and len(list(task.fewshot_docs())) < count:
                raise TaskDataError(
                    f"'{self.data.directory}' has fewer than the {count} examples that {name} shows first: put its "
                    "training split there, as SET_train.jsonl or some of it as SET_train_fewshot.jsonl"
                )
        return loaded

    def says(self, task: str, key: str) -> Any:
        """A key of a task's own file, without loading the task; None where it has none."""
        path = self._path(task)
        return load_yaml(path, resolve_func=False).get(key) if path else None

    def missing_package(self, task: str) -> str:
        """Why the functions that a task's file names cannot be imported here; empty where they can be."""
        try:
            if path := self._path(task):
                load_yaml(path)
        except ImportError as error:
            return " ".join(str(error).split())
        return ""

    def _path(self, task: str) -> Path | None:
        """A task's own file; None for a group of tasks."""
        entry = self.task_index.get(task)
        return Path(task) if is_file(task) else entry.yaml_path if entry else None

    def generated_tokens(self, task: str) -> int:
        """The tokens that a task has a model generate at most; 0 for a task that only scores, and for a group."""
        if self.says(task, "output_type") != "generate_until":
            return 0
        given = self.says(task, "generation_kwargs") or {}
        return int(normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS)["max_gen_toks"])
