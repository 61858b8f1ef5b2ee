"""search_architecture: one worker of the shared study."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from flashslm.config import digest
from flashslm.hardware import pick_device
from flashslm.infra.tracking.mlflow_runs import TrackedRun, end_lost
from flashslm.models.architecture import InfeasibleArchitecture, parse_operators, repeat_block
from flashslm.models.hybrid import HybridLM
from flashslm.profiling.latency_table import LatencyTable
from flashslm.search.evolution import Proposer
from flashslm.search.fit import WidthFitter
from flashslm.search.space import SearchSpace
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, TrialFailed
from flashslm.search.worker import run_worker
from flashslm.steps.context import StepContext
from flashslm.training.proxy import proxy_training
from flashslm.training.shared_gpu import OutOfMemory, SharedGpu
from flashslm.training.spec import FromArchitecture, NonFiniteLoss, TrainOutcome, TrainSpec
from flashslm.training.trainer import train


def run(context: StepContext) -> dict[str, Any]:
    """Work on the study until every trial is finished; any number of workers may do so at once."""
    study = open_study(context)

    def on_trial(candidate: Candidate, outcome: TrainOutcome) -> None:
        design = f"trial {candidate.slot}: {candidate.operators} at width {candidate.architecture.hidden_size}"
        measured = f"loss {outcome.validation_loss_nats:.3f}, {candidate.latency_ms:.3f} ms"
        count = {"done": len(study.finished()), "total": context.config.search.trials}
        context.events.emit("progress", f"{design}, {measured}", **count)

    summary = run_worker(study, make_proposer(context), make_trainer(context, study), on_trial)
    return {
        "trained_trials": summary.trained,
        "waited_s": summary.waited_s,
        "worker": study.name,
        "summary": f"{summary.trained} trials by this worker, {summary.completed} in the study",
    }


def open_study(context: StepContext) -> SearchStudy:
    """The study is named by the work: same configuration, inputs and code = same study."""
    if not context.settings.study_url:
        raise ValueError("FLASHSLM_STUDY_URL is not set: give an Optuna storage such as sqlite:///study.db")
    settings = context.settings
    return SearchStudy.open(settings.study_url, study_name(context), patience_s=settings.patience_s)


def study_name(context: StepContext) -> str:
    """The study's identity: all that decides what is proposed and which loss it gets. It is the same in every worker
    and in select_architecture; the number of workers is not part of it, so a search continues with more or fewer.
    Optuna's dashboard lists studies by it.
    """
    sections = json.loads(context.config.for_step("search_architecture"))
    del sections["search"]["workers"]
    inputs = {name: context.manifest(name).sha256 for name in ("dataset", "latency_table", "scaling_law")}
    work = {"config": sections, "inputs": inputs, "code": context.parameters["code_digest"]}
    search = context.config.search
    widths = f"{min(search.widths)} to {max(search.widths)}"
    return f"search: {search.trials} trials, width {widths} ({digest(work)[:16]})"


def budget_ms(context: StepContext) -> float:
    """The latency budget the scaling law's choice was made under."""
    return float(context.manifest("scaling_law").metadata["budget_ms"])


def make_proposer(context: StepContext) -> Proposer:
    """The pure function from finished trials to the next candidates; the law's choice is one of the seed designs."""
    config = context.config
    fitter = WidthFitter(
        table=LatencyTable.model_validate(context.read_json("latency_table", "latency_table.json")),
        latency=config.latency,
        budget_ms=budget_ms(context),
        widths=config.search.widths,
        sizes=config.model,
        vocab_size=context.manifest("dataset").metadata["vocab_size"],
    )
    return Proposer(config.search, fitter, config.seed, law_designs(context))


def law_designs(context: StepContext) -> tuple[str, ...]:
    """The scaling law's choice as a seed design: whole blocks, then what is left of one; none if it does not fit."""
    config = context.config
    block = parse_operators(config.scaling.block)
    operators = repeat_block(block, context.manifest("scaling_law").metadata["depth"])
    whole, rest = divmod(len(operators), len(block))
    notation = " | ".join([f"({block})x{whole}"] * (whole > 0) + [block[:rest]] * (rest > 0))
    try:
        SearchSpace(config.search.max_operators, config.search.max_mixer_types).parse(notation)
    except InfeasibleArchitecture as error:
        context.events.emit("progress", f"the scaling law's choice is not a seed design: {error}")
        return ()
    return (notation,)


def make_trainer(context: StepContext, study: SearchStudy) -> Callable[[Candidate], TrainOutcome]:
    """Short-train one candidate inside its own nested MLflow run, beside other workers of the same GPU."""
    config, device = context.config, pick_device(context.config.profiling.training_device)
    training, gpu = proxy_training(config.search, config.profiling.threads, decay=True), SharedGpu.of(device)

    def train_once(candidate: Candidate) -> TrainOutcome:
        spec = TrainSpec(
            start=FromArchitecture(architecture=candidate.architecture),
            dataset=context.manifest("dataset"),
            training=training,
            weight_norm=False,  # as in the paper's search
            seed=config.seed,
        )
        with context.mlflow_run.nested(f"trial {candidate.slot}", params=candidate.attributes()) as trial:
            model = HybridLM.build(candidate.architecture, device, seed=config.seed, init_on_device=True)
            outcome = train(spec, model, context.stream, on_metrics=partial(_log_row, trial))
            final = {"proxy_loss_nats": outcome.validation_loss_nats, "latency_ms": candidate.latency_ms}
            trial.log_metrics(final, step=config.search.steps)
        return outcome

    def train_candidate(candidate: Candidate) -> TrainOutcome:
        end_lost(context.settings, f"trial {candidate.slot}", study.lost_workers(candidate.slot))
        try:
            return gpu.run(partial(train_once, candidate))
        except (NonFiniteLoss, OutOfMemory) as error:
            raise TrialFailed(str(error)) from error

    return train_candidate


def _log_row(trial: TrackedRun, step: int, values: dict[str, float]) -> None:
    trial.log_metrics(values, step)
