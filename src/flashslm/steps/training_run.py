"""What pretrain and continue_pretraining share: an order carried out where the recipe and the pod say.

In this process; with several GPUs, in as many under torchrun; with several nodes, in a Kubeflow TrainJob.
"""

from typing import Any

import torch

from flashslm.export.importing import load_export
from flashslm.hardware import pick_device
from flashslm.infra.kubernetes import train_job
from flashslm.infra.kubernetes.client import Kubernetes
from flashslm.infra.storage.heartbeat import beating
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_architecture
from flashslm.steps.context import StepContext
from flashslm.training.pretraining import Fetch, Order, Outcome, execute, micro_batch_rows
from flashslm.training.workers import WorkerFailed, WorkerOutput, run_workers

WORKER = "flashslm.steps.pretrain_worker"
WATCHED = "watched"  # tells workers to stop when the step that started them is gone


def starting_model(order: Order, fetch: Fetch) -> HybridLM:
    """The model before its first step, fp32 on this process' device."""
    directory, device = fetch(order.start), pick_device("auto")
    if order.replay:
        return load_export(directory / "huggingface", device).to(torch.float32).train()
    return HybridLM.build(load_architecture(directory), device=device, dtype=torch.float32, seed=order.seed)


def run_order(context: StepContext, order: Order) -> Outcome:
    """Train as ordered and publish the output `checkpoint`; metrics and progress are the step's.

    Checkpoints are keyed by the work itself, so a retry (or the same command after a kill) resumes where they end, on
    any number of processes. Raises NonFiniteLoss or, where workers train, WorkerFailed.
    """
    template = train_job.template_from_environment()
    processes = order.training.processes or max(1, torch.cuda.device_count())

    def on_metrics(step: int, values: dict[str, float]) -> None:
        context.task.log_metrics(values, step)
        losses = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if key.endswith("loss_nats"))
        context.events.emit("progress", f"step {step} of {order.training.steps}: {losses}", training_step=step)

    output = WorkerOutput(on_metrics, on_log=lambda line: print(line, flush=True))
    outcome: Outcome | None
    if template:
        outcome = _in_train_job(context, order, template, output)
    elif processes > 1:
        micro_batch_rows(order.training, processes)
        context.store.put_json(order.key, order.model_dump(mode="json"))
        run_workers(WORKER, order.key, processes, output)
        outcome = _outcome(context, order, output)
    else:
        fetch = context.fetch_manifest
        outcome = execute(order, starting_model(order, fetch), context.store, fetch, on_metrics)
        assert outcome is not None  # rank 0 of one
    context.outputs["checkpoint"] = outcome.checkpoint
    return outcome


def _in_train_job(context: StepContext, order: Order, template: dict[str, Any], output: WorkerOutput) -> Outcome:
    """Train on other pods. The job's name is the work's, so a retry finds the job that an attempt before it left."""
    trainer = template["spec"]["trainer"]
    trainer["numProcPerNode"] = order.training.processes or trainer["numProcPerNode"]
    trainer["command"] = ["python", "-m", "torch.distributed.run", "-m", WORKER, order.key, WATCHED]
    template["metadata"]["name"] = f"flashslm-{order.run_key}"
    micro_batch_rows(order.training, train_job.world_size(template))

    def on_status(text: str) -> None:
        context.task.set_tags({"train_job.status": text})
        context.events.emit("progress", text)

    context.store.put_json(order.key, order.model_dump(mode="json"))
    job = train_job.TrainJob(Kubernetes.in_cluster(), template, output.line, on_status)
    context.task.set_tags({"train_job.name": job.name})
    try:
        with beating(context.store, order.heartbeat_key):
            job.run()
    except train_job.TrainJobFailed as error:
        raise WorkerFailed(f"{output.failure}\n{error}".strip(), output.failure) from error
    return _outcome(context, order, output)


def _outcome(context: StepContext, order: Order, output: WorkerOutput) -> Outcome:
    """What the workers stored; rows of metrics that did not come through their output are made up for."""
    found = context.store.get_json(order.outcome_key)
    if found is None:
        raise WorkerFailed(f"the workers ended well but left nothing at '{order.outcome_key}': run the step again")
    outcome = Outcome.model_validate(found[0])
    for row in outcome.history:
        output.row(row)
    context.task.set_tags({f"kernel.{name}": form for name, form in outcome.kernels.items()})
    return outcome


def summarized(outcome: Outcome, what: str) -> dict[str, Any]:
    """The step's result; `what` names the loss."""
    facts = outcome.summary
    loss, resumed = facts["validation_loss_nats"], facts["resumed_from_step"]
    summary = f"{what} {loss:.3f} nats after {facts['steps']} steps"
    if facts["world_size"] > 1:
        summary += f" on {facts['world_size']} processes"
    return {
        "validation_loss_nats": loss,
        "resumed_from_step": resumed,
        "train_tokens_per_s": facts["tokens_per_s"],
        "summary": summary + (f" (resumed from step {resumed})" if resumed else ""),
    }
