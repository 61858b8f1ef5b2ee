"""Run one step: the single entry that KFP components and the command line share."""

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from flashslm.config import STEP_SECTIONS, RunConfig, from_step_json
from flashslm.config.steps import GPU_STEPS, MEASURING_STEPS, PROXY_STEPS
from flashslm.hardware import keep_threads_to_quota
from flashslm.infra import outages
from flashslm.infra.events import Events
from flashslm.infra.mounted_environment import load_mounted_environment
from flashslm.infra.process.collection import resume_collection
from flashslm.infra.process.interrupts import Terminated
from flashslm.infra.process.parent import die_with_parent
from flashslm.infra.process.private_logs import log_privately
from flashslm.infra.settings import Settings
from flashslm.infra.storage import long_sections
from flashslm.infra.storage.hanging import ended_in_time
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import kfp_run, mlflow_runs
from flashslm.infra.tracking.mlflow_client import MlflowUnavailable
from flashslm.ops import kernels
from flashslm.steps import attempts
from flashslm.steps.context import StepContext
from flashslm.steps.headline import record_figures
from flashslm.steps.inputs import read_inputs
from flashslm.steps.kernel_object import shared_kernels
from flashslm.steps.run_names import step_run_name

_log = logging.getLogger(__name__)
PROVENANCE = {"code_digest", "config_digest", "image"}  # parameters that tell no two tasks of a run apart


def run_step(
    name: str,
    *,
    config: str,
    inputs: Mapping[str, str | Sequence[str]] | None = None,
    outputs: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run step `name` and write a manifest for each output; an HTML page as it is.

    `config` is JSON of the sections that the step reads; `inputs` and `outputs` are paths of artifact files. What the
    step reads besides comes with its inputs (`steps.inputs`). In a pod the work runs in its own process and is tried
    again after a crash (`attempts`). Returns the step's result: numbers with units in their names, `summary` (one
    line), and what the pipeline branches on.
    """
    if name not in STEP_SECTIONS:
        raise ValueError(f"step '{name}' is unknown; allowed: {', '.join(STEP_SECTIONS)}")
    _log_to_stderr()
    load_mounted_environment()
    keep_threads_to_quota()
    if repeated := attempts.retries():
        call = {"config": config, "inputs": inputs, "outputs": outputs, "parameters": parameters}
        return attempts.run_attempts({"name": name} | call, repeated)
    die_with_parent()
    settings = Settings.from_env()
    variant = {k: v for k, v in (parameters or {}).items() if k not in PROVENANCE}
    label = " ".join([name, *(f"{k}={v}" for k, v in sorted(variant.items()))])
    events = Events.from_env(name, label)
    events.emit("start")
    try:
        store, tags = ObjectStore(settings), {"step": name} | variant
        if settings.kfp_run_id:
            settings = kfp_run.joined(settings, store)
            tags[kfp_run.STEP_TAG] = settings.kfp_run_id
        run = mlflow_runs.open_run(settings, step_run_name(label), tags=tags)
        with run as mlflow_run, _outages_handled(mlflow_run, events, settings):
            read = read_inputs(name, config, inputs or {})
            context = StepContext(
                step=name,
                config=from_step_json(name, long_sections.whole(read.config, store)),
                settings=settings,
                store=store,
                mlflow_run=mlflow_run,
                events=events,
                inputs=read.manifests,
                parameters=dict(parameters or {}),
                origins=read.origins,
            )
            with shared_kernels(context.store) if name in GPU_STEPS else nullcontext():
                result = _execute(context, outputs or {})
    except BaseException as error:
        said = str(error) if isinstance(error, Terminated) else f"{type(error).__name__}: {error}"
        events.emit("fail", said, may_pass=attempts.may_pass(error))
        raise
    published = {name: manifest.model_dump() for name, manifest in context.outputs.items()}
    summary = str(result.get("summary", ""))
    events.emit("end", summary, outputs=published)
    _log.info("result: %s", summary)  # what `flashslm runs show` reads from the log of a pod
    return result


def _decide_kernels(step: str, config: RunConfig) -> None:
    """Take the recipe's setting; what cannot run on this machine is an error now and not after an hour."""
    from flashslm.hardware import pick_device

    kernels.configure(config.kernels)
    kernels.preflight(pick_device(_device(step, config)))


def _device(step: str, config: RunConfig) -> Literal["auto", "cpu", "cuda"]:
    """Proxies have a device of their own, what measures runs on the profiled one, another step on the best there is."""
    if step in PROXY_STEPS:
        return config.profiling.training_device
    return config.profiling.device if step in MEASURING_STEPS else "auto"


@contextmanager
def _outages_handled(mlflow_run: mlflow_runs.TrackedRun, events: Events, settings: Settings) -> Iterator[None]:
    """What outages mean for a step: they are said, and none outlasts a request to end."""
    listener = _outage_listener(mlflow_run, events)
    with ended_in_time(settings, lambda: mlflow_run.end("KILLED")), outages.heard_by(listener):
        yield


def _outage_listener(mlflow_run: mlflow_runs.TrackedRun, events: Events) -> outages.OnOutage:
    """Say what the step waits for where a person looks: its MLflow run, and the terminal."""

    def listen(kind: str, sentence: str) -> None:
        events.emit("progress", sentence)
        mlflow_run.set_tags({f"outage.{kind.replace(' ', '_')}": sentence})

    return listen


def _log_to_stderr() -> None:
    """Show this project's decisions, such as the kernels that run, in the step's log; other libraries' warnings."""
    log_privately()
    logging.getLogger().setLevel(logging.WARNING)  # KFP's executor sets it to INFO
    logging.getLogger("flashslm").setLevel(logging.INFO)


def _work(context: StepContext) -> dict[str, Any]:
    """The step itself, and again while the model registry is away, which three steps need; all can be repeated."""
    run = importlib.import_module(f"flashslm.steps.{context.step}").run
    resume_collection()  # what is imported, MLflow before it, stays to the end of the process
    with outages.Wait("model registry", context.settings.tracking_uri, context.settings.patience_s) as wait:
        while True:
            try:
                return dict(run(context))
            except MlflowUnavailable as error:
                if not wait.pause(str(error)):
                    raise


def _execute(context: StepContext, outputs: Mapping[str, str]) -> dict[str, Any]:
    sections = STEP_SECTIONS[context.step]
    if "kernels" in sections:
        _decide_kernels(context.step, context.config)
    context.mlflow_run.log_params(context.config.model_dump(mode="json", include=set(sections)))
    result = _work(context)
    context.mlflow_run.set_tags({f"kernel.{name}": form for name, form in kernels.decisions().items()})
    context.mlflow_run.log_result({k: float(v) for k, v in result.items() if isinstance(v, int | float)})
    context.mlflow_run.set_tags({f"artifact.{name}": manifest.uri for name, manifest in context.outputs.items()})
    record_figures(context.settings, context.outputs)
    for name, path in outputs.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if name in context.pages:
            Path(path).write_text(context.pages[name], encoding="utf-8")
        else:
            context.outputs[name].write(Path(path), context.origins)
    return result
