"""Parity lint: refuse what a compiled pipeline does differently, or not at all, on one of its two runners.

Each rule is a generator over the compiled pipeline; its docstring says what would go wrong. The facts are those of
kfp.local 2.17 (SubprocessRunner) and the KFP backend 2.14-2.17.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flashslm.config.secret import holds_secret
from flashslm.infra.kubernetes.train_job import VARIABLE as TRAIN_JOB

# Steps that act on something outside the run, or look at what changes there; tasks without outputs and exit tasks count
# as such anyway.
SIDE_EFFECT_COMPONENTS = {
    "comp-fetch-champion",
    "comp-gate",
    "comp-gate-challenger",
    "comp-prepare-new-data",
    "comp-register-model",
    "comp-report",
    "comp-report-retraining",
}

# Of a step in the definition. Argo's node statuses hold all of it twice, and six times what KFP's driver makes of it.
# Above 1 MiB Argo compresses them, and KFP's own task details stop.
MAX_STEP_BYTES = 5_000

_CHANNEL = "pipelinechannel--"  # begins the names of a loop's collected outputs
_EXECUTOR = "kfp.dsl.executor_main"
_YAML_BOOLEAN = re.compile(r"y|n|yes|no|on|off|true|false", re.IGNORECASE)
_UNRESOLVED = re.compile(r"\{\{\$\.pipeline_job_(create_time_utc|schedule_time_utc|resource_name)\}\}")
_SECRET_NAME = re.compile(r"secret|passw|credential|(private|access|api)_?key|(^|_)(auth|token)$", re.IGNORECASE)


@dataclass(frozen=True)
class Violation:
    """One reason not to ship a pipeline."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Compiled:
    """The two documents of a compiled pipeline: the specification and, where there is one, the platform's."""

    spec: dict[str, Any]
    platform: dict[str, Any]

    def components(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "root", self.spec["root"]
        yield from self.spec.get("components", {}).items()

    def tasks(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(component of the DAG, task, its specification)."""
        for name, component in self.components():
            for task_name, task in component.get("dag", {}).get("tasks", {}).items():
                yield name, task_name, task

    def executors(self) -> dict[str, dict[str, Any]]:
        return dict(self.spec.get("deploymentSpec", {}).get("executors", {}))

    def component_of(self, task: dict[str, Any]) -> dict[str, Any]:
        return dict(self.spec["components"][task["componentRef"]["name"]])

    def pod(self, executor: str) -> dict[str, Any]:
        """The platform's settings of an executor."""
        kubernetes = self.platform.get("platforms", {}).get("kubernetes", {})
        return dict(kubernetes.get("deploymentSpec", {}).get("executors", {}).get(executor, {}))

    def timeout_s(self, executor: str) -> int:
        return int(self.pod(executor).get("activeDeadlineSeconds", 0))


Finding = tuple[str, str]  # where, message


def lint_file(path: Path) -> list[Violation]:
    """Every violation in a compiled YAML file."""
    spec, *platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return lint(spec, *platform)


def lint(spec: dict[str, Any], platform: dict[str, Any] | None = None) -> list[Violation]:
    compiled = Compiled(spec, platform or {})
    return [Violation(rule.__name__, *finding) for rule in RULES for finding in rule(compiled)]


def lightweight_components_only(compiled: Compiled) -> Iterator[Finding]:
    """Container components and components with a target_image do not run locally."""
    for name, executor in compiled.executors().items():
        command = executor.get("container", {}).get("command")
        if command is None:
            continue
        if not any(_EXECUTOR in part for part in command):
            yield name, "is a container component: make it a lightweight Python component"
        elif command[:3] == ["python3", "-m", _EXECUTOR]:
            yield name, "has a target_image: use base_image, and install the code in that image"


def nothing_installed_at_start(compiled: Compiled) -> Iterator[Finding]:
    """Packages installed at a step's start go into the developer's own environment locally, and need the network."""
    for name, executor in compiled.executors().items():
        if any("pip install" in part for part in executor.get("container", {}).get("command", [])):
            yield (
                name,
                "installs packages: set install_kfp_package=False and put them in the image",
            )


def conditions_on_single_outputs(compiled: Compiled) -> Iterator[Finding]:
    """A condition on a named output is silently false locally."""
    for dag, name, task in compiled.tasks():
        condition = task.get("triggerPolicy", {}).get("condition", "")
        for channel in re.findall(r"parameter_values\['([^']+)'\]", condition):
            output = _producing_output(compiled, dag, task, channel)
            if output not in ("", "Output"):
                yield f"{dag}/{name}", f"condition on the output '{output}': return one value and use outputs['Output']"


def loops_over_single_outputs(compiled: Compiled) -> Iterator[Finding]:
    """A loop over a named output of a step finds no items locally."""
    for dag, name, task in compiled.tasks():
        items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter", "")
        output = _producing_output(compiled, dag, task, items)
        if output not in ("", "Output") and not output.startswith(_CHANNEL):
            yield f"{dag}/{name}", f"loops over the output '{output}': return one value and use outputs['Output']"


def _producing_output(compiled: Compiled, dag: str, task: dict[str, Any], channel: str) -> str:
    """The key of the task output behind an input of a task; empty if it is an argument of the pipeline."""
    source = task.get("inputs", {}).get("parameters", {}).get(channel, {})
    if "taskOutputParameter" in source:
        return str(source["taskOutputParameter"]["outputParameterKey"])
    for outer, _, caller in compiled.tasks():
        if caller["componentRef"]["name"] == dag and "componentInputParameter" in source:
            return _producing_output(compiled, outer, caller, source["componentInputParameter"])
    return ""


def no_one_of_artifacts(compiled: Compiled) -> Iterator[Finding]:
    """OneOf over artifacts fails locally."""
    for name, component in compiled.components():
        for key, output in component.get("dag", {}).get("outputs", {}).get("artifacts", {}).items():
            if len(output.get("artifactSelectors", [])) > 1:
                yield f"{name}/{key}", "OneOf of artifacts: return a parameter, or let one step make the artifact"


def no_remote_importer(compiled: Compiled) -> Iterator[Finding]:
    """An importer downloads nothing locally."""
    for name, executor in compiled.executors().items():
        uri = executor.get("importer", {}).get("artifactUri")
        if uri is not None and ("runtimeParameter" in uri or "://" in uri.get("constant", "")):
            yield name, "imports a remote artifact: pass the URI as a parameter and read it in a step"


def no_optional_without_default(compiled: Compiled) -> Iterator[Finding]:
    """A parameter whose default is None fails locally."""
    for name, component in compiled.components():
        for key, parameter in component.get("inputDefinitions", {}).get("parameters", {}).items():
            is_status = parameter.get("parameterType") == "TASK_FINAL_STATUS"  # which the backend gives to exit tasks
            if parameter.get("isOptional") and parameter.get("defaultValue") is None and not is_status:
                yield f"{name}/{key}", "is optional without a default: give it a value of its own type, such as '' or 0"


def no_cached_side_effects(compiled: Compiled) -> Iterator[Finding]:
    """A cached step does not act in the second run."""
    for dag, name, task in compiled.tasks():
        component = compiled.component_of(task)
        if "executorLabel" not in component or not task.get("cachingOptions", {}).get("enableCache"):
            continue
        name_of_all = re.sub(r"-\d+$", "", task["componentRef"]["name"])  # the second use of a component is <name>-2
        acts = name_of_all in SIDE_EFFECT_COMPONENTS or not component.get("outputDefinitions")
        if acts or task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
            yield f"{dag}/{name}", "has a side effect and is cached: set_caching_options(False)"


def no_custom_cache_key(compiled: Compiled) -> Iterator[Finding]:
    """A custom key ignores inputs, image and code: the cache would answer for other work."""
    for dag, name, task in compiled.tasks():
        if task.get("cachingOptions", {}).get("cacheKey"):
            yield f"{dag}/{name}", "has a custom cache key: pass what matters as a parameter"


def gpu_steps_survive(compiled: Compiled) -> Iterator[Finding]:
    """A step on a GPU needs a retry (preemption) and a timeout (a hang is expensive)."""
    for dag, name, task in compiled.tasks():
        label = compiled.component_of(task).get("executorLabel", "")
        if "accelerator" not in compiled.executors().get(label, {}).get("container", {}).get("resources", {}):
            continue
        if not task.get("retryPolicy", {}).get("maxRetryCount"):
            yield f"{dag}/{name}", "uses a GPU without a retry: set_retry"
        if not compiled.timeout_s(label):
            yield f"{dag}/{name}", "uses a GPU without a timeout: kubernetes.set_timeout"


def steps_are_small(compiled: Compiled) -> Iterator[Finding]:
    """Argo records a step's definition many times over. A TrainJob's template, which one step has, is left out."""
    for dag, name, task in compiled.tasks():
        component = compiled.component_of(task)
        if "executorLabel" not in component:
            continue
        container = dict(compiled.executors().get(component["executorLabel"], {}).get("container", {}))
        container["env"] = [entry for entry in container.get("env", []) if entry["name"] != TRAIN_JOB]
        pod = compiled.pod(component["executorLabel"])
        parts = {"task": task, "component": component, "container": container, "platform": pod}
        sizes = {part: len(json.dumps(value, separators=(",", ":")).encode()) for part, value in parts.items()}
        if (total := sum(sizes.values())) > MAX_STEP_BYTES:
            listed = ", ".join(f"{part} {size}" for part, size in sizes.items())
            yield f"{dag}/{name}", f"takes {total} bytes of the definition ({listed}): at most {MAX_STEP_BYTES}"


def no_cluster_only_placeholders(compiled: Compiled) -> Iterator[Finding]:
    """Create time, schedule time and resource name of the job do not exist locally."""
    for where, text in _strings(compiled.spec):
        if found := _UNRESOLVED.search(text):
            yield where, f"uses {found.group(0)}: pass the value as an argument"


def no_yaml_boolean_names(compiled: Compiled) -> Iterator[Finding]:
    """YAML 1.1 readers (kubectl, the backend's compiler) read an unquoted `on` or `y` as a boolean key."""
    for name, component in compiled.components():
        keys = [key for _, key in _declared(component)] + list(component.get("dag", {}).get("tasks", {}))
        for key in keys:
            if isinstance(key, bool) or _YAML_BOOLEAN.fullmatch(key):
                yield name, f"the name '{key}' is a YAML 1.1 boolean: choose another"


def no_loop_over_artifacts(compiled: Compiled) -> Iterator[Finding]:
    """The backend's compiler has no artifact iterator."""
    for dag, name, task in compiled.tasks():
        if "artifactIterator" in task:
            yield f"{dag}/{name}", "loops over artifacts: loop over parameters"


def no_secrets(compiled: Compiled) -> Iterator[Finding]:
    """A compiled pipeline is readable by everyone who can see a run."""
    for where, value in _named_values(compiled):
        if value and _SECRET_NAME.search(where.rpartition("/")[2]):
            yield where, "a secret in the pipeline: read it from the environment (use_secret_as_env)"
    for where, text in _strings(compiled.spec):
        if holds_secret(text):
            yield where, "holds what looks like a credential"


def no_foreign_variables(compiled: Compiled) -> Iterator[Finding]:
    """KFP sets KFP_* in every pod, its plug-in for MLflow MLFLOW_*: a pod that has one of them twice is refused."""
    for name, executor in compiled.executors().items():
        variables = [variable["name"] for variable in executor.get("container", {}).get("env", [])]
        pod = compiled.pod(name)
        for source in (*pod.get("secretAsEnv", []), *pod.get("configMapAsEnv", [])):
            variables += [key["envVar"] for key in source.get("keyToEnv", [])]
        variables += [source["name"] for source in pod.get("fieldPathAsEnv", [])]
        for variable in variables:
            if variable.startswith(("KFP_", "MLFLOW_")):
                yield name, f"sets {variable}, which KFP or its plug-in for MLflow sets: use a name that is ours"


def _named_values(compiled: Compiled) -> Iterator[tuple[str, Any]]:
    """Default values, constant arguments and environment variables, by path."""
    for name, component in compiled.components():
        for definition, key in _declared(component):
            yield f"{name}/{key}", definition.get("defaultValue")
    for dag, name, task in compiled.tasks():
        for key, source in task.get("inputs", {}).get("parameters", {}).items():
            yield f"{dag}/{name}/{key}", source.get("runtimeValue", {}).get("constant")
    for name, executor in compiled.executors().items():
        for variable in executor.get("container", {}).get("env", []):
            yield f"{name}/{variable['name']}", variable.get("value")


def _declared(component: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """(definition, name) of everything a component declares."""
    for side in ("inputDefinitions", "outputDefinitions"):
        for kind in ("parameters", "artifacts"):
            for key, definition in component.get(side, {}).get(kind, {}).items():
                yield definition, key


def _strings(value: Any, where: str = "") -> Iterator[Finding]:
    """Every text in a specification with the path to it."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _strings(item, f"{where}/{key}".lstrip("/"))


RULES: tuple[Callable[[Compiled], Iterator[Finding]], ...] = (
    lightweight_components_only,
    nothing_installed_at_start,
    conditions_on_single_outputs,
    loops_over_single_outputs,
    no_one_of_artifacts,
    no_remote_importer,
    no_optional_without_default,
    no_cached_side_effects,
    no_custom_cache_key,
    gpu_steps_survive,
    steps_are_small,
    no_cluster_only_placeholders,
    no_yaml_boolean_names,
    no_loop_over_artifacts,
    no_secrets,
    no_foreign_variables,
)
