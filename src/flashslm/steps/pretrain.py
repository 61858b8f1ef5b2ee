"""pretrain: train the found architecture once, with or without weight normalisation, from one seed.

The training itself is also continue_pretraining's: in this process; with several GPUs, in as many processes under
torchrun; with several nodes, in a Kubeflow TrainJob.
"""

import logging
import sys
from typing import Any, NamedTuple

import torch

from flashslm.config.no_effect import without_effect_here
from flashslm.export.importing import load_export
from flashslm.hardware import pick_device, pick_dtype
from flashslm.infra.kubernetes import train_job
from flashslm.infra.kubernetes.client import Kubernetes
from flashslm.infra.storage.heartbeat import is_silent, send_heartbeats
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.models.serialization import load_architecture
from flashslm.steps.context import StepContext, fetch_tree
from flashslm.training.distributed import current_world
from flashslm.training.new_model import new_model
from flashslm.training.node import node_command
from flashslm.training.spec import (
    VALIDATION_LOSS,
    FromArchitecture,
    FromExport,
    NonFiniteLoss,
    OnMetrics,
    OnResume,
    OpenDataset,
    TrainOutcome,
    TrainSpec,
)
from flashslm.training.trained_model import store_model
from flashslm.training.trainer import train
from flashslm.training.workers import WorkerFailed, WorkerOutput, run_workers

_log = logging.getLogger(__name__)
WORKER = "flashslm.steps.pretrain_worker"
DIVERGED = "diverged.json"
WATCHED = "watched"  # tells workers to stop when the step that started them is gone


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `checkpoint`: model.safetensors, architecture.json, training.json, metrics.jsonl; where training diverged
    diverged.json alone, which is this variant's result in the ablation.
    """
    weight_norm, seed = context.parameters["weight_norm"] == "on", int(context.parameters["seed"])
    architecture = load_architecture(context.fetch("architecture"))
    spec = TrainSpec(
        start=FromArchitecture(architecture=architecture, output_init=context.config.model.output_init),
        dataset=context.manifest("dataset"),
        training=context.config.training,
        weight_norm=weight_norm,
        seed=seed,
        kernels=context.config.kernels,
        run_key=context.run_key(weight_norm=str(weight_norm), seed=str(seed)),
    )
    outcome = train_or_diverge(context, spec, "this variant diverged")
    if isinstance(outcome, Diverged):
        return {"summary": outcome.reason}
    return summarized(outcome, "validation loss")


class Diverged(NamedTuple):
    """Training ended because the loss or its gradients are not finite, and left no model."""

    reason: str


def train_or_diverge(context: StepContext, spec: TrainSpec, what: str) -> TrainOutcome | Diverged:
    """`train_in_step`; where training diverged the output `checkpoint` holds diverged.json, and its metadata `reason`.

    Raises WorkerFailed for any other failure of workers.
    """
    try:
        return train_in_step(context, spec)
    except (NonFiniteLoss, WorkerFailed) as error:
        if not (divergence := _why_diverged(error)):
            raise
    facts = {"weight_norm": "on" if spec.weight_norm else "off", "seed": spec.seed, "reason": f"{what}: {divergence}"}
    context.publish_json("checkpoint", {DIVERGED: facts}, facts)
    return Diverged(str(facts["reason"]))


def _why_diverged(error: NonFiniteLoss | WorkerFailed) -> str:
    """What was not finite, also where a worker reported it; "" for any other failure."""
    if isinstance(error, NonFiniteLoss):
        return str(error)
    kind, _, message = error.reported.partition(": ")
    return message if kind == NonFiniteLoss.__name__ else ""


def train_in_step(context: StepContext, spec: TrainSpec) -> TrainOutcome:
    """Train where the recipe and the pod say and publish the output `checkpoint`; metrics and progress are the step's.

    Checkpoints are keyed by the work itself, so a retry (or the same command after a kill) resumes where they end, on
    any number of processes. Raises NonFiniteLoss or, where workers train, WorkerFailed.
    """

    def on_metrics(step: int, values: dict[str, float]) -> None:
        context.mlflow_run.log_metrics(values, step)
        losses = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if key.endswith("loss_nats"))
        context.events.emit(
            "progress",
            f"step {step} of {spec.training.steps}: {losses}",
            training_step=step,
            **_count(step, spec, values),
        )

    def on_resume(step: int, checkpoint: str) -> None:
        text = f"resumes from step {step} of {spec.training.steps} (checkpoint {checkpoint})"
        context.mlflow_run.set_tags({"resumed_from": f"step {step}, {checkpoint}"})
        context.events.emit("progress", text, training_step=step)

    output = WorkerOutput(on_metrics, on_resume, on_log=lambda line: print(line, file=sys.stderr, flush=True))
    template = train_job.template_from_environment()
    processes = spec.training.processes or max(1, torch.cuda.device_count())
    if template:
        outcome = _train_on_nodes(context, spec, template, output)
    elif processes > 1:
        outcome = _train_on_gpus(context, spec, processes, output)
    else:
        outcome = train_in_process(spec, context.stream, context.store, on_metrics, on_resume)
    assert outcome.checkpoint is not None  # rank 0 stored it
    context.outputs["checkpoint"] = outcome.checkpoint
    return outcome


def _count(step: int, spec: TrainSpec, values: dict[str, float]) -> dict[str, Any]:
    """How far a training is, for whoever shows it."""
    count: dict[str, Any] = {"done": step, "total": spec.training.steps}
    return count | ({"tokens_per_s": values["tokens_per_s"]} if "tokens_per_s" in values else {})


def train_in_process(
    spec: TrainSpec, open_dataset: OpenDataset, store: ObjectStore, on_metrics: OnMetrics, on_resume: OnResume
) -> TrainOutcome:
    """This process' part of the run, fp32 weights on its device; rank 0 stores the result."""
    _warn_of_no_effect(spec)
    match spec.start:
        case FromArchitecture() as start:
            model = new_model(start, pick_device("auto"), spec.seed)
        case FromExport(exported=exported):
            directory = fetch_tree(store, exported) / "huggingface"
            model = load_export(directory, pick_device("auto")).to(torch.float32).train()
    return store_model(spec, model, train(spec, model, open_dataset, store, on_metrics, on_resume), store)


