"""Short training of the search's candidates: each in its own nested MLflow run, beside other workers of the GPU."""

from collections.abc import Callable
from functools import partial

from flashslm.hardware import pick_device
from flashslm.infra.tracking.mlflow_runs import TrackedRun, end_lost
from flashslm.models.hybrid import HybridLM
from flashslm.search.evolution import Proposer
from flashslm.search.halving import CandidatePruned, Halving
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, TrialFailed
from flashslm.steps.context import StepContext
from flashslm.steps.run_names import trial_run_name
from flashslm.training.proxy import proxy_training
from flashslm.training.shared_gpu import OutOfMemory, SharedGpu
from flashslm.training.spec import (
    VALIDATION_LOSS,
    FromArchitecture,
    NonFiniteLoss,
    OnMetrics,
    TrainOutcome,
    TrainSpec,
)
from flashslm.training.trainer import train


class CandidateTrainer:
    """Called with a candidate; raises TrialFailed, or CandidatePruned where successive halving ends it."""

    def __init__(self, context: StepContext, study: SearchStudy, proposer: Proposer) -> None:
        self.context, self.study, self.proposer = context, study, proposer
        self.device = pick_device(context.config.profiling.training_device)
        self.training = proxy_training(context.config.search, context.config.profiling.threads, decay=True)
        self.halving, self.gpu = Halving(context.config.search), SharedGpu.of(self.device)

    def __call__(self, candidate: Candidate) -> TrainOutcome:
        end_lost(self.context.settings, trial_run_name(candidate), self.study.lost_workers(candidate.slot))
        try:
            ended = self.gpu.run(partial(self._train, candidate))
        except (NonFiniteLoss, OutOfMemory) as error:
            raise TrialFailed(str(error)) from error
        if isinstance(ended, CandidatePruned):
            raise ended
        return ended

    def _train(self, candidate: Candidate) -> TrainOutcome | CandidatePruned:
        config = self.context.config
        spec = TrainSpec(
            start=FromArchitecture(architecture=candidate.architecture),
            dataset=self.context.manifest("dataset"),
            training=self.training,
            weight_norm=False,  # as in the paper's search
            seed=config.seed,
            validate_at=self.halving.budgets,
        )
        with self.context.mlflow_run.nested(trial_run_name(candidate), params=candidate.attributes()) as run:
            model = HybridLM.build(candidate.architecture, self.device, seed=config.seed, init_on_device=True)
            on_metrics = self._pruning(candidate, partial(_log_row, run))
            try:
                outcome = train(spec, model, self.context.stream, on_metrics=on_metrics)
            except CandidatePruned as pruned:
                run.set_tags({"pruned_at_step": str(pruned.step)})
                return pruned
            final = {"proxy_loss_nats": outcome.validation_loss_nats, "latency_ms": candidate.latency_ms}
            run.log_metrics(final, step=config.search.steps)
        return outcome

    def _pruning(self, candidate: Candidate, log: Callable[[int, dict[str, float]], None]) -> OnMetrics:
        """Log each row, and raise CandidatePruned at a budget beyond which the candidate is not trained."""
        earlier = self.proposer.known(candidate.slot, self.study.finished())
        losses_nats: dict[int, float] = {}

        def on_metrics(step: int, values: dict[str, float]) -> None:
            log(step, values)
            if step in self.halving.budgets:
                losses_nats[step] = values[VALIDATION_LOSS]
                if self.halving.ends(earlier, losses_nats):
                    raise CandidatePruned(losses_nats)

        return on_metrics


def _log_row(run: TrackedRun, step: int, values: dict[str, float]) -> None:
    run.log_metrics(values, step)
