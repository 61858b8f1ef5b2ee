"""The tasks of a compiled pipeline in the order of its graph, loops unrolled by a run's arguments."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flashslm.config import RunConfig
from flashslm.launch.kfp.exit_task import is_exit_task
from flashslm.launch.labels import step_label, step_of

_FIELD_OF_ITEM = re.compile(r'parseJson\(string_value\)\["(.+)"\]')
ITERATION = re.compile(r"\d+")


@dataclass(frozen=True)
class DefinedTask:
    """One container task of a run. `path` names it from the root of the graph: ("for-loop-2", "1", "pretrain").

    A loop is followed by the index of its iteration. `label` is what the local terminal shows for the task.
    """

    path: tuple[str, ...]
    step: str
    label: str
    memory_limit: str
    is_exit_task: bool = False  # it ends the run and is not part of the pipeline


def defined_tasks(specification: dict[str, Any], arguments: dict[str, Any]) -> list[DefinedTask]:
    """Every container task of a PipelineSpec; a loop whose items no argument gives counts as one iteration."""
    walk = _Walk(specification, {"check-recipe.Output": _variants(arguments)})
    return list(walk.tasks(specification["root"]["dag"], (), dict(arguments)))


def _variants(arguments: dict[str, Any]) -> list[Any]:
    """What check_recipe returns for a run's arguments: the pretraining runs."""
    try:
        return list(RunConfig(name="any", training=arguments.get("training", {})).variants())
    except ValueError:  # the step refuses it
        return [None]


@dataclass
class _Walk:
    specification: dict[str, Any]
    outputs: dict[str, Any]  # those that the arguments determine, as "task.output"

    def tasks(self, dag: dict[str, Any], path: tuple[str, ...], values: dict[str, Any]) -> Iterator[DefinedTask]:
        for name in _in_order(dag["tasks"]):
            task = dag["tasks"][name]
            component = self.specification["components"][task["componentRef"]["name"]]
            inputs = self._inputs_of(task, values)
            if "dag" not in component:
                container = self._container(component)
                step = step_of(container)
                memory = _memory_limit(container)
                yield DefinedTask((*path, name), step, step_label(step, inputs), memory, is_exit_task(task))
                continue
            for index, item in _iterations(task, inputs):
                yield from self.tasks(component["dag"], (*path, name, *index), inputs | item)

    def _container(self, component: dict[str, Any]) -> dict[str, Any]:
        return dict(self.specification["deploymentSpec"]["executors"][component["executorLabel"]]["container"])

    def _inputs_of(self, task: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a task that the run's arguments determine; what other tasks find out is left out."""
        found = {}
        for name, given in task.get("inputs", {}).get("parameters", {}).items():
            produced = given.get("taskOutputParameter", {})
            output = f"{produced.get('producerTask')}.{produced.get('outputParameterKey')}"
            if "constant" in given.get("runtimeValue", {}):
                found[name] = given["runtimeValue"]["constant"]
            elif (source := given.get("componentInputParameter")) in values:
                found[name] = _selected(values[source], given.get("parameterExpressionSelector", ""))
            elif output in self.outputs:
                found[name] = self.outputs[output]
        return found


def _memory_limit(container: dict[str, Any]) -> str:
    resources = container.get("resources", {})
    return str(resources.get("resourceMemoryLimit") or resources.get("memoryLimit") or "")


def _in_order(tasks: dict[str, Any]) -> list[str]:
    """Tasks after those they depend on; of several that are ready the first by name, as the compiler sorts them."""
    ordered: list[str] = []
    while len(ordered) < len(tasks):
        ready = [n for n in sorted(tasks) if n not in ordered and set(tasks[n].get("dependentTasks", [])) <= {*ordered}]
        ordered += ready[:1] or sorted(set(tasks) - set(ordered))
    return ordered


def _selected(value: Any, selector: str) -> Any:
    matched = _FIELD_OF_ITEM.fullmatch(selector)
    return value.get(matched[1]) if matched and isinstance(value, dict) else value


def _iterations(task: dict[str, Any], inputs: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path of the iteration, its loop item) for each iteration; one without either for a task outside a loop."""
    iterator = task.get("parameterIterator")
    if iterator is None:
        yield (), {}
        return
    items = iterator["items"]
    values = json.loads(items["raw"]) if "raw" in items else inputs.get(items.get("inputParameter"), [None])
    for index, value in enumerate(values):
        yield (str(index),), {} if value is None else {iterator["itemInput"]: value}