def _warn_of_no_effect(spec: TrainSpec) -> None:
    """A recipe is for a laptop and a cluster: what it says in vain here is a line of the log, not an error."""
    world, device = current_world(), pick_device("auto")
    precision = pick_dtype(spec.training.precision, device)
    for name, why in without_effect_here(spec.training, world.size, device, precision).items() if world.is_main else ():
        _log.warning("training.%s: no effect here: %s", name, why)


def _train_on_gpus(context: StepContext, spec: TrainSpec, processes: int, output: WorkerOutput) -> TrainOutcome:
    spec.check_ranks(processes)
    run_workers(WORKER, _put_spec(context, spec), processes, output)
    return _workers_outcome(context, spec, output)


def _train_on_nodes(
    context: StepContext, spec: TrainSpec, template: dict[str, Any], output: WorkerOutput
) -> TrainOutcome:
    """Train on other pods. The job's name is the work's, so a retry finds the job that an attempt before it left, and
    another run of the same work finds it too: both wait for one job."""
    trainer = template["spec"]["trainer"]
    trainer["numProcPerNode"] = spec.training.processes or trainer["numProcPerNode"]
    trainer["command"] = node_command("-m", WORKER, spec.object_key("spec"), WATCHED)
    template["metadata"]["name"] = f"flashslm-{spec.run_key}"
    spec.check_ranks(train_job.world_size(template))

    def on_status(text: str) -> None:
        context.mlflow_run.set_tags({"train_job.status": text})
        context.events.emit("progress", text)

    _put_spec(context, spec)
    alive, outcome = spec.object_key("heartbeat"), spec.object_key("outcome")
    is_watched, before = not is_silent(context.store, alive), context.store.get_json(outcome)
    run_id = context.settings.kfp_run_id
    job = train_job.TrainJob(Kubernetes.in_cluster(), template, output, on_status, run_id, is_watched)
    context.mlflow_run.set_tags({"train_job.name": job.name})
    try:
        with send_heartbeats(context.store, alive):
            job.run()
    except train_job.TrainJobFailed as error:
        # Another run that waited for the job may have found it complete first, and removed it.
        if isinstance(error, train_job.TrainJobGone) and context.store.get_json(outcome) != before:
            return _workers_outcome(context, spec, output)
        raise WorkerFailed(f"{output.failure}\n{error}".strip(), output.failure) from error
    return _workers_outcome(context, spec, output)


def _put_spec(context: StepContext, spec: TrainSpec) -> str:
    """The key under which workers find it."""
    context.store.put_json(spec.object_key("spec"), spec.model_dump(mode="json"))
    return spec.object_key("spec")


def _workers_outcome(context: StepContext, spec: TrainSpec, output: WorkerOutput) -> TrainOutcome:
    """What the workers stored; rows of metrics that did not come through their output are made up for."""
    found = context.store.get_json(spec.object_key("outcome"))
    if found is None:
        raise WorkerFailed(f"the workers ended but left nothing at '{spec.object_key('outcome')}': run the step again")
    outcome = TrainOutcome.model_validate(found[0])
    for row in outcome.history:
        output.row(row)
    context.mlflow_run.set_tags({f"kernel.{name}": form for name, form in outcome.kernels.items()})
    return outcome


def summarized(outcome: TrainOutcome, what: str) -> dict[str, Any]:
    """The step's result; `what` names the loss."""
    summary = f"{what} {outcome.validation_loss_nats:.3f} nats after {outcome.steps} steps"
    if outcome.world_size > 1:
        summary += f" on {outcome.world_size} processes"
    if outcome.resumed_from_step:
        summary += f" (resumed from step {outcome.resumed_from_step})"
    return {
        VALIDATION_LOSS: outcome.validation_loss_nats,
        "resumed_from_step": outcome.resumed_from_step,
        "train_tokens_per_s": outcome.tokens_per_s,
        "summary": summary,
    }
