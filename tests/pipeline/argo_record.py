"""How many bytes Argo's node statuses take for a run, estimated as KFP 2.17's drivers make its pods of the definition.

What is not a copy of the definition (the nodes of a task, their names and times) is taken from the recorded workflow.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from tests.pipeline.pod_patch import Artifact, compact, pod_patch, size
from tests.pipeline.recorded_kfp import recorded_nodes

Document = dict[str, Any]

# Parameters of nodes that copy the definition, or that a driver makes of it.
COPIES = ("pod-spec-patch", "component", "task", "container", "kubernetes-config", "runtime-config")
DRIVER, DAG_DRIVER = "system-container-driver", "system-dag-driver"
EXECUTORS = ("metadata-1-2-retry-system-container-executor", "metadata-1-2-retry-system-container-impl")


@dataclass
class Scope:
    """What the tasks of one DAG may refer to: its inputs, and what its tasks have made."""

    parameters: Document
    artifacts: dict[str, list[Artifact]]
    made: dict[str, dict[str, list[Artifact]]] = field(default_factory=dict)
    returned: dict[str, Document] = field(default_factory=dict)

    def artifacts_of(self, source: Document) -> list[Artifact]:
        if "componentInputArtifact" in source:
            return [replace(each, beside=False) for each in self.artifacts[source["componentInputArtifact"]]]
        produced = source["taskOutputArtifact"]
        return self.made[produced["producerTask"]][produced["outputArtifactKey"]]

    def value_of(self, source: Document) -> Any:
        if "componentInputParameter" in source:
            value = self.parameters.get(source["componentInputParameter"], "")
            selector = source.get("parameterExpressionSelector", "")
            return value[selector.split('"')[1]] if selector else value
        if "taskOutputParameter" in source:
            produced = source["taskOutputParameter"]
            return self.returned[produced["producerTask"]].get(produced["outputParameterKey"], "")
        return source.get("runtimeValue", {}).get("constant", "")


@dataclass(frozen=True)
class Pod:
    """A task's pod: what its driver is given, and the patch that it makes of it."""

    task: str
    given: dict[str, str]
    patch: str


class Record:
    """A run of a compiled definition: the pods and the DAGs that it comes to. `returned` is what steps return."""

    def __init__(self, spec: Document, platform: Document, arguments: Document, returned: dict[str, Document]):
        self.spec, self._returned = spec, returned
        kubernetes = platform.get("platforms", {}).get("kubernetes", {})
        self._settings = kubernetes.get("deploymentSpec", {}).get("executors", {})
        self.pods: list[Pod] = []
        self.dags: list[dict[str, str]] = []
        declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        values = {name: value.get("defaultValue", "") for name, value in declared.items()} | arguments
        self.dags.append({"component": compact(spec["root"]), "runtime-config": compact({"parameterValues": values})})
        self._run_dag(spec["root"], Scope(values, {}))

    def bytes(self) -> int:
        """Of the node statuses: each pod's patch six times, what a driver is given twice, the rest as recorded."""
        rest = recorded_rest()
        pods = sum(6 * size(pod.patch) + 2 * sum(map(size, pod.given.values())) for pod in self.pods)
        dags = sum(2 * sum(map(size, given.values())) for given in self.dags)
        return pods + len(self.pods) * rest.pod + dags + len(self.dags) * rest.dag + rest.others

    def _run_dag(self, component: Document, scope: Scope) -> None:
        waiting = dict(component["dag"]["tasks"])
        while waiting:
            for name in [name for name, task in waiting.items() if not {*task.get("dependentTasks", [])} & {*waiting}]:
                self._run_task(name, waiting.pop(name), scope)

    def _run_task(self, name: str, task: Document, scope: Scope) -> None:
        component = self.spec["components"][task["componentRef"]["name"]]
        inputs = task.get("inputs", {})
        artifacts = {key: scope.artifacts_of(source) for key, source in inputs.get("artifacts", {}).items()}
        parameters = {key: scope.value_of(source) for key, source in inputs.get("parameters", {}).items()}
        if "executorLabel" not in component:
            self._run_inner(name, task, Scope(parameters, artifacts), scope)
            return
        label = component["executorLabel"]
        container = self.spec["deploymentSpec"]["executors"][label]["container"]
        settings = self._settings.get(label, {})
        patch = pod_patch(
            self.spec["pipelineInfo"]["name"], name, component, container, settings, parameters, artifacts
        )
        given = {"component": component, "task": task, "container": container, "kubernetes-config": settings}
        self.pods.append(Pod(name, {key: compact(value) for key, value in given.items()}, compact(patch)))
        keys = component.get("outputDefinitions", {}).get("artifacts", {})
        scope.made[name] = {key: [Artifact(name, key)] for key in keys}
        scope.returned[name] = self._returned.get(name, {})

    def _run_inner(self, name: str, task: Document, inner: Scope, scope: Scope) -> None:
        """A DAG within a DAG; a loop has one driver for itself and one for each of its iterations."""
        component = self.spec["components"][task["componentRef"]["name"]]
        given = {"component": compact(component), "task": compact(task)}
        self.dags.append(given)
        iterator = task.get("parameterIterator")
        for item in inner.parameters[iterator["items"]["inputParameter"]] if iterator else [None]:
            iteration = Scope(dict(inner.parameters), inner.artifacts)
            if iterator:
                self.dags.append(given)
                iteration.parameters[iterator["itemInput"]] = item
            self._run_dag(component, iteration)
            _collect(component.get("dag", {}).get("outputs", {}), iteration, scope, name)


def _collect(outputs: Document, inner: Scope, scope: Scope, name: str) -> None:
    for key, output in outputs.get("artifacts", {}).items():
        for selected in output["artifactSelectors"]:
            found = inner.made[selected["producerSubtask"]][selected["outputArtifactKey"]]
            scope.made.setdefault(name, {}).setdefault(key, []).extend(found)
    for key, output in outputs.get("parameters", {}).items():
        source = output["valueFromParameter"]
        value = inner.returned[source["producerSubtask"]].get(source["outputParameterKey"], "")
        scope.returned.setdefault(name, {}).setdefault(key, []).append(value)


@dataclass(frozen=True)
class Rest:
    """Bytes that are no copies: of a task's six nodes, of a DAG's two drivers, of all other nodes together."""

    pod: int
    dag: int
    others: int


def recorded_rest() -> Rest:
    totals = {"pod": 0, "dag": 0, "others": 0}
    counts = dict(totals)
    for node in recorded_nodes("succeeded_compressed").values():
        template = node["templateName"]
        kind = "pod" if template in (DRIVER, *EXECUTORS) else "dag" if template == DAG_DRIVER else "others"
        parameters = [*node.get("inputs", {}).get("parameters", []), *node.get("outputs", {}).get("parameters", [])]
        copies = sum(size(p.get("value", "")) for p in parameters if p["name"] in COPIES)
        totals[kind] += size({node["id"]: node}) - 1 - copies
        counts[kind] += 1
    return Rest(totals["pod"] * 6 // counts["pod"], totals["dag"] * 2 // counts["dag"], totals["others"])
